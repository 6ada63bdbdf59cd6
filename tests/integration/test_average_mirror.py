"""Tests of ``model.average_mirror``: the mean of the logits of an image and its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cache import new_cache
from helpers.messages import fails
from helpers.photos import draw_photos
from torch import Tensor

import finetune
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.evaluate import EvalOptions, compute
from finetune.commands.export import export
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.data.loading.decoding import read_photo
from finetune.data.loading.transforms import build_fit, normalise
from finetune.models.build import rebuild

Make = Callable[..., Config]
SMALL = {
    "name": "shufflenet_v2_x0_5",
    "weights": "none",
    "preprocessing": {"resize": 36, "crop": 32},
    "average_mirror": True,
}
FIXED = {"precision": "float32", "memory_format": "contiguous"}


def make_run(make_config: Make, **sections: Any) -> Config:
    return make_config(model=SMALL, runtime=FIXED, **sections)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The folder of a run with an averaging head; its cache stays in use."""
    folder = tmp_path_factory.mktemp("mirror")
    draw_photos(folder / "photos" / "train", count=4)
    draw_photos(folder / "photos" / "val", count=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", new_cache(folder / "cache"))
        values = {
            "model": SMALL,
            "data": {"root": str(folder / "photos"), "batch_size": 8, "workers": 0},
            "train": {"epochs": 2},
            "runtime": FIXED,
            "output_dir": str(folder / "run"),
        }
        train(Config.model_validate(values))
        yield str(folder / "run")


def expected_logits(checkpoint: Path, paths: tuple[Path, ...]) -> Tensor:
    """The mean of the whole network's logits, by plain torch."""
    state, metadata = load_checkpoint(checkpoint)
    network = rebuild(metadata.model_name, len(metadata.class_names), metadata.build_flags).eval()
    network.load_state_dict(state)
    transform = build_fit(metadata.preprocessing)
    pixels = torch.stack([transform(read_photo(path, None)) for path in paths])
    images = normalise(pixels, metadata.preprocessing)
    with torch.no_grad():
        return (network(images) + network(images.flip(3))) / 2


@pytest.mark.parametrize(
    "sections",
    [
        {"features": {"cache": "disk"}},
        {"features": {"cache": "memory"}},
        {"features": {"cache": "off"}},
        {"freeze": {"patterns": []}},
    ],
    ids=["disk", "memory", "off", "everything trains"],
)
def test_training_eval_and_predict_average_both_logits(
    make_config: Make, sections: dict[str, Any]
) -> None:
    summary = train(make_run(make_config, **sections))
    best = Path(summary.run_dir) / "best.pt"
    evaluated = compute(best, EvalOptions(embeddings=True), reporter=SilentReporter())
    expected = expected_logits(best, evaluated.images.paths)
    assert torch.allclose(evaluated.logits, expected, atol=1e-4)
    assert summary.val is not None
    assert evaluated.result.loss == pytest.approx(summary.val.loss, abs=1e-6)
    predictor = finetune.load(summary.run_dir)
    paths = [str(path) for path in evaluated.images.paths]
    logits = torch.cat([logits for _, logits, _ in predictor.logits(paths)])
    assert torch.allclose(logits, expected, atol=1e-4)
    assert evaluated.embeddings is not None
    assert torch.allclose(torch.from_numpy(predictor.embed(paths)), evaluated.embeddings, atol=1e-4)


def test_the_logits_of_a_mirrored_photo_are_the_same(run: str) -> None:
    predictor = finetune.load(run)
    pixels = torch.randint(0, 256, (3, 36, 36), dtype=torch.uint8)
    [(_, both, _)] = predictor.logits([pixels, pixels.flip(2)])
    assert torch.allclose(both[0], both[1], atol=1e-5)


def test_an_unreadable_photo_is_left_out_of_both_views(run: str, tmp_path: Path) -> None:
    predictor = finetune.load(run)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    pixels = torch.zeros(3, 36, 36, dtype=torch.uint8)
    [(positions, logits, unreadable)] = predictor.logits([pixels, str(broken), pixels])
    assert (positions, len(logits), [at for at, _ in unreadable]) == ([0, 2], 2, [1])


@pytest.mark.parametrize("file_format", ["onnx", "exported-program", "safetensors"])
def test_an_export_averages_too(run: str, file_format: str) -> None:
    pytest.importorskip("onnxruntime")
    result = export(run, file_format=file_format)  # raises if its outputs differ
    [readme] = [path for path in map(Path, result.files) if path.name == "README.md"]
    assert "its mirror image" in readme.read_text()
    # The graphs do it themselves; with tensors alone, the code of the README does.
    assert ("images.flip(3)" in readme.read_text()) is (file_format == "safetensors")


def test_mirror_images_that_training_excludes_are_not_averaged(make_config: Make) -> None:
    with fails("config.conflict", key="model.average_mirror"):
        train(make_run(make_config, augment={"policy": "none"}))
