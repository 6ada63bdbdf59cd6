"""``finetune suspects``: labels, copies across splits, and photos that a person should look at."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.commands.suspects_page import write_suspects_page
from finetune.config.schema import Config
from finetune.core.errors import DataError
from finetune.core.reporter import Reporter, SilentReporter
from finetune.core.text import first_few
from finetune.data.checks.duplicates import equal_groups
from finetune.data.checks.inspect_dataset import DatasetInspection, inspect_dataset
from finetune.data.checks.near_duplicates import near_pairs
from finetune.data.checks.quality import poor_photos
from finetune.data.images import TrainVal, below
from finetune.data.sources.corrections import KEEP, RELABEL
from finetune.data.splits.folds import Fold, make_folds
from finetune.data.splits.holdout import keys_of
from finetune.inference.confidence_intervals import wilson
from finetune.report.suspects import check_table, write_table
from finetune.results.suspects import (
    Accuracy,
    Leak,
    LeakAccuracy,
    Neighbour,
    Outlier,
    QualityFinding,
    SuspectedLabel,
    SuspectsReport,
)
from finetune.tuning.confident_learning import (
    JudgedLabels,
    judge_labels,
    neighbour_shares,
    with_conflicts,
)
from finetune.tuning.frozen_features import FrozenFeatures, frozen_features, groups_in
from finetune.tuning.neighbours import (
    Nearest,
    Unlike,
    are_leaks,
    directions,
    nearest,
    unlike_all,
    unlike_class,
)
from finetune.tuning.out_of_fold import fitted_head

FOLDS = 5
FEWEST = 5
"""Number of images, or groups of images, that two classes at least must have: one for each fold."""
_NEIGHBOURS = 3


def suspects(
    config: Config,
    *,
    source: str,
    table: Path,
    page: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> SuspectsReport:
    """Find probably wrong labels, leaks, outliers and photos of poor quality.

    The features are those of the pretrained network, which has not seen the labels; what the config
    freezes or trains does not matter.

    Args:
        source: Config file or run directory, for the report.
        table: CSV file of all findings; an earlier one of this command is replaced.
        page: HTML page on which a person decides about each photo; None writes none.
        overwrite: Whether another existing file is replaced too.

    Raises:
        DataError: there are too few images.
        OutputError: ``table`` cannot be written.
        FinetuneError: any other subclass of it.
    """
    start = time.perf_counter()
    reporter = reporter or SilentReporter()
    check_table(table, overwrite=overwrite)
    found = frozen_features(config, reporter, check=_check)
    images = _Photos.of(found.data)
    features = torch.cat([found.train, found.val])
    rows = directions(features)
    near = nearest(rows, rows, reporter=reporter, but_self=True)
    groups = groups_in((found.data.train, found.data.val), features)
    labels = images.labels.numpy()
    judged = judge_labels(
        features,
        labels,
        _folds(found.data, images, groups, config.seed),
        neighbour_shares(near.at.numpy(), labels, groups, len(images.names)),
        reporter=reporter,
    )
    inspected = inspect_dataset(images.paths, workers=None, fresh=False, reporter=reporter)
    inspections = inspected.inspections
    judged = with_conflicts(judged, labels, equal_groups(inspections))
    leaks, leaked = _leaks(rows, images, inspections, reporter)
    report = SuspectsReport(
        source=source,
        data=config.data.root,
        base=str(found.data.base),
        model=found.stage_setup.plan.spec.name,
        classes=found.class_names,
        num_train=images.num_train,
        num_val=len(images) - images.num_train,
        num_folds=FOLDS,
        accuracy=judged.accuracy(labels),
        num_not_judged=int((~judged.held_out).sum()),
        labels=_labels(judged, near, images, found.data.corrected_places(KEEP, RELABEL)),
        leaks=leaks,
        leak_accuracy=_leak_accuracy(found, images, leaked, judged.penalty),
        outliers=_outliers(rows, near, judged.quality.is_suspected, images),
        quality=tuple(
            QualityFinding(*images.place(one.at), one.kind, one.value)
            for one in poor_photos(inspections)
        ),
        features=found.counts,
        elapsed_s=time.perf_counter() - start,
        decided=found.data.corrected,
        files=(str(table),),
        next=_next(source, config.output_dir, page),
    )
    write_table(table, report)
    if page is None:
        return report
    return write_suspects_page(report, page, table=table.name, reporter=reporter)


def _next(source: str, output_dir: str, page: Path | None) -> tuple[str, ...]:
    """Return the command that goes on from here, once decisions are saved from the page."""
    name = shlex.quote(source)
    if page is None:
        return (f"finetune suspects {name} --report",)
    other = shlex.quote(f"{output_dir}-corrected")
    return (
        f"finetune train {name} --set data.corrections=corrections.csv --set output_dir={other}",
    )


@dataclass(frozen=True)
class _Photos:
    """Training images, then validation images.

    Attributes:
        shown: Paths relative to the folder of the data.
        labels: Class indices ``(N,)``.
    """

    paths: list[str]
    shown: list[str]
    labels: Tensor
    names: tuple[str, ...]
    num_train: int

    @classmethod
    def of(cls, data: TrainVal) -> _Photos:
        paths = [str(path) for path in (*data.train.paths, *data.val.paths)]
        return cls(
            paths,
            [below(path, data.base) for path in paths],
            torch.tensor([*data.train.labels, *data.val.labels]),
            data.train.class_names,
            len(data.train),
        )

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, at: int) -> str:
        """Return the label of an image."""
        return self.names[int(self.labels[at])]

    def place(self, at: int) -> tuple[str, str, str]:
        """Return path, split and label of an image."""
        return self.shown[at], "train" if at < self.num_train else "val", self.name(at)

    def neighbour(self, near: Nearest, at: int, rank: int) -> Neighbour:
        """Return the image that is an image's nearest, or the next ones by ``rank``."""
        place = self.place(int(near.at[at, rank]))
        return Neighbour(*place, float(near.similarity[at, rank]))


