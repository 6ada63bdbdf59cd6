"""Tests of ``finetune embed`` and `Predictor.embed`: agreement with torchvision, columns, reuse."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import check_message, fails
from helpers.photos import draw_photos
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms._presets import ImageClassification
from torchvision.transforms.functional import pil_to_tensor

import finetune
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.cli import app, support
from finetune.commands.embed import embed
from finetune.commands.predict import predict
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.data.loading import decoding
from finetune.models.build import build_untrained, resolve_model
from finetune.models.pretrained import load_pretrained
from finetune.report.embeddings import open_writer
from finetune.results.evaluation import EmbedResult

Make = Callable[..., Config]
FORMAT = {
    **{"precision": "float32", "memory_format": "contiguous"},
    **{"live_precision": "float32", "live_memory_format": "contiguous"},
}
LAST_BLOCK = {"patterns": ["*", "!conv5.*"]}
PRESET = ImageClassification(crop_size=32, resize_size=36)


@pytest.fixture
def make(make_config: Make) -> Make:
    def make(**sections: object) -> Config:
        settings = {
            "model": {"weights": "bundled"},  # random ones give values near zero
            "runtime": FORMAT,
            "train": {"epochs": 1},
            "features": {"cache": "disk"},
        }
        return make_config(**{**settings, **sections})

    return make


@pytest.fixture
def run(make: Make) -> str:
    """The folder of a run whose last block trained."""
    config = make(freeze=LAST_BLOCK)
    train(config)
    return config.output_dir


def written(source: str | Config, paths: list[str], output: Path) -> EmbedResult:
    return embed(source, paths, writer=open_writer(output, overwrite=False))


def arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def before_head(model: nn.Module, head: str, paths: list[str]) -> NDArray[np.float32]:
    """What a plain torchvision network passes on to its head."""
    parent, _, name = head.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    rows: list[Tensor] = []
    with torch.no_grad():
        for path in paths:
            with Image.open(path) as image:
                rows.append(model.eval()(PRESET(pil_to_tensor(image))[None]))
    return torch.cat(rows).numpy()


def plain(run: str, name: str) -> nn.Module:
    model: nn.Module = models.get_model(name, num_classes=2)
    model.load_state_dict(load_checkpoint(Path(run) / "best.pt")[0])
    return model


@pytest.mark.parametrize("freeze", [{}, LAST_BLOCK, {"patterns": []}], ids=["head", "last", "all"])
def test_embeddings_are_those_of_torchvision(make: Make, photos: Path, freeze: object) -> None:
    config = make(freeze=freeze)
    train(config)
    paths = sorted(map(str, (photos / "val").rglob("*.png")))
    found = finetune.load(config.output_dir).embed(paths)
    expected = before_head(plain(config.output_dir, "shufflenet_v2_x0_5"), "fc", paths)
    assert found.dtype == np.float32
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_a_map_is_pooled(make: Make, photos: Path) -> None:
    config = make(model={"name": "squeezenet1_1"})
    train(config)
    paths = sorted(map(str, (photos / "val" / "class_0").glob("*.png")))
    model = plain(config.output_dir, "squeezenet1_1")  # its own pooling follows the head
    expected = before_head(model, "classifier.1", paths)
    relu = model.get_submodule("classifier.2")
    assert isinstance(relu, nn.ReLU)  # without effect: the map is the output of another one
    found = finetune.load(config.output_dir).embed(paths)
    assert found.shape == (5, 512)
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "trains",
    [
        {"recipe": "linear_probe"},
        {"recipe": "head_then_all"},
        {"stages": [{"epochs": 1}]},
        {"recipe": "auto", "train": {"epochs": "auto", "budget": "1m"}},
    ],
    ids=["probe", "two stages", "stages", "auto"],
)
def test_recipes_and_stages_of_a_config_do_not_matter(
    make: Make, photos: Path, tmp_path: Path, trains: dict[str, Any]
) -> None:
    expected, found = tmp_path / "e.npz", tmp_path / "f.npz"
    plain_values = make().plain()
    written(make(), [str(photos / "val")], expected)
    for key in ("freeze", "optimizer", "schedule"):
        plain_values.pop(key, None)
    config = Config.model_validate(plain_values | trains)
    written(config, [str(photos / "val")], found)
    with np.load(expected) as one, np.load(found) as other:
        assert np.array_equal(one["embedding"], other["embedding"])


def test_a_config_gives_the_pretrained_network_whatever_it_trains(
    make: Make, photos: Path, tmp_path: Path
) -> None:
    config = make(freeze=LAST_BLOCK)
    result = written(config, [str(photos / "val")], tmp_path / "e.npz")
    found = arrays(tmp_path / "e.npz")
    spec = resolve_model(config.model)
    model = build_untrained(spec, 2, seed=0)
    load_pretrained(model, spec)
    expected = before_head(model, "fc", found["path"].tolist())
    np.testing.assert_allclose(found["embedding"], expected, rtol=0, atol=1e-4)
    assert "predicted" not in found
    assert result.checkpoint is None
    assert set(zip(found["label"], found["split"], strict=True)) == {
        ("class_0", "val"),
        ("class_1", "val"),
    }
    head = make(output_dir=str(tmp_path / "head"))
    assert head.freeze.patterns == ("*",)
    train(head)
    again = written(head.output_dir, [str(photos / "val")], tmp_path / "run.npz")
    assert again.features is not None
    assert again.features.computed == 0  # the rows are those of a run that trains the head


def test_rows_are_in_the_order_of_the_paths_with_what_is_known_of_each(
    run: str, photos: Path, tmp_path: Path
) -> None:
    others = draw_photos(tmp_path / "others", count=1)
    (others / "class_0").rename(others / "unheard of")
    (tmp_path / "link").symlink_to(photos / "train")
    paths = [
        str(photos / "val" / "class_1" / "3.png"),
        str(tmp_path / "link" / "class_0" / "2.png"),
        str(others / "unheard of" / "0.png"),
        str(others / "class_1" / "0.png"),
    ]
    result = written(run, paths, tmp_path / "e.npz")
    found = arrays(tmp_path / "e.npz")
    assert list(found) == ["path", "label", "split", "predicted", "embedding"]
    assert found["path"].tolist() == paths
    assert found["label"].tolist() == ["class_1", "class_0", "", "class_1"]
    assert found["split"].tolist() == ["val", "train", "", ""]
    assert (result.num_images, result.num_labelled) == (4, 3)
    model = finetune.load(run)
    assert found["predicted"].tolist() == [answer.label for answer in model.predict(paths)]
    assert np.array_equal(found["embedding"], model.embed(paths))


def test_csv_holds_the_same_numbers_as_npz(run: str, photos: Path, tmp_path: Path) -> None:
    written(run, [str(photos / "val")], tmp_path / "e.npz")
    written(run, [str(photos / "val")], tmp_path / "e.csv")
    header, *rows = csv.reader((tmp_path / "e.csv").read_text().splitlines())
    found = arrays(tmp_path / "e.npz")
    assert header[:5] == ["path", "label", "split", "predicted", "embedding_0"]
    for at, name in enumerate(header[:4]):
        assert [row[at] for row in rows] == found[name].tolist()
    numbers = np.array([row[4:] for row in rows]).astype(np.float32)
    assert np.array_equal(numbers, found["embedding"])


def test_parquet_holds_the_same_columns(run: str, photos: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    written(run, [str(photos / "val")], tmp_path / "e.npz")
    written(run, [str(photos / "val")], tmp_path / "e.parquet")
    columns = parquet.read_table(tmp_path / "e.parquet").to_pydict()
    found = arrays(tmp_path / "e.npz")
    assert list(columns) == list(found)
    assert all(columns[name] == found[name].tolist() for name in found)


def test_what_training_and_predict_have_computed_is_reused(
    run: str, photos: Path, tmp_path: Path
) -> None:
    others = draw_photos(tmp_path / "others", count=2)
    paths = [str(photos / "val"), str(others)]
    counted = []
    for name in ("first.npz", "again.npz"):
        features = written(run, paths, tmp_path / name).features
        assert features is not None
        counted.append((features.computed, features.reused))
    assert counted == [(4, 10), (0, 14)]
    assert np.array_equal(
        arrays(tmp_path / "first.npz")["embedding"], arrays(tmp_path / "again.npz")["embedding"]
    )
    predicted = predict(run, paths, show=lambda *_: None)
    assert predicted.features is not None
    assert predicted.features.computed == 0


def test_unreadable_images_are_left_out_and_named(run: str, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    whole = [str(photos / "val" / f"class_{at}" / "0.png") for at in (1, 0)]
    result = written(run, [whole[0], str(broken), whole[1]], tmp_path / "e.npz")
    found = arrays(tmp_path / "e.npz")
    assert found["path"].tolist() == whole
    assert np.array_equal(found["embedding"], finetune.load(run).embed(whole))
    assert [path for path, _ in result.unreadable] == [str(broken)]
    with fails("data.undecodable", path="broken.png"):
        written(run, [str(broken)], tmp_path / "none.npz")
    assert not (tmp_path / "none.npz").exists()
    with fails("data.undecodable", path="broken.png"):
        finetune.load(run).embed([whole[0], broken])


def test_python_takes_one_image_or_none(run: str, photos: Path) -> None:
    model = finetune.load(run)
    path = photos / "val" / "class_0" / "0.png"
    assert model.embed(path).shape == (1, 1024)
    pixels = decoding.read_photo(path)
    np.testing.assert_allclose(model.embed([pixels]), model.embed(path), rtol=0, atol=1e-5)
    assert model.embed([]).shape == (0, 1024)


def test_a_run_whose_data_is_gone_still_embeds(
    run: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos.rename(tmp_path / "moved")
    written(run, [str(tmp_path / "moved" / "val")], tmp_path / "e.npz")
    found = arrays(tmp_path / "e.npz")
    assert found["label"].tolist() == ["class_0"] * 5 + ["class_1"] * 5
    assert set(found["split"].tolist()) == {""}


def test_wrong_outputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.npz"
    there.write_text("mine")
    with fails("output.exists", path=there):
        open_writer(there, overwrite=False)
    open_writer(there, overwrite=True)
    with fails("config.invalid_value", key="--output"):
        open_writer(tmp_path / "e.parqet", overwrite=False)
    with fails("output.unwritable", path="e.npz"):
        open_writer(tmp_path / "nowhere" / "e.npz", overwrite=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with fails("config.missing_package"):
        open_writer(tmp_path / "e.parquet", overwrite=False)


def test_without_photos_nothing_is_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "best.pt").touch()
    with fails("data.no_images", source="embed"):
        written(str(tmp_path), [str(tmp_path / "empty")], tmp_path / "e.npz")


def test_the_command_prints_one_document(
    run: str,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(support, "debug_is_on", False)
    listed = "\n".join(str(photos / "val" / "class_1" / f"{at}.png") for at in (2, 1))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    output = str(tmp_path / "e.npz")
    arguments = ["finetune", "embed", run, "-", "--output", output, "--json"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert app._run() == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert (document["num_images"], document["dimensions"]) == (2, 1024)
    assert document["files"] == [output]
    assert set(document["features"]) == {"computed", "reused", "seconds"}
    assert "features: 0 computed, 2 reused" in captured.err
    assert arrays(Path(output))["path"].tolist() == listed.splitlines()
    assert app._run() == 6  # it is there now


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "photos", "--set", "seed=1"], ["run", "photos"]]
)
def test_a_wrong_command_line_is_refused_without_torch(
    arguments: list[str], tmp_path: Path
) -> None:
    script = (
        "import sys; from finetune.cli import app; code = app._run();"
        "print('torch' in sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "embed", *arguments, "--output", str(tmp_path / "e.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False")
    check_message(done.stderr)
