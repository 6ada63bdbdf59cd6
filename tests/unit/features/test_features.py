"""Tests of cached features: same training as without cache, damage is detected."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import fails
from torch import nn

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.commands.cache import clear_cache, list_cache
from finetune.commands.dry_run import dry_run
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.freeze_report import freeze_report
from finetune.commands.train import train
from finetune.config.model_registry import BUNDLED_MODEL
from finetune.config.schema import Config, PreprocessingConfig, RuntimeConfig
from finetune.core.errors import OutputError
from finetune.core.reporter import SilentReporter
from finetune.data.loading.views import Views
from finetune.features import cache_policy
from finetune.features import rows as feature_rows
from finetune.features.compute_format import ComputeFormat
from finetune.features.extractor import FeatureExtractor
from finetune.features.store import DiskStore
from finetune.freezing.graph_split import FrozenPrefix
from finetune.report.catalog import render_cache
from finetune.report.layout import plain
from finetune.results.train import TrainSummary

Make = Callable[..., Config]


class Told(SilentReporter):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str, *, good: bool = False) -> None:
        self.lines.append(text)

    warn = detail = say


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each batch that the frozen prefix computed."""
    sizes: list[int] = []
    real = FrozenPrefix.forward

    def counting(self: FrozenPrefix, images: torch.Tensor) -> object:
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(FrozenPrefix, "forward", counting)
    return sizes


# Forms fixed, so that no timing runs the prefix.
FIXED = {"precision": "float32", "memory_format": "contiguous"}
OTHER = RuntimeConfig(precision="float32", memory_format="channels_last")


def computed_by(summary: TrainSummary) -> int:
    """Rows of features that a run computed."""
    assert summary.features is not None
    return summary.features.computed


def live_weights(config: Config) -> torch.Tensor:
    state, metadata = load_checkpoint(Path(config.output_dir) / "last.pt")
    frozen = set(metadata.freeze_plan.names)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "position_index")
    trainable_part = [v for k, v in state.items() if k not in frozen and not k.endswith(buffers)]
    return torch.cat([value.flatten() for value in trainable_part])


@pytest.mark.parametrize(
    ("name", "patterns", "crop"),
    [
        ("shufflenet_v2_x0_5", ["*"], 32),
        ("shufflenet_v2_x0_5", ["*", "!conv5.*"], 32),
        ("densenet121", ["*"], 64),
        ("swin_t", ["*", "!features.7.*"], 32),
    ],
)
def test_cached_steps_equal_uncached_ones(
    make_config: Make, tmp_path: Path, name: str, patterns: list[str], crop: int
) -> None:
    runs = []
    for cache in ("off", "memory", "disk"):
        config = make_config(
            model={
                "name": name,
                "weights": "bundled" if name == BUNDLED_MODEL else "none",
                "preprocessing": {"resize": crop, "crop": crop},
            },
            freeze={"patterns": patterns},
            augment={"policy": "flip"},
            features={"cache": cache},
            runtime=FIXED,
            data={"batch_size": 2},
            train={"epochs": 3},  # of nine steps each
            optimizer={"lr": 0.001},  # auto would find a rate where features are cached
            output_dir=str(tmp_path / cache),
        )
        train(config)
        runs.append(live_weights(config))
    uncached, in_memory, on_disk = runs
    assert torch.equal(in_memory, on_disk)
    assert float((uncached - on_disk).norm() / uncached.norm()) < 1e-4