def _check(data: TrainVal) -> None:
    """Raise a `DataError` if there are too few images to judge a label."""
    grouped = all(len(some.groups) == len(some) for some in (data.train, data.val))
    of_class: list[set[object]] = [set() for _ in data.train.class_names]
    for images in (data.train, data.val):
        for at, label in enumerate(images.labels):
            of_class[label].add(images.groups[at] if grouped else (images is data.val, at))
    few = [
        f"{name}: {len(inside)}"
        for name, inside in zip(data.train.class_names, of_class, strict=True)
        if len(inside) < FEWEST
    ]
    if len(of_class) - len(few) < 2:
        what = "groups" if grouped else "images"
        raise DataError(
            f"labels are judged by heads on {FOLDS} folds, but fewer than two classes have "
            f"{FEWEST} {what} ({first_few(few)})",
            kind="data.too_few_to_judge",
            path=str(data.base),
            to_do="add images",
        )


def _folds(data: TrainVal, images: _Photos, groups: Sequence[str], seed: int) -> tuple[Fold, ...]:
    names = keys_of(images.paths, data.base)
    labels: list[int] = images.labels.tolist()
    try:
        return make_folds(labels, names, groups, FOLDS, seed=seed)
    except DataError as error:
        raise error.at(key=None, to_do="add images") from error


def _labels(
    judged: JudgedLabels, near: Nearest, images: _Photos, decided: Collection[str]
) -> tuple[SuspectedLabel, ...]:
    """Return the suspected labels, the surest first, without those that a person has decided."""
    quality, probabilities = judged.quality, judged.probabilities
    chosen = np.flatnonzero(quality.is_suspected)
    found = []
    for at in chosen[np.argsort(-quality.score[chosen], kind="stable")].tolist():
        if os.path.abspath(images.paths[at]) in decided:  # noqa: PTH100
            continue
        suggested = int(quality.suggested[at])
        found.append(
            SuspectedLabel(
                *images.place(at),
                suggested=images.names[suggested],
                score=float(quality.score[at]),
                probability_given=float(probabilities[at, images.labels[at]]),
                probability_suggested=float(probabilities[at, suggested]),
                neighbours=tuple(
                    images.neighbour(near, at, rank)
                    for rank in range(min(_NEIGHBOURS, near.at.shape[1]))
                ),
            )
        )
    return tuple(found)


