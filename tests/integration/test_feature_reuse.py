"""Only what is new is computed, whatever list the photos are in, and with the same result."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.photos import draw_photos
from helpers.reporters import RecordingReporter

import finetune
from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.cache import clear_cache
from finetune.commands.evaluate import EvalOptions, evaluate_checkpoint
from finetune.commands.lr_find import lr_find
from finetune.commands.predict import predict
from finetune.commands.train import train
from finetune.commands.tune import tune
from finetune.config.schema import Config
from finetune.core import files
from finetune.core.files import sha256_of
from finetune.features import rows as feature_rows
from finetune.inference.predictor import open_predictor
from finetune.results.features import FeatureCounts

Make = Callable[..., Config]
FORMAT = {"precision": "float32", "memory_format": "contiguous"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 photos each, without a split."""
    return draw_photos(tmp_path / "photos", count=20)


@pytest.fixture
def make(make_config: Make, photos: Path) -> Make:
    def make(run: str = "run", **sections: object) -> Config:
        folder = str(photos.parent / run)
        return make_config(
            model={"weights": "bundled"}, runtime=FORMAT, output_dir=folder, **sections
        )

    return make


def counts(features: FeatureCounts | None) -> tuple[int, int]:
    assert features is not None
    return features.computed, features.reused


def trained_on(config: Config) -> set[str]:
    """Hashes of the training photos of a run."""
    with (Path(config.output_dir) / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    root = Path(config.data.root)
    return {sha256_of(root / row["path"]) for row in rows if row["split"] == "train"}


def weights(config: Config) -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(config.output_dir) / "last.pt")[0]


@pytest.mark.parametrize("policy", ["none", "flip"])
def test_new_photos_alone_are_computed_and_the_weights_are_those_of_an_empty_cache(
    make: Make, photos: Path, policy: str
) -> None:
    settings = {"features": {"known_by": "content"}, "augment": {"policy": policy}}
    other = {"seed": 7, "data": {"val_fraction": 0.4}, "train": {"epochs": 3}}
    later = [photos.parent / path.name for path in sorted((photos / "class_0").iterdir())[:3]]
    for path in later:
        (photos / "class_0" / path.name).rename(path)
    first = make(**settings)
    train(first)
    before = trained_on(first)
    for path in later:
        path.rename(photos / "class_0" / path.name)  # three more
    (photos / "class_0" / "5.png").rename(photos / "class_1" / "relabelled.png")
    (photos / "class_1" / "inner").mkdir()
    (photos / "class_1" / "6.png").rename(photos / "class_1" / "inner" / "moved.png")
    (photos / "class_0" / "7.png").unlink()
    told = RecordingReporter()
    again = make("again", **settings, **other)
    summary = train(again, reporter=told)
    views = 2 if policy == "flip" else 1
    rows = views * summary.num_train + summary.num_val
    assert summary.num_train + summary.num_val == 39
    # Photos that were held out before, and now train, are wanted in one more view.
    more = len(trained_on(again) - before) * (views - 1)
    assert counts(summary.features) == (3 + more, rows - 3 - more)
    assert f"features: {3 + more:,} computed, {rows - 3 - more:,} reused" in told.said
    clear_cache()
    fresh = make("fresh", **settings, **other)
    assert counts(train(fresh).features) == (rows, 0)
    one, other = weights(again), weights(fresh)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_other_commands_compute_nothing_after_training(make: Make, photos: Path) -> None:
    settings = {"augment": {"policy": "none"}}
    config = make(**settings)
    train(config)
    run = Path(config.output_dir)
    other_head = make("other", optimizer={"lr": 0.3}, seed=1, **settings)
    assert counts(train(other_head).features) == (0, 40)
    assert counts(evaluate_checkpoint(Path(other_head.output_dir) / "best.pt").features)[0] == 0
    everything = evaluate_checkpoint(run / "best.pt", EvalOptions(data=str(photos), split="train"))
    assert counts(everything.features)[0] == 0
    predicted = predict(str(run), [str(photos)], show=lambda *_: None)
    assert counts(predicted.features) == (0, 40)
    assert counts(lr_find(config, steps=10).features)[0] == 0
    searched = tune(
        make("searched", tune={"trials": 2, "folds": 3, "epochs": [1]}, **settings), final=False
    )
    assert counts(searched.features)[0] == 0


