"""Tests of ``data.balance``: class weights, sampler and balanced accuracy."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from finetune.commands.dry_run import dry_run
from finetune.commands.evaluate import evaluate_checkpoint
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.data.loading.class_weights import class_weights
from finetune.data.loading.sampler import KeyedBatches
from finetune.data.loading.views import Views
from finetune.report.dry_run import render_dry_run
from finetune.report.evaluation import render_eval
from finetune.report.layout import plain
from finetune.report.train import render_train
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import Loss, LossConfig
from finetune.training.metrics import Meter
from finetune.training.step import StepConfig

Make = Callable[..., Config]


def test_class_weights_are_the_balanced_heuristic() -> None:
    assert class_weights([10, 30, 60]) == pytest.approx([100 / 30, 100 / 90, 100 / 180])


def test_every_class_weighs_the_same_and_an_image_one_on_average() -> None:
    counts = [3, 50, 400]
    sums = [w * n for w, n in zip(class_weights(counts), counts, strict=True)]
    assert sums == pytest.approx([sum(counts) / 3] * 3)
    assert sum(sums) == pytest.approx(sum(counts))


def test_a_class_without_images_weighs_nothing() -> None:
    assert class_weights([10, 0, 10]) == [1.0, 0.0, 1.0]


def test_balanced_accuracy_is_the_mean_over_classes_that_have_images() -> None:
    meter = Meter(3, torch.device("cpu"))
    labels = torch.tensor([0] * 8 + [1] * 2)
    meter.add(torch.eye(3)[torch.zeros(10, dtype=torch.int64)], labels)
    assert (meter.top1, meter.balanced_accuracy) == (0.8, 0.5)


def one_step(labels: list[int], class_weights: list[float] | None) -> torch.Tensor:
    """The gradient of one step on constant images."""
    model = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    batch = ((torch.ones(len(labels), 4),), torch.tensor(labels))
    list(
        train_epochs(
            LoopState(model, optimizer, schedule, num_classes=2),
            lambda _: [batch],
            epochs=1,
            step=StepConfig(seed=0),
            loss=LossConfig(class_weights=class_weights),
            callbacks=Callbacks(lambda: None),
        )
    )
    return -model.weight.detach()


def test_weights_of_one_change_nothing() -> None:
    labels = [0, 0, 0, 1]
    assert torch.allclose(one_step(labels, None), one_step(labels, [1.0, 1.0]))


def test_weights_make_classes_pull_equally() -> None:
    labels = [0, 0, 0, 1]
    assert one_step(labels, None)[0, 0] != 0
    assert one_step(labels, class_weights([3, 1]))[0, 0] == pytest.approx(0, abs=1e-7)


def test_a_batch_of_a_frequent_class_alone_pulls_less() -> None:
    light = one_step([0, 0, 0, 0], class_weights([30, 10]))
    full = one_step([0, 0, 0, 0], None)
    assert torch.allclose(light, full * (40 / 60))


# With smoothed and mixed labels

WEIGHTS = [0.5, 1.0, 4.0]
SOFT: dict[str, tuple[float, torch.Tensor]] = {
    "one class": (0.0, torch.tensor([0])),
    "one class, smoothed": (0.1, torch.tensor([0])),
    "the rare class, smoothed": (0.3, torch.tensor([2])),
    "mixed": (0.0, torch.tensor([[0.7, 0.0, 0.3]])),
    "mixed, smoothed": (0.2, torch.tensor([[0.7, 0.0, 0.3]])),
}


def loss_of(class_weights: list[float] | None, smoothing: float = 0.0) -> Loss:
    config = LossConfig(label_smoothing=smoothing, class_weights=class_weights)
    return Loss(config, device=torch.device("cpu"))


def gradient(loss: Loss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, labels), logits)
    return found


@pytest.mark.parametrize("kind", SOFT)
def test_weights_do_not_move_the_optimum_of_an_image(kind: str) -> None:
    """The optimum are the smoothed shares themselves."""
    smoothing, labels = SOFT[kind]
    shares = nn.functional.one_hot(labels, 3).float() if labels.dim() == 1 else labels
    shares = shares * (1 - smoothing) + smoothing / 3
    best = shares.clamp(min=1e-9).log()
    for weights in (None, WEIGHTS):
        assert gradient(loss_of(weights, smoothing), best, labels).abs().max() < 1e-6


@pytest.mark.parametrize("kind", SOFT)
def test_an_image_pulls_by_the_mean_weight_of_its_shares(kind: str) -> None:
    smoothing, labels = SOFT[kind]
    shares = nn.functional.one_hot(labels, 3).float() if labels.dim() == 1 else labels
    weight = float(shares[0] @ torch.tensor(WEIGHTS))
    logits = torch.tensor([[0.3, -1.0, 0.5]])
    plain, weighted = (
        gradient(loss_of(weights, smoothing), logits, labels) for weights in (None, WEIGHTS)
    )
    torch.testing.assert_close(weighted, weight * plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_weighted_loss_is_a_mean_over_images(smoothing: float) -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 0])
    losses = nn.functional.cross_entropy(
        logits, labels, label_smoothing=smoothing, reduction="none"
    )
    weighted = loss_of(WEIGHTS, smoothing)(logits, labels)
    expected = sum(WEIGHTS[label] * loss for label, loss in zip(labels, losses, strict=True)) / 5
    torch.testing.assert_close(weighted, expected)


def test_without_smoothing_the_weighted_loss_is_torchs_own() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 0, 1, 2, 0])
    weighted = loss_of(WEIGHTS)(logits, labels)
    weight = torch.tensor(WEIGHTS)
    own = nn.functional.cross_entropy(logits, labels, weight=weight, reduction="sum") / 5
    torch.testing.assert_close(weighted, own)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_frequent_class_is_recognised_under_weights(smoothing: float) -> None:
    """Forty images of one class for each of the other, on a feature that tells them apart."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 400 + [1] * 10)
    features = torch.randn(410, 1, generator=draws) + 4.0 * labels[:, None]
    model = nn.Linear(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    list(
        train_epochs(
            LoopState(model, optimizer, schedule, num_classes=2),
            lambda _: zip(zip(features.split(41)), labels.split(41), strict=True),
            epochs=20,
            step=StepConfig(seed=0),
            loss=LossConfig(label_smoothing=smoothing, class_weights=class_weights([400, 10])),
            callbacks=Callbacks(lambda: None),
        )
    )
    right = model(features).argmax(dim=1) == labels
    assert right[:400].float().mean() > 0.9
    assert right[400:].float().mean() > 0.8


# Draws

LABELS = [0] * 900 + [1] * 90 + [2] * 10


def batches(
    epoch: int, *, views: str = "none", labels: list[int] = LABELS
) -> list[list[tuple[int, int]]]:
    sampler = KeyedBatches(
        len(labels), 32, views=Views.of(views, seed=5), shuffle=True, balanced=labels
    )
    sampler.epoch = epoch
    return list(sampler)


def drawn(epoch: int) -> list[int]:
    return [index for batch in batches(epoch) for index, _ in batch]


def test_every_class_is_drawn_equally_often() -> None:
    counts = Counter(LABELS[index] for index in drawn(1))
    assert sum(counts.values()) == len(LABELS)
    assert all(280 < counts[label] < 390 for label in range(3))


def test_every_image_of_a_class_is_drawn_equally_often() -> None:
    counts = Counter(index for epoch in range(60) for index in drawn(epoch))
    rare = [counts[index] for index in range(990, 1000)]
    assert all(1750 < count < 2250 for count in rare)
    assert min(counts[index] for index in range(900)) > 0


def test_draws_are_a_function_of_seed_and_epoch() -> None:
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_an_image_that_comes_again_comes_in_another_view() -> None:
    views = Counter(key for batch in batches(1, views="crop_flip") for key in batch)
    assert max(views.values()) == 1
    flips = {key for batch in batches(1, views="flip") for key in batch if key[0] >= 990}
    assert len(flips) == 20


def test_a_class_without_images_is_not_drawn() -> None:
    labels = [0] * 50 + [2] * 5
    assert {labels[i] for batch in batches(1, labels=labels) for i, _ in batch} == {0, 2}


def test_without_balance_every_image_comes_once() -> None:
    sampler = KeyedBatches(100, 32, views=Views.of("none"), shuffle=True)
    assert sorted(index for batch in sampler for index, _ in batch) == list(range(100))


# In a run


@pytest.mark.parametrize("cache", ["memory", "off"])
@pytest.mark.parametrize("balance", ["weights", "sampler"])
def test_balance_changes_what_is_learned(
    make_config: Make, photos: Path, tmp_path: Path, balance: str, cache: str
) -> None:
    for path in list((photos / "train" / "class_0").iterdir())[2:]:
        path.unlink()
    runs = {}
    for name in ("none", balance):
        config = make_config(
            data={"balance": name},
            features={"cache": cache},
            train={"epochs": 2},
            output_dir=str(tmp_path / name),
        )
        runs[name] = train(config).last.loss
    assert runs["none"] != runs[balance]


def test_every_result_gives_balanced_accuracy(make_config: Make, photos: Path) -> None:
    for path in list((photos / "val" / "class_0").iterdir())[1:]:
        path.unlink()
    config = make_config(train={"epochs": 1})
    summary = train(config)
    folder = Path(config.output_dir)
    line = json.loads((folder / "metrics.jsonl").read_text())
    result = evaluate_checkpoint(folder / "best.pt")
    by_class = [row.top1 for row in result.per_class if row.top1 is not None]
    assert result.balanced_accuracy == pytest.approx(sum(by_class) / 2)
    assert line["val"]["balanced_accuracy"] == result.balanced_accuracy
    assert summary.val.balanced_accuracy == result.balanced_accuracy
    figure = f"{result.balanced_accuracy:.2%}"
    assert re.search(rf"Balanced +{figure}.*mean recall of the classes", plain(render_eval(result)))
    assert f"Balanced   {figure}, the mean recall" in plain(render_train(summary))


def test_the_dry_run_shows_class_weights(make_config: Make, photos: Path) -> None:
    for path in list((photos / "train" / "class_0").iterdir())[3:]:
        path.unlink()
    result = dry_run(make_config(data={"balance": "weights"}))
    assert result.class_weights == pytest.approx({"class_0": 2.0, "class_1": 12 / 18})
    assert "class_0 2, class_1 0.667" in plain(render_dry_run(result))
    assert dry_run(make_config()).class_weights is None
