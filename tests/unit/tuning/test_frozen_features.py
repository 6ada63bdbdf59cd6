"""Tests of the inputs of the head for all images of a run's data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from PIL import Image
from torchvision.transforms import v2

from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.tuning.frozen_features import frozen_features, groups_in

Make = Callable[..., Config]
FIXED = {"precision": "float32", "memory_format": "contiguous"}


def test_features_are_the_inputs_of_the_head_of_the_pretrained_network(make_config: Make) -> None:
    found = frozen_features(make_config(runtime=FIXED, recipe=None), SilentReporter())
    plan, model = found.stage_setup.plan, found.stage_setup.model
    head = model.get_submodule(plan.spec.family.head)
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    used = plan.spec.preprocessing
    fit = v2.Compose(
        [v2.PILToTensor(), v2.Resize(used.resize, antialias=True), v2.CenterCrop(used.crop)]
    )
    for path in found.data.val.paths:
        with Image.open(path) as image:
            pixels = fit(image.convert("RGB")).float() / 255
        mean, std = (torch.tensor(value)[:, None, None] for value in (used.mean, used.std))
        with torch.no_grad():
            model.eval()(((pixels - mean) / std)[None])
    assert torch.allclose(found.val, torch.cat(seen), atol=1e-3)


def test_features_are_computed_once(make_config: Make) -> None:
    config = make_config(runtime=FIXED, features={"cache": "disk"})
    first = frozen_features(config, SilentReporter())
    again = frozen_features(config, SilentReporter())
    assert first.counts is not None
    assert again.counts is not None
    assert (first.counts.computed > 0, again.counts.computed) == (True, 0)
    assert torch.equal(first.train, again.train)


def test_what_the_config_trains_does_not_matter(make_config: Make) -> None:
    plain = make_config(runtime=FIXED).plain()
    del plain["freeze"]
    expected = frozen_features(make_config(runtime=FIXED), SilentReporter()).train
    full = Config.model_validate(plain | {"recipe": "full"})
    assert torch.equal(frozen_features(full, SilentReporter()).train, expected)


def test_without_validation_images_there_are_no_features_of_them(make_config: Make) -> None:
    config = make_config(runtime=FIXED)
    values = {"data.root": f"{config.data.root}/train", "data.val_fraction": 0.0}
    found = frozen_features(config.with_values(values), SilentReporter())
    assert (len(found.val), found.train.shape[1]) == (0, found.val.shape[1])


def test_equal_images_are_one_group(make_config: Make) -> None:
    found = frozen_features(make_config(runtime=FIXED), SilentReporter())
    data = found.data
    groups = groups_in((data.train, data.val), torch.cat([found.train, found.val]))
    paths = [*data.train.paths, *data.val.paths]
    same = {path.read_bytes() for path in paths}
    assert len(set(groups)) == len(same) < len(paths)


def test_groups_of_the_data_are_kept(make_config: Make) -> None:
    images = frozen_features(make_config(runtime=FIXED), SilentReporter()).data.train
    names = tuple(str(number // 2) for number in range(len(images)))
    grouped = replace(images, groups=names)
    assert groups_in((grouped,), torch.zeros(len(images), 3)) == names