def test_a_folder_predicted_twice_is_computed_once(
    make: Make, photos: Path, tmp_path: Path
) -> None:
    config = make()
    train(config)
    folder = draw_photos(tmp_path / "others", count=3)
    first = predict(config.output_dir, [str(folder)], show=lambda *_: None)
    again = predict(config.output_dir, [str(folder)], show=lambda *_: None)
    assert counts(first.features) == (6, 0)
    assert counts(again.features) == (0, 6)


def test_a_predictor_uses_known_features_and_adds_none(make: Make, tmp_path: Path) -> None:
    config = make()
    train(config)
    paths = sorted(map(str, draw_photos(tmp_path / "others", count=3).rglob("*.png")))
    model = finetune.load(config.output_dir)
    first = model.predict(paths)
    assert counts(model.feature_counts) == (6, 0)
    predict(config.output_dir, paths, show=lambda *_: None)
    assert model.predict(paths) == first
    assert counts(model.feature_counts) == (6, 6)


def test_the_time_of_features_counts_as_soon_as_a_caller_has_them(make: Make, photos: Path) -> None:
    train(make())
    model = open_predictor(str(photos.parent / "run"))
    next(model.stream([str(path) for path in sorted(photos.rglob("*.png"))]))
    assert model.feature_counts is not None
    assert model.feature_counts.seconds > 0


def test_predictions_are_the_same_bits_from_known_features_as_anew(
    make: Make, photos: Path, tmp_path: Path
) -> None:
    config = make()
    train(config)
    others = draw_photos(tmp_path / "others", count=3)
    mixed = [
        str(path)
        for pair in zip(sorted(photos.rglob("*.png")), sorted(others.rglob("*.png")), strict=False)
        for path in pair
    ]
    found = finetune.load(config.output_dir).predict(mixed)
    clear_cache()
    assert finetune.load(config.output_dir).predict(mixed) == found


def test_a_copy_is_computed_once_where_content_counts(make: Make, photos: Path) -> None:
    shutil.copy(photos / "class_0" / "0.png", photos / "class_0" / "copy.png")
    settings = {"features": {"known_by": "content"}, "augment": {"policy": "none"}}
    assert counts(train(make(**settings)).features) == (40, 1)


def test_stages_with_one_prefix_compute_it_once(make: Make) -> None:
    stages = [{"epochs": 1}, {"epochs": 1, "optimizer": {"lr": 0.01}}]
    summary = train(make(stages=stages, augment={"policy": "none"}))
    assert counts(summary.features) == (40, 40)


def test_random_views_of_new_photos_alone_are_computed(make: Make, photos: Path) -> None:
    """A new photo changes the indices of all behind it."""
    settings = {"augment": {"policy": "crop_flip", "views": 3}, "data": {"val_fraction": 0}}
    first = photos / "class_0" / "0.png"
    first.rename(photos.parent / "0.png")
    assert counts(train(make(**settings)).features) == (39 * 3, 0)
    (photos.parent / "0.png").rename(first)
    again = make("again", **settings)
    assert counts(train(again).features) == (3, 39 * 3)
    other_seed = make("third", seed=5, **settings)
    assert counts(train(other_seed).features) == (40 * 3, 0)


def test_where_rows_depend_on_their_neighbours_whole_lists_are_kept(
    make: Make, photos: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "_warned", set())
    monkeypatch.setattr(feature_rows, "rows_are_independent", lambda _: False)
    settings = {"augment": {"policy": "none"}}
    assert counts(train(make(**settings)).features) == (40, 0)
    assert sum("depend on the photos" in line for line in caplog.messages) == 1
    assert counts(train(make("again", **settings)).features) == (0, 40)
    (photos / "class_0" / "0.png").unlink()
    shorter = train(make("third", **settings))
    assert counts(shorter.features) == (31, 8)  # the validation images are as they were


def test_corrected_labels_compute_nothing_again(make: Make, photos: Path) -> None:
    first = train(make())
    with (Path(first.run_dir) / "split.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "class_0"]
    held = next(row["path"] for row in rows if row["split"] == "val")
    known = next(row["path"] for row in rows if row["split"] == "train")
    table = photos.parent / "corrections.csv"
    table.write_text(f"path,action,label\n{held},relabel,class_1\n{known},drop,\n")
    summary = train(make("corrected", data={"corrections": str(table)}))
    assert counts(summary.features)[0] == 0
    listed = (Path(summary.run_dir) / "corrections.csv").read_text()
    assert listed == table.read_text()
    assert summary.num_train + summary.num_val == 39
    result = evaluate_checkpoint(Path(summary.run_dir) / "best.pt")
    for caveats in (summary.caveats, result.caveats):
        assert [caveat.kind for caveat in caveats].count("corrected") == 1
