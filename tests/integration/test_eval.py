"""Tests of ``finetune eval``: output files, errors, and agreement with training."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.messages import fails
from helpers.photos import draw_photos
from helpers.reporters import RecordingReporter

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.compare import compare
from finetune.commands.evaluate import EvalOptions, evaluate_checkpoint
from finetune.commands.report import report
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.report.evaluation import render_comparison, render_eval
from finetune.report.json_text import to_json
from finetune.report.layout import plain
from finetune.report.train import render_train

Make = Callable[..., Config]


@pytest.fixture
def best(make_config: Make) -> Path:
    """The checkpoint of a short run."""
    config = make_config(train={"epochs": 1})
    train(config)
    return Path(config.output_dir) / "best.pt"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_image_has_a_row_and_the_rows_give_the_figures(best: Path, photos: Path) -> None:
    result = evaluate_checkpoint(best)
    rows = table(best.parent / "predictions.csv")
    assert [row["path"] for row in rows[:2]] == ["val/class_0/0.png", "val/class_0/1.png"]
    assert all((photos / row["path"]).is_file() for row in rows)
    right = sum(row["true"] == row["predicted"] for row in rows)
    assert right / len(rows) == result.top1
    loss = sum(float(row["loss"]) for row in rows) / len(rows)
    assert loss == pytest.approx(result.loss, abs=1e-5)
    for row in rows:
        first, second = float(row["probability"]), float(row["probability_2"])
        assert {row["predicted"], row["class_2"]} == {"class_0", "class_1"}
        assert float(row["margin"]) == pytest.approx(first - second, abs=2e-6)
        assert row["class_3"] == row["probability_5"] == ""  # there are two classes


def test_metrics_json_holds_the_result(best: Path) -> None:
    result = evaluate_checkpoint(best)
    saved = json.loads((best.parent / "metrics.json").read_text())
    assert saved["top1"] == result.top1
    assert saved["per_class"][0]["name"] == "class_0"
    assert set(saved["intervals"]["top1"]) == {"low", "high"}
    assert saved["files"] == [str(best.parent / n) for n in ("predictions.csv", "metrics.json")]


def test_output_names_another_folder(best: Path, tmp_path: Path) -> None:
    evaluate_checkpoint(best, output=tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "predictions.csv").is_file()
    assert not (best.parent / "predictions.csv").exists()


def test_an_output_that_cannot_be_made_is_refused(best: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with fails("output.unwritable", key="--output"):
        evaluate_checkpoint(best, output=tmp_path / "file")


def test_an_unknown_class_is_refused_or_left_out(best: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(photos / "val", other)
    shutil.copytree(photos / "val" / "class_1", other / "class_9")
    with fails("data.unknown_class"):
        evaluate_checkpoint(best, EvalOptions(data=str(other)))
    with fails("data.unknown_class"):
        report(str(best), data=str(other))
    with fails("data.unknown_class"):
        compare([str(best), str(best)], data=str(other))
    result = evaluate_checkpoint(best, EvalOptions(data=str(other), ignore_unknown=True))
    assert (result.num_images, result.ignored) == (10, 5)
    assert result.top1 == evaluate_checkpoint(best).top1
    assert "5 images of unknown classes left out" in plain(render_eval(result))


def test_unknown_classes_of_a_table_are_left_out(best: Path, photos: Path, tmp_path: Path) -> None:
    lines = ["path,label"]
    for label in ("class_1", "class_0"):
        lines += [f"{path},{label}" for path in sorted((photos / "val" / label).iterdir())]
    lines.append(f"{photos / 'val' / 'class_0' / '0.png'[:-4]}.png,class_0")
    (tmp_path / "extra.png").write_bytes((photos / "val/class_0/1.png").read_bytes())
    lines.append("extra.png,nobody")
    (tmp_path / "other.csv").write_text("\n".join(lines))
    result = evaluate_checkpoint(
        best, EvalOptions(data=str(tmp_path / "other.csv"), ignore_unknown=True)
    )
    assert (result.num_images, result.ignored) == (10, 1)


def test_data_of_unknown_classes_alone_is_refused(best: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos / "val" / "class_1", tmp_path / "other" / "strangers")
    with fails("data.no_known_class"):
        evaluate_checkpoint(best, EvalOptions(data=str(tmp_path / "other"), ignore_unknown=True))


def test_calibrating_stores_a_temperature_and_keeps_weights_and_figures(best: Path) -> None:
    before = evaluate_checkpoint(best)
    state, metadata = load_checkpoint(best)
    assert metadata.temperature is None
    after = evaluate_checkpoint(best, EvalOptions(calibrate=True))
    stored, calibrated = load_checkpoint(best)
    assert calibrated.temperature == after.calibration.temperature
    assert calibrated.temperature_images is not None
    without = {"temperature": None, "temperature_images": None}
    assert calibrated.model_copy(update=without) == metadata
    assert all(torch.equal(state[name], stored[name]) for name in state)
    assert (after.top1, after.loss) == (before.top1, before.loss)
    assert after.calibration.loss <= before.loss
    again = evaluate_checkpoint(best)
    assert again.calibration.temperature == after.calibration.temperature
    rows = table(best.parent / "predictions.csv")
    assert sum(float(row["loss"]) for row in rows) / len(rows) == pytest.approx(
        again.calibration.loss, abs=1e-5
    )


def test_the_two_losses_of_a_fitted_temperature_are_told_apart(best: Path) -> None:
    assert "without the temperature" not in plain(render_eval(evaluate_checkpoint(best)))
    result = evaluate_checkpoint(best, EvalOptions(calibrate=True))
    assert f"without the temperature; {result.calibration.loss:.4f} with it" in plain(
        render_eval(result)
    )


def test_the_images_that_a_temperature_was_fitted_on_are_known_again(
    best: Path, photos: Path, tmp_path: Path
) -> None:
    evaluate_checkpoint(best, EvalOptions(calibrate=True))
    shutil.copytree(photos, tmp_path / "moved")
    for data in (None, str(photos / "val"), str(tmp_path / "moved")):
        result = evaluate_checkpoint(best, EvalOptions(data=data))
        assert result.calibration.fitted
        assert "fitted on these images" in plain(render_eval(result))
    assert not evaluate_checkpoint(best, EvalOptions(split="train")).calibration.fitted
    (photos / "val" / "class_0" / "0.png").unlink()
    assert not evaluate_checkpoint(best).calibration.fitted


@pytest.mark.parametrize("split", ["train", "test"])
def test_calibrating_on_train_or_test_images_is_refused(best: Path, split: str) -> None:
    with fails("config.conflict", key="--calibrate", source="eval"):
        evaluate_checkpoint(best, EvalOptions(split=split, calibrate=True))


def test_calibrating_on_images_that_are_all_recognised_is_refused(
    best: Path, photos: Path, tmp_path: Path
) -> None:
    evaluate_checkpoint(best, EvalOptions(split="train"))
    for row in table(best.parent / "predictions-train.csv"):
        if row["true"] == row["predicted"]:
            folder = tmp_path / "easy" / row["true"]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(photos / row["path"], folder)
    with fails("data.nothing_to_calibrate", key="--calibrate", source="eval"):
        evaluate_checkpoint(best, EvalOptions(data=str(tmp_path / "easy"), calibrate=True))
    assert load_checkpoint(best)[1].temperature is None


def test_a_checkpoint_from_before_temperatures_still_loads(best: Path) -> None:
    content = torch.load(best, weights_only=True)
    metadata = json.loads(content["metadata"])
    del metadata["temperature"], metadata["temperature_images"]
    metadata["format"] = 1  # of the time before seals, too
    torch.save({"model": content["model"], "metadata": json.dumps(metadata)}, best)
    assert load_checkpoint(best)[1].temperature is None


def test_groups_of_the_data_reach_the_intervals(make_config: Make) -> None:
    config = make_config(train={"epochs": 1}, data={"group_pattern": r"(?:train|val)/class_./\d"})
    train(config)
    result = evaluate_checkpoint(Path(config.output_dir) / "best.pt")
    assert "groups" in result.interval_method


def test_the_text_names_every_class_and_the_confused_ones(best: Path) -> None:
    result = evaluate_checkpoint(best)
    text = plain(render_eval(result))
    assert f"{result.top1:.2%} [" in text
    for row in result.per_class:
        assert f"  {row.name} " in text
    assert "\x1b" not in text
    if result.confused:
        pair = result.confused[0]
        assert re.search(rf"^  {pair.true} +{pair.predicted} +{pair.count} ", text, re.MULTILINE)


def test_rows_of_numbers_stand_on_one_line_of_json(best: Path) -> None:
    result = evaluate_checkpoint(best)
    assert result.confusion is not None
    text = to_json(replace(result, data="[\n  1,\n  2\n]"))
    assert json.loads(text)["confusion"] == [list(row) for row in result.confusion]
    assert json.loads(text)["data"] == "[\n  1,\n  2\n]"
    assert str(list(result.confusion[0])) in text


def test_training_waits_for_no_library_of_evaluation() -> None:
    code = (
        "import sys\n"
        "from finetune.commands import train, evaluate\n"
        "late = ('torchmetrics', 'jinja2', 'matplotlib', 'onnx', 'onnxruntime')\n"
        "print([name for name in late if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_photos_of_both_splits_are_a_caveat_wherever_the_accuracy_is(
    make_config: Make,
) -> None:
    config = make_config(train={"epochs": 2})
    summary = train(config)
    leak = "5 of 10 validation photos are also training photos"
    assert summary.caveats[0].kind == "leak"
    assert summary.caveats[0].text.startswith(leak)
    assert leak in plain(render_train(summary))
    run = Path(config.output_dir)
    assert json.loads((run / "summary.json").read_text())["caveats"][0]["kind"] == "leak"
    result = evaluate_checkpoint(run / "best.pt")
    assert result.caveats[0].text.startswith(f"{leak}: without them, top-1 is ")
    assert leak in plain(render_eval(result))
    assert json.loads((run / "metrics.json").read_text())["caveats"][0]["kind"] == "leak"
    compared = compare([str(run), str(run)])
    assert leak in plain(render_comparison(compared))
    of_training = evaluate_checkpoint(run / "best.pt", EvalOptions(split="train"))
    assert [caveat.kind for caveat in of_training.caveats] == ["trained_on", "few_photos"]


def test_photos_of_another_folder_are_compared_with_the_training_photos(
    best: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos / "train", tmp_path / "other")
    options = EvalOptions(data=str(tmp_path / "other"))
    assert evaluate_checkpoint(best, options).caveats[0].text.startswith("18 of 18 photos are also")
    photos.rename(tmp_path / "moved")
    assert evaluate_checkpoint(best, options).caveats[-1].kind == "unchecked"


def test_the_split_that_a_run_has_drawn_is_evaluated_also_after_photos_were_added_or_moved(
    make_config: Make, photos: Path
) -> None:
    """They change which ones would be held out now; the run's own split is in split.csv."""
    config = make_config(
        data={"root": str(photos / "train"), "val_fraction": 0.3}, train={"epochs": 1}
    )
    train(config)
    best = Path(config.output_dir) / "best.pt"
    before = evaluate_checkpoint(best)
    draw_photos(photos / "train" / "more", count=9)
    for path in (photos / "train" / "more").rglob("*.png"):
        path.rename(photos / "train" / path.parent.name / f"a{path.name}")
    shutil.rmtree(photos / "train" / "more")
    heard = RecordingReporter()
    after = evaluate_checkpoint(best, reporter=heard)
    assert (after.top1, after.loss, after.num_images) == (
        before.top1,
        before.loss,
        before.num_images,
    )
    rows = list(csv.DictReader((best.parent / "split.csv").read_text().splitlines()))
    moved = next(row["path"] for row in rows if row["split"] == "val")
    (photos / "train" / moved).rename(photos / "train" / "class_1" / "moved.png")
    assert evaluate_checkpoint(best, reporter=heard).num_images == before.num_images - 1
    assert any("moved or deleted since the training" in line for line in heard.warned)


def test_another_split_or_folder_leaves_the_files_of_the_first(best: Path, photos: Path) -> None:
    every = [EvalOptions(), EvalOptions(split="train"), EvalOptions(data=str(photos / "val"))]
    found = [evaluate_checkpoint(best, one) for one in every]
    files = [Path(file).name for result in found for file in result.files]
    assert files[:3] == ["predictions.csv", "metrics.json", "predictions-train.csv"]
    assert len(set(files)) == 6
    saved = [json.loads((best.parent / file).read_text()) for file in files[1::2]]
    assert [one["num_images"] for one in saved] == [10, 18, 10]
    assert [one["split"] for one in saved] == ["val", "train", None]  # the folder has no splits
    assert found[1].next == (f"finetune report {best.parent} --split train",)
    (page,) = report(str(best), split="train").files
    assert Path(page).name == "report-train.html"