def _leaks(
    rows: Tensor, images: _Photos, inspections: DatasetInspection, reporter: Reporter
) -> tuple[tuple[Leak, ...], NDArray[np.bool_]]:
    """Return the leaks, and for each validation image whether it is one."""
    first = images.num_train
    count = len(images) - first
    if not count:
        return (), np.zeros(0, dtype=bool)
    near = nearest(rows[first:], rows[:first], reporter=reporter)
    by_features = are_leaks(near)
    by_hash = _alike_in_train(inspections, first)
    leaked = by_features.copy()
    leaked[list(by_hash)] = True
    found = []
    for val in np.flatnonzero(leaked).tolist():
        train = int(near.at[val, 0]) if by_features[val] else by_hash[val]
        is_both = by_features[val] and val in by_hash
        found.append(
            Leak(
                val=images.shown[first + val],
                train=images.shown[train],
                similarity=float(rows[first + val] @ rows[train]),
                val_label=images.name(first + val),
                train_label=images.name(train),
                found_by="both" if is_both else "features" if by_features[val] else "hash",
            )
        )
    found.sort(key=lambda leak: -leak.similarity)
    return tuple(found), leaked


def _alike_in_train(inspections: DatasetInspection, first: int) -> dict[int, int]:
    """Return a training image of nearly the same perceptual hash by validation image.

    Args:
        first: Number of training images, which precede the others.
    """
    hashed = np.flatnonzero(inspections.has_phash)
    found: dict[int, int] = {}
    for one, other in hashed[near_pairs(inspections.phash[hashed]).pairs].tolist():
        if one < first <= other:
            found.setdefault(other - first, one)
    return found


def _leak_accuracy(
    found: FrozenFeatures, images: _Photos, leaked: NDArray[np.bool_], penalty: float
) -> LeakAccuracy | None:
    """Return the accuracy of a head that is fitted to the training images; None without others."""
    first = images.num_train
    if not len(found.val):
        return None
    standardised, head = fitted_head(
        found.train, images.labels[:first], num_classes=len(images.names), penalty=penalty
    )
    predicted = head(standardised(found.val)).argmax(dim=1)
    correct = (predicted == images.labels[first:]).numpy()
    return LeakAccuracy(
        every=_accuracy(correct),
        leaked=_accuracy(correct[leaked]),
        without=_accuracy(correct[~leaked]),
    )


def _accuracy(correct: NDArray[np.bool_]) -> Accuracy:
    number = int(correct.sum())
    top1 = number / len(correct) if len(correct) else None
    return Accuracy(len(correct), number, top1, wilson(number, len(correct)))


def _outliers(
    rows: Tensor, near: Nearest, is_suspected: NDArray[np.bool_], images: _Photos
) -> tuple[Outlier, ...]:
    """Return images unlike all, then those unlike their class alone, the least similar first.

    An image with a suspected label is unlike its class for that reason, and listed there.
    """
    of_all = unlike_all(near)
    of_class = unlike_class(rows, images.labels)
    apart = of_all.are_outliers

    def listed(kind: str, unlike: Unlike, chosen: NDArray[np.bool_]) -> Sequence[Outlier]:
        at = np.flatnonzero(chosen)
        below_limit = (unlike.similarity - unlike.limit).numpy()[at]
        return [
            Outlier(
                *images.place(one),
                kind=kind,
                similarity=float(unlike.similarity[one]),
                limit=float(unlike.limit[one]),
                nearest=images.neighbour(near, one, 0),
            )
            for one in at[np.argsort(below_limit, kind="stable")].tolist()
        ]

    only_class = of_class.are_outliers & ~apart & ~is_suspected
    return (*listed("all", of_all, apart), *listed("class", of_class, only_class))
