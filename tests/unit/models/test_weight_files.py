"""Tests of weight files from other tools: containers, prefixes, input sizes, heads."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import fails
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import models, transforms

from finetune.commands.dry_run import dry_run
from finetune.config.schema import Config, ModelConfig, PreprocessingConfig
from finetune.core.reporter import SilentReporter
from finetune.models.build import build_skeleton, build_untrained, resolve_model
from finetune.models.known_weights import preprocessing_of
from finetune.models.pretrained import load_pretrained
from finetune.models.weight_files import StateIn, best_fit

State = dict[str, Tensor]
NAME = "shufflenet_v2_x0_5"
FIXED = {
    "precision": "float32",
    "live_precision": "float32",
    "memory_format": "contiguous",
    "live_memory_format": "contiguous",
    "compile": "off",
}
KEY = "conv5.0.weight"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(1)
    return models.shufflenet_v2_x0_5()


@pytest.fixture(scope="module")
def state(network: nn.Module) -> State:
    return network.state_dict()


def loaded(
    path: Path, name: str = NAME, leave_out: tuple[str, ...] | None = None
) -> tuple[State, str]:
    """The network's tensors, and what was said."""
    spec = resolve_model(ModelConfig(name=name, weights=str(path), leave_out=leave_out))
    model = build_untrained(spec, 3, seed=0)
    return model.state_dict(), "\n".join(load_pretrained(model, spec))


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def halved(state: State) -> State:
    return {k: v / 2 if v.is_floating_point() else v for k, v in state.items()}


# Containers


@pytest.mark.parametrize(
    "place",
    [
        *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
        *("params", "params_ema", "model_ema", "ema", "checkpoint.model", "my_network"),
    ],
)
def test_the_state_dict_is_found_in_its_container(place: str, state: State, tmp_path: Path) -> None:
    content: Any = state
    for key in reversed(place.split(".")):
        content = {"epoch": 3, key: content, "best": torch.tensor(0.5)}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({**content, "optimizer": optimizer}, tmp_path / "w.pth")
    tensors, said = loaded(tmp_path / "w.pth")
    assert torch.equal(tensors[KEY], state[KEY])
    assert f"{place!r}" in said


@pytest.mark.parametrize(
    ("plain", "average"),
    [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("student", "teacher")],
)
def test_a_moving_average_is_taken_before_the_weights_it_averages(
    plain: str, average: str, state: State, tmp_path: Path
) -> None:
    for content in ({plain: halved(state), average: state}, {average: state, plain: halved(state)}):
        torch.save(content, tmp_path / "w.pth")
        tensors, said = loaded(tmp_path / "w.pth")
        assert torch.equal(tensors[KEY], state[KEY])
        assert "a moving average" in said
        assert repr(plain) in said


