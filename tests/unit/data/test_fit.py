"""Tests of ``data.fit``: crop, pad and stretch, also from a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from finetune.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.train import train
from finetune.config.load import load_config
from finetune.config.schema import Config, PreprocessingConfig
from finetune.data.loading.transforms import build_draw, build_fit, mean_colour
from finetune.data.loading.views import Views

Make = Callable[..., Config]
FIXED = {"precision": "float32", "memory_format": "contiguous"}


def fitted(photo: Tensor, fit: str, interpolation: str = "bilinear") -> Tensor:
    preprocessing = PreprocessingConfig(resize=16, crop=16, fit=fit, interpolation=interpolation)
    return build_fit(preprocessing)(photo)


def striped(height: int, width: int) -> Tensor:
    """Left third red, middle green, right blue, in vertical stripes."""
    photo = torch.zeros(3, height, width, dtype=torch.uint8)
    for stripe in range(3):
        photo[stripe, :, stripe * width // 3 : (stripe + 1) * width // 3] = 255
    return photo


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_pad_shows_the_whole_photo_between_bars_of_the_mean_colour(interpolation: str) -> None:
    pixels = fitted(striped(24, 48), "pad", interpolation)
    assert pixels.shape == (3, 16, 16)
    colour = torch.tensor(mean_colour(PreprocessingConfig(resize=16, crop=16)))
    for bar in (pixels[:, :4], pixels[:, 12:]):
        assert (bar == colour[:, None, None]).all()
    middle = pixels[:, 8]
    assert [int(middle[:, column].argmax()) for column in (0, 8, 15)] == [0, 1, 2]
    assert middle[:, [0, 8, 15]].max(dim=0).values.tolist() == [255] * 3


def test_pad_puts_bars_at_the_sides_of_a_tall_photo() -> None:
    pixels = fitted(torch.full((3, 48, 24), 255, dtype=torch.uint8), "pad")
    assert (pixels[:, :, 4:12] == 255).all()
    assert (pixels[:, :, :4] < 255).all()
    assert (pixels[:, :, 12:] < 255).all()


def test_pad_keeps_a_thin_photo_one_pixel_wide() -> None:
    pixels = fitted(torch.full((3, 100, 1), 255, dtype=torch.uint8), "pad")
    assert int((pixels == 255).all(dim=0).sum()) == 16


def test_stretch_shows_the_whole_photo_without_bars() -> None:
    pixels = fitted(striped(24, 48), "stretch")
    assert pixels.shape == (3, 16, 16)
    assert [int(pixels[:, 8, column].argmax()) for column in (0, 8, 15)] == [0, 1, 2]
    assert (pixels == pixels[:, :1]).all()


def test_crop_shows_the_middle() -> None:
    pixels = fitted(striped(24, 72), "crop")
    assert (pixels[1, :, 1:-1] == 255).all()
    assert (pixels[[0, 2], :, 1:-1] == 0).all()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_square_photo_looks_the_same_however_it_is_fitted(fit: str) -> None:
    photo = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    assert torch.equal(fitted(photo, fit), fitted(photo, "crop"))


@pytest.mark.parametrize("policy", ["trivial", "randaugment", "autoaugment"])
@pytest.mark.parametrize(("fit", "whole"), [("crop", True), ("pad", False), ("stretch", False)])
def test_policies_draw_from_the_square_where_a_photo_is_to_stay_whole(
    policy: str, fit: str, whole: bool
) -> None:
    preprocessing = PreprocessingConfig(resize=16, crop=16, fit=fit)
    draw, from_photo = build_draw(preprocessing, Views.of(policy))
    assert from_photo is whole
    assert ("RandomResizedCrop" in str(draw)) is whole


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_the_checkpoint_remembers_and_eval_goes_by_it(
    make_config: Make, fit: str, tmp_path: Path
) -> None:
    summary = train(make_config(data={"fit": fit}, runtime=FIXED))
    best = Path(summary.run_dir) / "best.pt"
    state, metadata = load_checkpoint(best)
    assert metadata.preprocessing.fit == fit
    recorded = metadata.metrics["loss"]
    assert evaluate_checkpoint(best).loss == recorded
    other = metadata.preprocessing.model_copy(update={"fit": "crop"})
    save_checkpoint(best, state, metadata.model_copy(update={"preprocessing": other}))
    assert evaluate_checkpoint(best).loss != recorded


def test_a_checkpoint_from_before_fit_was_there_is_cropped(make_config: Make) -> None:
    best = Path(train(make_config(runtime=FIXED)).run_dir) / "best.pt"
    content = torch.load(best, weights_only=True)
    metadata = json.loads(content["metadata"])
    del metadata["preprocessing"]["fit"], metadata["config"]["data"]["fit"]
    metadata["format"] = 1
    torch.save(content | {"metadata": json.dumps(metadata)}, best)
    assert load_checkpoint(best)[1].preprocessing.fit == "crop"
    assert evaluate_checkpoint(best).loss == metadata["metrics"]["loss"]


def test_another_fit_is_another_key_of_the_cache(make_config: Make, own_cache: Path) -> None:
    for fit in ("crop", "pad", "stretch"):
        train(make_config(data={"fit": fit}, runtime=FIXED, output_dir=f"{own_cache}/{fit}"))
    assert len(list(own_cache.glob("finetune/features/*/meta.json"))) == 3


def test_a_resolved_config_takes_another_fit(make_config: Make, tmp_path: Path) -> None:
    """What was resolved must not stand in the way: data.fit alone decides."""
    saved = Path(train(make_config(data={"fit": "pad"}, runtime=FIXED)).run_dir) / "config.yaml"
    again = [f"output_dir={tmp_path}/again", "data.fit=stretch"]
    summary = train(load_config(saved, again))
    _, metadata = load_checkpoint(Path(summary.run_dir) / "best.pt")
    assert metadata.preprocessing.fit == "stretch"