def test_a_wrong_view_is_noticed_by_that_comparison(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    real = Views.pick

    def wrong(self: Views, epoch: int, index: int) -> int:
        view = real(self, epoch, index)
        return 1 - view if index == 0 and self.count == 2 else view

    for name in ("right", "wrong"):
        if name == "wrong":
            monkeypatch.setattr(Views, "pick", wrong)
        config = make_config(
            model={"weights": "bundled"},
            augment={"policy": "flip"},
            features={"cache": "memory"},
            runtime=FIXED,
            train={"epochs": 7},
            output_dir=str(tmp_path / name),
        )
        train(config)
        runs.append(live_weights(config))
    assert float((runs[0] - runs[1]).norm() / runs[0].norm()) > 1e-4


def test_a_second_run_with_other_settings_computes_no_backbone_forward(
    make_config: Make, tmp_path: Path, forwards: list[int]
) -> None:
    train(make_config(model={"weights": "bundled"}, runtime=FIXED))
    assert forwards
    forwards.clear()
    train(
        make_config(
            model={"weights": "bundled"},
            runtime=FIXED,
            optimizer={"lr": 0.3},
            train={"epochs": 3, "label_smoothing": 0.1},
            seed=5,
            output_dir=str(tmp_path / "second"),
        )
    )
    assert not forwards


@pytest.mark.usefixtures("own_forms")  # without the result of the self-test
def test_each_image_is_computed_once_for_each_view_eight_at_a_time(
    make_config: Make, forwards: list[int]
) -> None:
    summary = train(make_config(runtime=FIXED, train={"epochs": 5}))
    assert summary.features is not None
    # Training images in two views, validation images in one.
    assert (summary.features.computed, summary.features.reused) == (18 * 2 + 10, 0)
    assert forwards == [8] * (2 + 5 + 2)  # the self-test first; the last batches are padded


def test_another_image_file_is_another_key(make_config: Make, photos: Path, tmp_path: Path) -> None:
    train(make_config(runtime=FIXED))
    changed = photos / "train" / "class_0" / "0.png"
    changed.write_bytes((photos / "train" / "class_0" / "1.png").read_bytes())
    again = train(make_config(runtime=FIXED, output_dir=str(tmp_path / "second")))
    assert computed_by(again) == 2  # that image in two views


@pytest.mark.parametrize("way", ["rewritten", "renamed"])
def test_photos_exchanged_for_others_of_equal_size_and_time_are_computed_anew(
    make_config: Make, photos: Path, tmp_path: Path, way: str
) -> None:
    one, two = (photos / "train" / f"class_{label}" / "0.png" for label in (0, 1))
    size = max(path.stat().st_size for path in (one, two))
    for path in (one, two):
        # Bytes after the end of a PNG are not read.
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, (1, 1))
    train(make_config(runtime=FIXED))
    if way == "renamed":
        two.replace(one)
        shutil.copy2(one, two)
    else:
        one.write_bytes(two.read_bytes())
        os.utime(one, (1, 1))
    assert one.stat().st_mtime == two.stat().st_mtime == 1
    again = train(make_config(runtime=FIXED, output_dir=str(tmp_path / "second")))
    assert computed_by(again) == 2 * (1 if way == "rewritten" else 2)


def test_content_may_decide_instead_of_path_and_time(
    make_config: Make, photos: Path, tmp_path: Path, forwards: list[int]
) -> None:
    by_content = {"known_by": "content"}
    train(make_config(runtime=FIXED, features=by_content))
    moved = photos.rename(tmp_path / "moved")
    for path in moved.rglob("*.png"):
        os.utime(path, (1, 1))
    forwards.clear()
    config = make_config(
        runtime=FIXED,
        features=by_content,
        data={"root": str(moved)},
        output_dir=str(tmp_path / "second"),
    )
    train(config)
    assert not forwards
    changed = moved / "train" / "class_0" / "0.png"
    changed.write_bytes(changed.read_bytes() + b"\0")
    os.utime(changed, (1, 1))
    assert computed_by(train(config, overwrite=True)) == 2


def test_eval_reproduces_cached_figures_and_needs_no_forward(
    make_config: Make, forwards: list[int]
) -> None:
    config = make_config(runtime=FIXED)
    summary = train(config)
    forwards.clear()
    result = evaluate_checkpoint(Path(config.output_dir) / "best.pt")
    assert (result.top1, result.loss) == (summary.val.top1, summary.val.loss)
    assert not forwards