def test_an_average_that_does_not_fit_is_passed_by(state: State, tmp_path: Path) -> None:
    torch.save({"model": state, "model_ema": {"x": torch.zeros(1)}}, tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth")[0][KEY], state[KEY])


# Prefixes


@pytest.mark.parametrize(
    "prefix",
    [
        *("model.", "module.", "backbone.", "net.", "_orig_mod.", "network.model."),
        *("module._orig_mod.", "model._orig_mod.", "_orig_mod.module.", "model.module._orig_mod."),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_prefix_that_all_names_share_is_removed(
    prefix: str, suffix: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(prefixed(state, prefix), path)
    tensors, said = loaded(path)
    assert torch.equal(tensors[KEY], state[KEY])
    first = prefix.removeprefix("_orig_mod.")
    assert (first.replace("_orig_mod.", "") or "_orig_mod") in said


def test_compiled_modules_inside_are_seen_through(state: State, tmp_path: Path) -> None:
    inside = {key.replace("stage2.", "stage2._orig_mod."): v for key, v in state.items()}
    torch.save({"state_dict": prefixed(inside, "model.")}, tmp_path / "w.pth")
    tensors, said = loaded(tmp_path / "w.pth")
    assert all(torch.equal(tensors[k], v) for k, v in state.items() if not k.startswith("fc."))
    assert "stage2._orig_mod" in said


def test_torchs_averaged_model_is_read(network: nn.Module, tmp_path: Path) -> None:
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for content in (average.state_dict(), {"model_ema": average.state_dict()}):
        torch.save(content, tmp_path / "w.pth")
        assert torch.equal(loaded(tmp_path / "w.pth")[0][KEY], network.state_dict()[KEY])


def test_a_prefix_without_the_head_is_removed(state: State, tmp_path: Path) -> None:
    body = {key: value for key, value in state.items() if not key.startswith("fc.")}
    torch.save(prefixed(body, "backbone."), tmp_path / "w.pth")
    assert torch.equal(loaded(tmp_path / "w.pth")[0][KEY], state[KEY])


def test_a_name_that_the_network_shares_with_all_is_kept(tmp_path: Path) -> None:
    state = {k: v for k, v in models.squeezenet1_1().state_dict().items() if "features" in k}
    torch.save(state, tmp_path / "w.pth")
    tensors, said = loaded(tmp_path / "w.pth", "squeezenet1_1")
    assert torch.equal(tensors["features.0.weight"], state["features.0.weight"])
    assert said == ""


def test_a_misfit_is_told_without_the_prefix(state: State, tmp_path: Path) -> None:
    changed = {key: value for key, value in state.items() if key != KEY}
    torch.save(prefixed(changed, "model."), tmp_path / "w.pth")
    with fails("model.weights_do_not_fit", key="model.weights"):
        loaded(tmp_path / "w.pth")


def test_module_versions_lose_the_prefix_too(tmp_path: Path) -> None:
    state = nn.ModuleDict({"model": models.mnasnet0_5()}).state_dict()
    torch.save(state, tmp_path / "w.pth")
    tensors, _ = loaded(tmp_path / "w.pth", "mnasnet0_5")
    assert torch.equal(tensors["layers.0.weight"], state["model.layers.0.weight"])


def test_each_prefix_that_is_removed_is_noted() -> None:
    own = {f"{part}{n}": torch.zeros(1) for part in "ab" for n in range(3)}
    state = {**prefixed({k: own[k] for k in ("a0", "a1", "b0", "b1")}, "outer.net.")}
    state |= prefixed({k: own[k] for k in ("a2", "b2")}, "net.")
    fitted = best_fit("w", [StateIn((), state)], own, ())
    assert fitted.tensors.keys() == own.keys()
    assert fitted.notes == (
        "the prefix 'outer.net.' of 4 names is removed",
        "the prefix 'net.' of 2 names is removed",
    )


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("model.", "ema_model."),
        ("net.", "net_ema.module."),
        ("student.", "teacher.model."),
    ],
)
def test_an_average_beside_the_weights_in_one_state_dict_is_taken(plain: str, average: str) -> None:
    own = {f"layer{n}.weight": torch.zeros(1) for n in range(3)}
    ones = {key: torch.ones(1) for key in own}
    counter = f"{average.partition('.')[0]}.n_averaged"
    content = {**prefixed(own, plain), **prefixed(ones, average), counter: torch.tensor(3)}
    fitted = best_fit("w", [StateIn((), content)], own, ())
    assert all(torch.equal(fitted.tensors[key], ones[key]) for key in own)
    first = plain.partition(".")[0]
    assert "a moving average, and not those under " + repr(first) in fitted.notes[0]
    # The pattern of a user who wants the others.
    fitted = best_fit("w", [StateIn((), content)], own, (f"{average.partition('.')[0]}.*",))
    assert all(torch.equal(fitted.tensors[key], own[key]) for key in own)
    assert fitted.idle == ()


# What is saved beside a state dict


class Settings:
    """What a script of one's own might save."""

    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["canary"]).touch()


class Called:
    """A payload: what is read calls a function."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


BESIDE: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, model="resnet50", nested={"a": [1]}, items=1),
    "a path": Path("runs/x"),
    "a number of numpy": np.float64(0.9),
    "an array of numpy": np.zeros(3),
    "a date": datetime.datetime(2024, 5, 1, tzinfo=datetime.timezone.utc),
    "a defaultdict": defaultdict(list, {"a": [1]}),
    "a deque": deque([1], 3),
    "a SimpleNamespace": SimpleNamespace(lr=0.1),
    "a slice": slice(1, 2),
    "a frozenset": frozenset({1}),
    "a random state of numpy": np.random.RandomState(0),
    "how torchvision interpolates": transforms.InterpolationMode.BILINEAR,
    "a loss": nn.CrossEntropyLoss(),
    "a generator of numpy": np.random.default_rng(0),
    "transforms of torchvision": transforms.Compose([transforms.Resize(4)]),
}
MODULES = ("a loss", "transforms of torchvision")


@pytest.mark.parametrize("what", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_plain_objects_beside_a_state_dict_are_passed_over(
    what: str, zipped: bool, state: State, tmp_path: Path
) -> None:
    if what in MODULES and not zipped:
        pytest.skip("torch's old form of file holds the source code of modules, which is refused")
    content = {"model": state, "args": BESIDE[what], "more": {"deep": [BESIDE[what]]}}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(loaded(tmp_path / "w.pth")[0][KEY], state[KEY])


@pytest.mark.parametrize(
    "module",
    [
        *("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
        *("lightning_fabric.utilities.data", "lightning.fabric.utilities.data"),
    ],
)
def test_a_checkpoint_of_lightning_is_read(
    module: str, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type("AttributeDict", (dict,), {"__module__": module})
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[module], "AttributeDict", kind, raising=False)
    content = {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(state, "model."),
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": kind(lr=0.1),
    }
    torch.save(content, tmp_path / "w.ckpt")
    for end in range(1, len(parts) + 1):
        monkeypatch.delitem(sys.modules, ".".join(parts[:end]))
    assert torch.equal(loaded(tmp_path / "w.ckpt")[0][KEY], state[KEY])


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_passed_over_run_no_code_of_their_own(
    zipped: bool, state: State, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = {"model": state, "settings": Settings(canary)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert torch.equal(loaded(tmp_path / "w.pth")[0][KEY], state[KEY])
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_what_calls_a_function_beside_a_state_dict_is_refused(
    zipped: bool, state: State, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    content = {"model": state, "args": Called(canary)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with fails("model.weights_unsafe", key="model.weights"):
        loaded(tmp_path / "w.pth")
    assert not canary.exists()


class Names(list[str]):
    """A list of one's own, which torch's reader cannot fill."""


@pytest.mark.parametrize("zipped", [True, False])
def test_the_class_that_is_refused_is_named(zipped: bool, state: State, tmp_path: Path) -> None:
    content = {"model": state, "names": Names(["a"])}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with fails("model.weights_unsafe", key="model.weights"):
        loaded(tmp_path / "w.pth")


def test_nothing_stays_allowed_after_a_file_was_read(state: State, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": state, "args": argparse.Namespace()}, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_pickled_model_under_a_key_is_told_as_one(network: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": network, "epoch": 1}, tmp_path / "w.pth")
    with fails("model.weights_unsafe", key="model.weights"):
        loaded(tmp_path / "w.pth")


# A head of another tool


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mobilenet_v3_small with one layer where torchvision has four."""
    model = models.mobilenet_v3_small()
    model.classifier = nn.Linear(576, 7)
    path = tmp_path_factory.mktemp("foreign") / "w.pth"
    content = {**prefixed(model.state_dict(), "model."), "criterion.weight": torch.ones(7)}
    torch.save({"state_dict": content}, path)
    return path


def test_a_foreign_head_is_told_with_the_way_to_leave_it_out(state: State, tmp_path: Path) -> None:
    torch.save(
        {**state, "projector.0.weight": torch.ones(2), "queue": torch.ones(2)}, tmp_path / "w"
    )
    with fails("model.weights_do_not_fit", key="model.weights"):
        loaded(tmp_path / "w")


def test_a_head_of_other_modules_can_be_left_out(foreign: Path) -> None:
    with fails("model.weights_do_not_fit", key="model.weights"):
        loaded(foreign, "mobilenet_v3_small")
    with fails("model.weights_do_not_fit", key="model.weights"):
        loaded(foreign, "mobilenet_v3_small", ("criterion.*",))
    tensors, said = loaded(foreign, "mobilenet_v3_small", ("criterion.*", "classifier.*"))
    there = torch.load(foreign, weights_only=True)["state_dict"]
    assert torch.equal(tensors["features.0.0.weight"], there["model.features.0.0.weight"])
    assert "3 tensors are left out" in said


def test_what_is_left_out_may_not_be_frozen_at_random(
    foreign: Path, make_config: Callable[..., Config]
) -> None:
    model = {
        "name": "mobilenet_v3_small",
        "weights": str(foreign),
        "leave_out": ["criterion.*", "classifier.*"],
        "preprocessing": {"resize": 36, "crop": 32},
    }
    with fails("config.frozen_at_random", key="model.leave_out"):
        dry_run(make_config(model=model))
    patterns = ["*", "!classifier.*"]
    dry_run(make_config(model=model, freeze={"patterns": patterns}, runtime=FIXED))


def test_a_pattern_that_leaves_nothing_out_is_refused(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with fails("config.pattern_matches_nothing", key="model.leave_out"):
        loaded(tmp_path / "w.pth", leave_out=("fc.wieght",))
    with pytest.raises(ValueError, match="leave_out: has no effect"):
        ModelConfig(name=NAME, weights="none", leave_out=("fc.*",))


def test_another_architecture_is_told_as_one(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    with fails("model.weights_do_not_fit", key="model.weights"):
        loaded(tmp_path / "w.pth", "squeezenet1_1")


# Names from before


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": prefixed(s, "module.")}])
def test_densenet_files_with_old_names_are_read_by_path(
    wrap: Callable[[State], object], tmp_path: Path
) -> None:
    state = models.densenet121().state_dict()
    old = {
        key.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(wrap(old), tmp_path / "densenet121-a639ec97.pth")
    tensors, _ = loaded(tmp_path / "densenet121-a639ec97.pth", "densenet121")
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(tensors[key], state[key])


def test_vit_files_with_old_names_fit() -> None:
    own = build_skeleton(resolve_model(ModelConfig(name="vit_b_16")), 3).state_dict()
    old = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): value
        for key, value in own.items()
    }
    assert old.keys() != own.keys()
    assert [*best_fit("w", [StateIn((), old)], own, ()).tensors] == [*own]


# Preprocessing


def entries() -> list[Any]:
    found = []
    for name in models.list_models(module=models):
        own = list(models.get_model_weights(name))
        found += [(name, entry) for entry in own if len(own) > 1]
    return found


def preprocessing(name: str, path: Path | str) -> tuple[PreprocessingConfig, str]:
    spec = resolve_model(ModelConfig(name=name, weights=str(path)))
    return spec.preprocessing, spec.note


def test_a_file_named_as_an_entrys_is_prepared_as_that_entry(tmp_path: Path) -> None:
    tried = 0
    for name, entry in entries():
        own = entry.url.rpartition("/")[2]
        digits = own.rpartition("-")[2].removesuffix(".pth")
        for file in (own, f"copy of {own}", f"w-{digits}.pt", f"{name}_{entry.name}.pth"):
            path = tmp_path / file
            torch.save({"x": torch.zeros(1)}, path)
            found, note = preprocessing(name, path)
            assert found == preprocessing_of(entry), file
            assert f"{entry.name} by its name" in note
            tried += 1
    assert tried > 200


def test_a_renamed_file_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (name, entry) in enumerate(entries()):
        digits = entry.url.rpartition("-")[2].removesuffix(".pth")
        path = tmp_path / f"{number}.pth"
        torch.save({"x": torch.zeros(1)}, path)
        monkeypatch.setattr(
            "finetune.models.weight_files.sha256_of", lambda _, d=digits: d + "0" * 56
        )
        found, note = preprocessing(name, path)
        assert found == preprocessing_of(entry)
        assert f"{entry.name} by its SHA-256" in note


def test_content_counts_more_than_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "resnet50-0676ba61.pth")
    monkeypatch.setattr("finetune.models.weight_files.sha256_of", lambda _: "11ad3fa6" + "0" * 56)
    found, _ = preprocessing("resnet50", tmp_path / "resnet50-0676ba61.pth")
    assert found == preprocessing_of(models.ResNet50_Weights.IMAGENET1K_V2)


def test_an_unknown_file_says_what_is_assumed(
    state: State, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    torch.save(state, tmp_path / "w.pth")
    _, note = preprocessing("resnet50", tmp_path / "w.pth")
    assert "resize 256, crop 224, bilinear is assumed" in note
    assert "IMAGENET1K_V1 rather than IMAGENET1K_V2" in note
    said: list[str] = []

    class Told(SilentReporter):
        def say(self, text: str, *, good: bool = False) -> None:
            said.append(text)

    model = {"name": NAME, "weights": str(tmp_path / "w.pth"), "preprocessing": "auto"}
    result = dry_run(make_config(model=model, runtime=FIXED), reporter=Told())
    assert any("is assumed" in note for note in result.notes)
    assert any("is assumed" in text for text in said)


def test_preprocessing_that_is_given_is_not_assumed(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    config = ModelConfig(
        name="resnet50", weights=str(tmp_path / "w.pth"), preprocessing="IMAGENET1K_V2"
    )
    spec = resolve_model(config)
    assert (spec.preprocessing.resize, spec.note) == (232, "")


def vit_file(path: Path, tokens: int, patch: int, prefix: str = "") -> Path:
    """What shows the input size of a vision transformer, and not more."""
    state = {
        f"{prefix}encoder.pos_embedding": torch.zeros(1, tokens, 8),
        f"{prefix}conv_proj.weight": torch.zeros(8, 3, patch, patch),
    }
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "size", "patch", "entry"),
    [
        ("vit_b_16", 384, 16, "IMAGENET1K_SWAG_E2E_V1"),
        ("vit_b_16", 224, 16, "IMAGENET1K_V1"),
        ("vit_l_16", 512, 16, "IMAGENET1K_SWAG_E2E_V1"),
        ("vit_h_14", 518, 14, "IMAGENET1K_SWAG_E2E_V1"),
        ("vit_h_14", 224, 14, "IMAGENET1K_SWAG_LINEAR_V1"),
    ],
)
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_input_size_is_that_of_the_position_embedding(
    name: str, size: int, patch: int, entry: str, file: str, prefix: str, tmp_path: Path
) -> None:
    path = vit_file(tmp_path / file, (size // patch) ** 2 + 1, patch, prefix)
    spec = resolve_model(ModelConfig(name=name, weights=str(path)))
    assert spec.build_flags == {"image_size": size}
    assert spec.preprocessing == preprocessing_of(models.get_model_weights(name)[entry])


def test_a_size_that_no_entry_has_keeps_the_proportion(tmp_path: Path) -> None:
    path = vit_file(tmp_path / "w.pth", (448 // 32) ** 2 + 1, 32)
    spec = resolve_model(ModelConfig(name="vit_b_32", weights=str(path)))
    assert spec.build_flags == {"image_size": 448}
    assert (spec.preprocessing.resize, spec.preprocessing.crop) == (512, 448)


@pytest.mark.parametrize("tokens", [0, 1, 3, 50, 257**2 + 1])
def test_a_position_embedding_that_shows_no_size_is_passed_by(tokens: int, tmp_path: Path) -> None:
    state = {
        "encoder.pos_embedding": torch.zeros(1, tokens, 1),
        "conv_proj.weight": torch.zeros(1, 3, 16, 16),
    }
    torch.save(state, tmp_path / "w.pth")
    spec = resolve_model(ModelConfig(name="vit_b_16", weights=str(tmp_path / "w.pth")))
    assert spec.build_flags == {"image_size": 112 if tokens == 50 else 224}


def test_a_swag_file_is_loaded_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With four times fewer layers and numbers than the real one."""
    small = models.VisionTransformer(384, 16, 1, 2, 32, 64)
    torch.save(small.state_dict(), tmp_path / "vit_b_16_swag-9ac1b537.pth")
    spec = resolve_model(
        ModelConfig(name="vit_b_16", weights=str(tmp_path / "vit_b_16_swag-9ac1b537.pth"))
    )
    assert spec.preprocessing == preprocessing_of(models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1)
    model = models.VisionTransformer(
        spec.build_flags["image_size"], 16, 1, 2, 32, 64, num_classes=3
    )
    load_pretrained(model, spec)
    assert torch.equal(model.encoder.pos_embedding, small.encoder.pos_embedding)


def test_an_export_says_its_own_preprocessing(state: State, tmp_path: Path) -> None:
    own = PreprocessingConfig(resize=80, crop=64, interpolation="bicubic")
    about = {"preprocessing": own.model_dump_json()}
    save_file(OrderedDict(state), tmp_path / "w.safetensors", metadata=about)
    found, note = preprocessing(NAME, tmp_path / "w.safetensors")
    assert found == own
    assert "says" in note
