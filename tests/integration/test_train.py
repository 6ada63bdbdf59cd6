"""Tests of ``finetune train``: saved files, verification, reproducibility, errors."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.messages import check_error, fails
from helpers.reporters import RecordingReporter
from PIL import Image

from finetune.checkpoints import checkpointer
from finetune.checkpoints.checkpoint import Metadata, load_checkpoint
from finetune.commands.dry_run import dry_run
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.train import train
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core.errors import ModelError, NotFiniteError
from finetune.features.engine import Engine

Make = Callable[..., Config]


def weights(folder: str, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(folder) / name)[0]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_the_run_folder_holds_everything(make_config: Make) -> None:
    config = make_config()
    summary = train(config)
    names = {path.name for path in Path(config.output_dir).iterdir()}
    assert names == {
        *(".finetune-run", "best.pt", "last.pt", "previous.pt", "config.yaml", "metrics.jsonl"),
        *("summary.json", "freeze-report.json", "freeze-report.txt", "log.txt"),
    }
    log = Path(config.output_dir, "log.txt").read_text()
    assert "frozen tensors hashed" in log
    assert "epoch 2/2" in log
    lines = Path(config.output_dir, "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    saved = json.loads(Path(config.output_dir, "summary.json").read_text())
    assert saved["frozen_verified"] == summary.frozen_verified > 0


def test_summary_counts_add_up(make_config: Make) -> None:
    summary = train(make_config(train={"epochs": 1}))
    assert summary.trainable_parameters == 1024 * 2 + 2
    assert summary.frozen_parameters == 341_792
    assert summary.num_train == 18
    assert summary.num_val == 10


@pytest.mark.parametrize(
    ("patterns", "policy"), [([], "crop_flip"), (["*", "!conv5.*"], "flip"), (["*"], "flip")]
)
def test_a_rerun_of_the_resolved_config_gives_identical_weights(
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    patterns: list[str],
    policy: str,
) -> None:
    monkeypatch.setattr("finetune.recipes.heuristics._SMALL_PX", 8)  # photos of 40 pixels are large
    # Batches of six: two random images that 1x1 norm layers tell apart by rounding alone diverge.
    config = make_config(freeze={"patterns": patterns}, data={"batch_size": 6})
    train(config)
    saved = load_config(
        Path(config.output_dir) / "config.yaml", [f"output_dir={tmp_path / 'again'}"]
    )
    assert saved.augment.policy == policy
    assert "auto" not in to_yaml(saved)
    train(saved)
    assert equal(weights(config.output_dir), weights(saved.output_dir))


def test_weights_do_not_depend_on_the_number_of_workers(make_config: Make, tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        config = make_config(
            data={"workers": workers},
            augment={"policy": "crop_flip"},
            train={"epochs": 1},
            output_dir=str(tmp_path / f"workers{workers}"),
        )
        train(config)
        runs.append(weights(config.output_dir))
    assert equal(*runs)


def test_another_seed_gives_other_weights(make_config: Make, tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        config = make_config(
            seed=seed, train={"epochs": 1}, output_dir=str(tmp_path / f"seed{seed}")
        )
        train(config)
        runs.append(weights(config.output_dir))
    assert not equal(*runs)


def test_eval_reproduces_the_recorded_figures_exactly(make_config: Make) -> None:
    config = make_config(freeze={"patterns": []}, data={"batch_size": 6})
    summary = train(config)
    result = evaluate_checkpoint(Path(config.output_dir) / "best.pt")
    assert (result.top1, result.loss) == (summary.val.top1, summary.val.loss)
    last = evaluate_checkpoint(Path(config.output_dir) / "last.pt")
    assert (last.top1, last.loss) == (summary.last.top1, summary.last.loss)


def test_eval_reproduces_a_held_out_split(make_config: Make, photos: Path) -> None:
    config = make_config(data={"root": str(photos / "train"), "val_fraction": 0.3})
    summary = train(config)
    result = evaluate_checkpoint(Path(config.output_dir) / "best.pt")
    assert result.num_images == summary.num_val == 6
    assert (result.top1, result.loss) == (summary.val.top1, summary.val.loss)


def test_frozen_tensor_that_changed_is_refused(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpointer.save_checkpoint

    def careless(
        path: Path, state: dict[str, torch.Tensor], metadata: Metadata, **others: Any
    ) -> None:
        state["conv1.1.running_mean"] = state["conv1.1.running_mean"] + 1e-6
        real(path, state, metadata, **others)

    monkeypatch.setattr(checkpointer, "save_checkpoint", careless)
    with fails("result.frozen_changed"):
        train(make_config(train={"epochs": 1}))


def test_norm_stats_update_moves_statistics_and_says_how_many(make_config: Make) -> None:
    config = make_config(freeze={"norm_stats": "update"}, train={"epochs": 1})
    summary = train(config)
    assert len(summary.exempt) == 56 * 3
    assert weights(config.output_dir)["conv1.1.num_batches_tracked"] > 0


def test_a_loss_that_is_no_number_is_refused_and_not_saved(make_config: Make) -> None:
    config = make_config(
        optimizer={"lr": 1e30, "momentum": 0.0}, freeze={"patterns": []}, train={"epochs": 3}
    )
    with pytest.raises(NotFiniteError) as caught:
        train(config)
    assert caught.value.source == f"epoch {caught.value.epoch}, batch {caught.value.batch}"
    for path in Path(config.output_dir).glob("*.pt"):
        assert all(bool(torch.isfinite(t).all()) for t in load_checkpoint(path)[0].values())


def test_a_dry_run_says_what_is_wrong_with_a_config_before_the_folder(make_config: Make) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    wrong = config.with_values({"freeze.patterns": ["nothing.*"]})
    with fails("config.pattern_matches_nothing", key="freeze.patterns"):
        dry_run(wrong)


def test_a_second_run_needs_overwrite(make_config: Make) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    with fails("output.exists", key="output_dir"):
        train(config)
    train(config, overwrite=True)


def test_dry_run_checks_everything_and_writes_nothing(make_config: Make) -> None:
    config = make_config()
    result = dry_run(config)
    assert not Path(config.output_dir).exists()
    assert result.config["augment"]["policy"] == "flip"
    assert result.config["data"]["workers"] == 0
    assert result.batches_per_epoch == 3
    assert result.frozen_hashed > 0


def test_a_dry_run_predicts_the_time_that_the_run_announces(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "prefix_seconds", 1.0)
    for module in ("finetune.features.rows", "finetune.training.time_estimate"):
        monkeypatch.setattr(f"{module}.decode_seconds", lambda *_: 0.5)
    config = make_config(train={"epochs": 1})
    predicted = dry_run(config).predicted.fill_s
    heard = RecordingReporter()
    train(config, reporter=heard)
    announced = [re.search(r"about (\d+) s$", line) for line in heard.said if "computing" in line]
    assert [int(found[1]) for found in announced if found] == [36 + 9, 10 + 5]
    assert predicted == pytest.approx(60)


def damage(path: Path) -> None:
    """A picture whose header and end are as they should be, with garbage between."""
    noise = random.Random(0).randbytes(64 * 64 * 3)
    Image.frombytes("RGB", (64, 64), noise).save(path)
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_passes_the_check_is_named_also_from_a_worker(
    make_config: Make, photos: Path, workers: int
) -> None:
    damage(photos / "train" / "class_0" / "broken.png")
    with fails("data.undecodable"):
        train(make_config(data={"workers": workers}))


@pytest.mark.parametrize(
    ("model", "works"),
    [
        ({"name": "alexnet"}, "63 px or more"),
        ({"name": "maxvit_t"}, "224 px"),
        ({"name": "vit_b_16", "weights": "IMAGENET1K_V1"}, "224 px"),
    ],
)
def test_an_input_size_that_does_not_fit_is_refused_before_weights_are_read(
    make_config: Make, model: dict[str, str], works: str
) -> None:
    with pytest.raises(ModelError) as caught:
        train(make_config(model=model))
    assert caught.value.kind in ("model.image_size", "model.cannot_be_built")
    assert works in (caught.value.to_do or "")
    check_error(caught.value)


def test_batch_size_one_with_norm_layers_that_train_is_refused_with_the_fix(
    make_config: Make,
) -> None:
    config = make_config(data={"batch_size": 1}, freeze={"patterns": []})
    with fails("model.batch_of_one", key="data.batch_size"):
        train(config)


@pytest.mark.parametrize("batch_size", [17, 1000])
def test_a_last_batch_of_one_and_a_set_below_one_batch_train(
    make_config: Make, batch_size: int
) -> None:
    config = make_config(
        data={"batch_size": batch_size}, freeze={"patterns": []}, train={"epochs": 1}
    )
    line = Path(config.output_dir, "metrics.jsonl")
    train(config)
    assert json.loads(line.read_text())["num_images"] == 18