def test_an_interrupted_filling_goes_on_where_it_stopped(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, forwards: list[int], photos: Path
) -> None:
    monkeypatch.setattr(feature_rows, "BLOCK_ROWS", 4)
    config = make_config(runtime=FIXED)
    train(config)  # the self-test has been done
    clear_cache()
    real = DiskStore.append
    calls: list[int] = []

    def interrupted(self: DiskStore, *arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(DiskStore, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, overwrite=True)
    monkeypatch.setattr(DiskStore, "append", real)
    forwards.clear()
    summary = train(config, overwrite=True)
    assert len(forwards) == (9 - 5) + 3  # blocks of 36 training rows that lacked, and validation
    assert summary.features is not None
    assert (summary.features.computed, summary.features.reused) == (16 + 10, 20)


def test_damage_is_said_and_repaired_in_training(make_config: Make, own_cache: Path) -> None:
    config = make_config(runtime=FIXED)
    expected = train(config)
    for path in own_cache.glob("finetune/features/*/0.bin"):
        content = bytearray(path.read_bytes())
        content[5] ^= 8
        path.write_bytes(content)
    told = Told()
    again = train(config, overwrite=True, reporter=told)
    assert any("damaged features found" in line for line in told.lines)
    assert again.val == expected.val


def test_features_too_large_to_keep_are_computed_anew(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_policy, "WORTH_KEEPING_BYTES", 10)
    monkeypatch.setattr(cache_policy, "_READ_BYTES_PER_S", 0)
    config = make_config(runtime=FIXED)
    told = Told()
    train(config, reporter=told)
    assert any("not cached" in line for line in told.lines)
    saved = (Path(config.output_dir) / "config.yaml").read_text()
    assert "cache: off" in saved or "cache: 'off'" in saved


def test_a_place_that_cannot_be_written_is_said_and_memory_is_taken(
    make_config: Make, tmp_path: Path
) -> None:
    place = tmp_path / "file" / "features"
    place.parent.touch()
    config = make_config(runtime=FIXED, features={"dir": str(place)})
    told = Told()
    train(config, reporter=told)
    assert f"{place}: features cannot be cached there: Not a directory" in "\n".join(told.lines)
    assert "cache: memory" in (Path(config.output_dir) / "config.yaml").read_text()


def test_disk_that_was_asked_for_is_refused_with_its_path(
    make_config: Make, tmp_path: Path
) -> None:
    place = tmp_path / "file" / "features"
    place.parent.touch()
    with fails("output.cache_unwritable", path=place):
        train(make_config(runtime=FIXED, features={"dir": str(place), "cache": "disk"}))


def test_a_full_disk_is_one_message_with_the_ways_out(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskStore, "append", full)
    with fails("output.cache_unwritable") as caught:
        train(make_config(runtime=FIXED))
    assert getattr(caught.value, "exit_code", None) == 6


def test_a_run_whose_features_find_no_room_leaves_the_old_run_alone(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(runtime=FIXED)
    train(config)
    before = (Path(config.output_dir) / "best.pt").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskStore, "append", full)
    with pytest.raises(OutputError):
        train(config.model_copy(update={"seed": 1, "runtime": OTHER}), overwrite=True)
    assert (Path(config.output_dir) / "best.pt").read_bytes() == before


def test_the_store_says_what_it_holds(make_config: Make, own_cache: Path) -> None:
    train(make_config(runtime=FIXED))
    (meta,) = own_cache.glob("finetune/features/*/meta.json")
    description = json.loads(meta.read_text())["description"]
    assert description["network"] == "shufflenet_v2_x0_5"
    assert {"cut", "identity", "preprocessing", "form", "versions"} <= description.keys()


def test_the_cache_command_lists_and_clears(make_config: Make) -> None:
    train(make_config(runtime=FIXED))
    (row,) = list_cache().stores
    assert (row.network, row.photos) == ("shufflenet_v2_x0_5", 18 + 10)
    assert row.num_bytes > 0
    shown = plain(render_cache(list_cache()))
    assert "1 store" in shown
    assert "shufflenet_v2_x0_5" in shown
    assert clear_cache().removed
    assert list_cache().stores == ()


def test_clearing_what_is_unused_leaves_what_was_used_lately(
    make_config: Make, own_cache: Path
) -> None:
    train(make_config(runtime=FIXED))
    train(make_config(runtime=OTHER), overwrite=True)
    old, new = own_cache.glob("finetune/features/*/meta.json")
    week_ago = time.time() - 7 * 86_400
    os.utime(old, (week_ago, week_ago))
    assert len(clear_cache(unused_days=8).stores) == 0
    assert [row.key for row in clear_cache(unused_days=6).stores] == [old.parent.name]
    assert [row.key for row in list_cache().stores] == [new.parent.name]


def test_predicted_cache_size_is_what_is_stored(make_config: Make) -> None:
    config = make_config(runtime=FIXED)
    predicted = freeze_report(config).cut.cache_bytes
    train(config)
    stored_bytes = sum(row.num_bytes for row in list_cache().stores)
    assert predicted is not None
    assert predicted <= stored_bytes < 1.05 * predicted


def test_dry_run_predicts_an_epoch_with_and_without_the_cache(make_config: Make) -> None:
    predicted = dry_run(make_config(runtime=FIXED)).predicted
    assert predicted.epoch_with_cache_s is not None
    assert 0 < predicted.epoch_with_cache_s < predicted.epoch_without_cache_s
    everything = dry_run(make_config(runtime=FIXED, freeze={"patterns": []})).predicted
    assert everything.epoch_with_cache_s is None


@pytest.mark.parametrize(
    ("mib", "multiply_adds", "worth"),
    [(0.5, 0, True), (2, 0, False), (2, 5e7, False), (2, 5e8, True), (8, 5e8, False)],
)
def test_features_are_kept_where_reading_takes_less_than_computing(
    mib: float, multiply_adds: float, worth: bool
) -> None:
    numbers = int(mib * 2**18)
    extractor = FeatureExtractor(
        nn.Identity(),
        ((numbers,),),
        ComputeFormat(),
        PreprocessingConfig(resize=8, crop=8),
        torch.device("cpu"),
        "",
    )
    assert cache_policy.worth_keeping(extractor, int(multiply_adds)) is worth


@pytest.mark.parametrize(
    ("precision", "widest", "rows"),
    [
        ("float32", 1_000, 8),
        ("bfloat16", 1_204_224, 4),
        ("float32", 1_204_224, 2),
        ("float32", 50_000_000, 2),
    ],
)
def test_fewer_images_are_computed_at_once_where_they_are_wide(
    precision: str, widest: int, rows: int
) -> None:
    extractor = FeatureExtractor(
        nn.Identity(),
        ((1,),),
        ComputeFormat(precision),
        PreprocessingConfig(resize=8, crop=8),
        torch.device("cpu"),
        "",
        widest,
    )
    assert extractor.rows == rows
