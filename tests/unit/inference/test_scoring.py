"""Tests of evaluation metrics against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor

from finetune.inference.calibration import fit_temperature, probabilities
from finetune.inference.scoring import MOST_CLASSES_IN_MATRIX, Scored, score


def logits_and_labels(
    images: int = 200, classes: int = 4, *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    logits = torch.randn(images, classes, generator=generator)
    logits[torch.arange(images), labels] += 1.0
    return logits, labels


def names(classes: int) -> list[str]:
    return [f"class {label}" for label in range(classes)]


def scored(classes: int = 4, **options: object) -> tuple[Scored, Tensor, Tensor]:
    logits, labels = logits_and_labels(classes=classes)
    return score(logits, labels, names(classes), **options), logits, labels  # type: ignore[arg-type]


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_figures_are_scikit_learns(classes: int) -> None:
    result, logits, labels = scored(classes)
    true, predicted, shares = labels.numpy(), logits.argmax(1).numpy(), logits.softmax(1).numpy()
    precision, recall, f1, counts = sk.precision_recall_fscore_support(true, predicted)
    for row, *expected in zip(result.per_class, precision, recall, f1, counts, strict=True):
        assert [row.precision, row.top1, row.f1, row.num_images] == pytest.approx(expected)
    macro = sk.precision_recall_fscore_support(true, predicted, average="macro")[:3]
    assert (result.macro.precision, result.macro.recall, result.macro.f1) == pytest.approx(macro)
    expected_area = [sk.roc_auc_score(true == label, shares[:, label]) for label in range(classes)]
    assert result.auroc == pytest.approx(sum(expected_area) / classes, abs=1e-6)
    assert result.confusion == tuple(map(tuple, sk.confusion_matrix(true, predicted).tolist()))
    assert result.calibration.loss == pytest.approx(sk.log_loss(true, shares), abs=1e-6)


def test_the_reliability_curve_gives_the_calibration_error() -> None:
    result, _, labels = scored()
    gaps = [
        bin_.count / len(labels) * abs(bin_.probability - bin_.accuracy)
        for bin_ in result.calibration.bins
        if bin_.probability is not None and bin_.accuracy is not None
    ]
    assert sum(gaps) == pytest.approx(result.calibration.error, abs=1e-6)
    assert sum(bin_.count for bin_ in result.calibration.bins) == len(labels)


def test_confused_pairs_come_most_frequent_first_and_add_up_to_the_errors() -> None:
    result, logits, labels = scored()
    counts = [pair.count for pair in result.confused]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == int((logits.argmax(1) != labels).sum())


def test_a_class_without_images_has_no_figures_and_no_part_in_the_means() -> None:
    logits = torch.tensor([[3.0, 0.0, -9.0], [0.0, 3.0, -9.0], [3.0, 0.0, -9.0]])
    result = score(logits, torch.tensor([0, 1, 1]), names(3))
    absent = result.per_class[2]
    assert (absent.num_images, absent.top1, absent.precision, absent.f1) == (0, None, None, None)
    assert result.macro.recall == pytest.approx((1.0 + 0.5) / 2)


def test_images_of_one_class_alone_have_no_auroc() -> None:
    result = score(torch.eye(2), torch.tensor([0, 0]), names(2))
    assert result.auroc is None


def test_many_classes_keep_their_pairs_but_no_matrix() -> None:
    classes = MOST_CLASSES_IN_MATRIX + 1
    result, _, _ = scored(classes)
    assert result.confusion is None
    assert result.confused


def test_groups_are_named_in_the_method() -> None:
    result, _, _ = scored(groups=[f"person {i % 20}" for i in range(200)])
    assert "groups" in result.interval_method
    alone, _, _ = scored()
    assert "Wilson" in alone.interval_method
    assert result.intervals["top1"] != alone.intervals["top1"]


def test_a_figure_without_interval_is_named_with_the_size_above_which_it_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "AUROC" not in scored()[0].interval_method
    for module in ("scoring", "confidence_intervals"):
        monkeypatch.setattr(f"finetune.inference.{module}.MOST_SCORES", 700)
    result, _, _ = scored()
    assert "auroc" not in result.intervals
    assert "none for AUROC above 700 image-class pairs" in result.interval_method


def test_figures_that_no_resample_changes_are_named_in_the_method() -> None:
    method = score(torch.eye(2), torch.tensor([0, 1]), names(2)).interval_method
    assert "none for balanced accuracy, macro F1" in method
    assert "the same in all resamples" in method


def test_a_single_image_has_no_bootstrap_and_the_method_says_so() -> None:
    result = score(torch.eye(2)[:1], torch.tensor([0]), names(2))
    assert "no bootstrap of a single image" in result.interval_method


@pytest.mark.parametrize(("groups", "few"), [(2, True), (9, True), (10, False)])
def test_intervals_from_few_groups_are_called_too_narrow(groups: int, few: bool) -> None:
    result, _, _ = scored(groups=[f"person {i % groups}" for i in range(200)])
    assert ("intervals are too narrow" in result.interval_method) is few


def test_images_of_one_group_have_no_interval() -> None:
    result, _, _ = scored(groups=["person"] * 200)
    assert not result.intervals
    assert all(row.interval is None for row in result.per_class)
    assert "none, since all images are of one group" in result.interval_method


def test_a_fitted_temperature_is_the_one_that_was_multiplied_in() -> None:
    # Labels drawn from the probabilities themselves: honest by construction.
    logits = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(1))[
        :, 0
    ]
    assert fit_temperature(3.0 * logits, labels) == pytest.approx(3.0, rel=0.03)


def test_images_that_are_all_recognised_leave_the_temperature_in_its_bounds() -> None:
    logits = 4 * torch.eye(3)
    assert 0.05 <= fit_temperature(logits, torch.arange(3)) < 0.5


def test_a_temperature_changes_probabilities_and_no_label() -> None:
    logits, _ = logits_and_labels()
    cooled = probabilities(logits, 2.5)
    assert torch.equal(cooled.argmax(1), logits.argmax(1))
    assert torch.allclose(cooled, (logits / 2.5).softmax(1))


def test_calibration_states_the_error_before_and_after() -> None:
    logits, labels = logits_and_labels(2000)
    sure = 4 * logits
    temperature = fit_temperature(sure, labels)
    result = score(sure, labels, names(4), temperature=temperature, fitted=True).calibration
    assert result.error_before is not None
    assert result.error < result.error_before / 2
    assert result.fitted
