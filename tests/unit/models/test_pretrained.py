"""Tests of loading pretrained weights: accepted formats, and errors on mismatch."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers.messages import fails
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from finetune.config.schema import ModelConfig
from finetune.models.build import build_untrained, resolve_model
from finetune.models.pretrained import load_pretrained
from finetune.models.weight_files import read_states

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def pretrained() -> State:
    torch.manual_seed(1)
    return models.shufflenet_v2_x0_5().state_dict()


def loaded(weights: Path | str, name: str = "shufflenet_v2_x0_5") -> nn.Module:
    spec = resolve_model(ModelConfig(name=name, weights=str(weights)))
    model = build_untrained(spec, 3, seed=0)
    load_pretrained(model, spec)
    return model


def without_head(state: State) -> State:
    return {key: value for key, value in state.items() if not key.startswith("fc.")}


def prefixed(state: State) -> State:
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda s: s, id="bare"),
        pytest.param(lambda s: {"state_dict": s, "epoch": 3}, id="state_dict"),
        pytest.param(lambda s: {"model": s}, id="model"),
        pytest.param(prefixed, id="module prefix"),
        pytest.param(lambda s: {"state_dict": prefixed(s)}, id="both"),
        pytest.param(without_head, id="no head"),
    ],
)
def test_a_torch_file_fills_the_backbone_and_leaves_the_head(
    wrap: Callable[[State], object], pretrained: State, tmp_path: Path
) -> None:
    torch.save(wrap(pretrained), tmp_path / "w.pth")
    model = loaded(tmp_path / "w.pth")
    assert torch.equal(model.conv5[0].weight, pretrained["conv5.0.weight"])
    assert torch.equal(model.conv5[1].running_mean, pretrained["conv5.1.running_mean"])
    assert model.fc.weight.shape == (3, 1024)


def test_a_safetensors_file_is_read(pretrained: State, tmp_path: Path) -> None:
    save_file(without_head(pretrained), tmp_path / "w.safetensors")
    model = loaded(tmp_path / "w.safetensors")
    assert torch.equal(model.conv5[0].weight, pretrained["conv5.0.weight"])


def test_files_without_batch_counters_are_read(pretrained: State, tmp_path: Path) -> None:
    old = {k: v for k, v in pretrained.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "w.pth")
    loaded(tmp_path / "w.pth")


def test_the_bundled_weights_are_of_the_bundled_backbone() -> None:
    model = loaded("bundled")
    assert bool(model.conv1[1].num_batches_tracked > 0)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda s: s.pop("conv5.0.weight"), "conv5.0.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra"),
        (lambda s: s.update({"conv5.0.weight": torch.zeros(2)}), "conv5.0.weight"),
        (
            lambda s: s.update({"conv5.1.bias": torch.full((1024,), float("nan"))}),
            "conv5.1.bias",
        ),
    ],
)
def test_a_misfit_is_named(
    change: Callable[[State], object], name: str, pretrained: State, tmp_path: Path
) -> None:
    state = dict(pretrained)
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with fails("model.weights_do_not_fit", key="model.weights") as caught:
        loaded(tmp_path / "w.pth")
    assert name in caught.value.what


def test_weights_of_another_architecture_are_refused(pretrained: State, tmp_path: Path) -> None:
    torch.save(pretrained, tmp_path / "w.pth")
    with fails("model.weights_do_not_fit", key="model.weights"):
        loaded(tmp_path / "w.pth", name="resnet18")


def test_a_pickled_model_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "w.pth")
    with fails("model.weights_unsafe", key="model.weights"):
        loaded(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "model.weights_damaged"),
        (b"<html>", "model.weights_unsafe"),
        (pickle.dumps([1]), "model.weights_unsafe"),
    ],
    ids=["empty", "page", "pickle"],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with fails(kind, key="model.weights"):
        loaded(tmp_path / "w.pth")


def test_a_missing_file_offers_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "mobilenet.pth").touch()
    with fails("model.weights_not_found", key="model.weights"):
        read_states(tmp_path / "mobilnet.pth")


def test_an_unknown_entry_is_refused_with_those_there_are() -> None:
    with fails("model.unknown_weights", key="model.weights"):
        resolve_model(ModelConfig(name="resnet18", weights="IMAGENET1K_V3"))


def test_default_becomes_the_entry_it_stands_for() -> None:
    assert resolve_model(ModelConfig(name="resnet50")).weights == "IMAGENET1K_V2"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's download cache, empty, with no network behind it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_a_failed_download_names_the_file_and_how_to_give_a_path(cache: Path) -> None:
    with fails("model.download_failed", key="model.weights") as caught:
        loaded("DEFAULT", name="resnet18")
    assert "resnet18-f37072fd.pth" in caught.value.what
    assert not list(cache.iterdir())


@pytest.mark.usefixtures("cache")
def test_a_failed_download_without_a_home_names_no_temporary_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = "~/.cache/torch/hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: folder)

    def set_dir(new: str) -> None:
        nonlocal folder
        folder = new

    monkeypatch.setattr(torch.hub, "set_dir", set_dir)
    with fails("model.download_failed", key="model.weights") as caught:
        loaded("DEFAULT", name="resnet18")
    assert tempfile.gettempdir() not in str(caught.value)
    assert folder == "~/.cache/torch/hub"


def test_a_tampered_cache_file_is_refused_unread(cache: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "canary",)

    torch.save(Payload(), cache / "resnet18-f37072fd.pth")
    with fails("model.weights_damaged"):
        loaded("DEFAULT", name="resnet18")
    assert not (tmp_path / "canary").exists()


def test_a_cached_download_is_used_once_its_hash_agrees(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.models.pretrained._hash_agrees", lambda _: True)
    state = models.densenet121().state_dict()
    old_names = {
        key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(old_names, cache / "densenet121-a639ec97.pth")
    model = loaded("DEFAULT", name="densenet121")
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(model.state_dict()[key], state[key])


def test_bundled_weights_are_refused_for_another_backbone() -> None:
    with pytest.raises(ValueError, match="belong to shufflenet_v2_x0_5, not to resnet18"):
        ModelConfig(name="resnet18", weights="bundled")


def test_aux_heads_are_refused_where_there_are_none() -> None:
    with fails("config.no_effect", key="model.aux_heads"):
        resolve_model(ModelConfig(name="resnet18", aux_heads=True))


def test_flags_that_the_weights_imply_are_set() -> None:
    flags = resolve_model(ModelConfig(name="inception_v3", weights="x.pth")).build_flags
    assert flags == {"transform_input": True, "aux_logits": False, "init_weights": False}
    untrained = resolve_model(ModelConfig(name="inception_v3", weights="none")).build_flags
    assert untrained["transform_input"] is False
    swag = ModelConfig(name="vit_b_16", weights="IMAGENET1K_SWAG_E2E_V1")
    assert resolve_model(swag).build_flags == {"image_size": 384}


def test_googlenet_weights_with_untrained_aux_heads_load_without_them(tmp_path: Path) -> None:
    state = models.googlenet(init_weights=False).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model = loaded(tmp_path / "w.pth", name="googlenet")
    assert model.aux1 is None
    assert torch.equal(model.conv1.conv.weight, state["conv1.conv.weight"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_mnasnet_weights_load_with_and_without_module_versions(tmp_path: Path, suffix: str) -> None:
    state = models.mnasnet0_5().state_dict()
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(dict(state), path)
    model = loaded(path, name="mnasnet0_5")
    assert torch.equal(model.layers[0].weight, state["layers.0.weight"])
