"""Findings on splits, classes and groups: errors that stop training, and probable mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from finetune.config.data import DataConfig
from finetune.data.checks.duplicates import MOST_EXAMPLES
from finetune.data.checks.inspect_dataset import DatasetInspection
from finetune.data.checks.survey import Survey
from finetune.data.images import shown
from finetune.results.check import Finding


def unreadable(
    survey: Survey, inspections: DatasetInspection, config: DataConfig
) -> Iterator[Finding]:
    if not inspections.reasons:
        return
    skip = config.on_unreadable == "skip"
    count = len(inspections.reasons)
    yield Finding(
        "unreadable",
        "warning" if skip else "error",
        f"{count:,} file{'' if count == 1 else 's'} that cannot be read",
        "Training leaves them out." if skip else "Training stops before the first step.",
        "Repair or remove them." + ("" if skip else " data.on_unreadable: skip leaves them out."),
        count,
        tuple(
            f"{shown(survey.paths[at], survey.base)}: {reason}"
            for at, reason in sorted(inspections.reasons.items())[:MOST_EXAMPLES]
        ),
    )


def lost_classes(
    survey: Survey, inspections: DatasetInspection, config: DataConfig
) -> Iterator[Finding]:
    """Yield findings on classes that have no images left after skipping unreadable files."""
    if config.on_unreadable != "skip":
        return
    had = Counter(zip(survey.split_of, survey.class_of, strict=True))
    bad = Counter((survey.split_of[at], survey.class_of[at]) for at in inspections.reasons)
    lost = sorted(place for place, count in bad.items() if count == had[place])
    if lost:
        yield Finding(
            "lost_class",
            "error",
            f"{len(lost):,} class{'' if len(lost) == 1 else 'es'} none of whose files in a split "
            "can be read",
            "Training refuses to lose a class.",
            "Repair the files, or remove the class.",
            len(lost),
            tuple(
                f"{_place(survey.splits[split], survey.classes[label])}: "
                f"{had[split, label]:,} file{'' if had[split, label] == 1 else 's'}"
                for split, label in lost[:MOST_EXAMPLES]
            ),
        )


def structure(survey: Survey) -> Iterator[Finding]:
    """Yield findings on what training rejects, with its own error if no finding covers it."""
    found = list(_structural(survey))
    yield from found
    if survey.refusal and not found:
        yield Finding(
            "refused",
            "error",
            "training refuses this data",
            _sentence(survey.refusal),
            "",
            1,
        )


def _structural(survey: Survey) -> Iterator[Finding]:
    if survey.problem:
        yield Finding(
            "split",
            "error",
            "the data cannot be split as it is asked for",
            _sentence(survey.problem),
            "",
            1,
        )
    if survey.alike:
        count = len(survey.alike)
        yield Finding(
            "alike_classes",
            "error",
            f"{count:,} class{'' if count == 1 else 'es'} under several names",
            "Their names differ only by case, spaces or Unicode normalization, and training "
            "requires distinct names.",
            "Join the folders, or correct the labels, so that each class has one name.",
            count,
            tuple(
                " and ".join(repr(shown(name, survey.base)) for name in names)
                for names in survey.alike[:MOST_EXAMPLES]
            ),
        )
    if survey.empty:
        yield Finding(
            "empty_class",
            "error",
            f"{len(survey.empty):,} class folder{'' if len(survey.empty) == 1 else 's'} "
            "without images",
            "Training refuses a class that it cannot learn.",
            "Add images, or remove or hide the folder.",
            len(survey.empty),
            tuple(_place(split, name) for split, name in survey.empty[:MOST_EXAMPLES]),
        )
    if survey.groups:
        yield from _shared_groups(survey)
    counts = counts_by_class(survey)
    if "train" in survey.splits:
        train = survey.splits.index("train")
        unknown = [
            _place(survey.splits[split], survey.classes[label])
            for label, row in enumerate(counts)
            for split, count in enumerate(row)
            if count and not row[train]
        ]
        if unknown:
            yield Finding(
                "class_without_training",
                "error",
                f"{len(unknown):,} class{'' if len(unknown) == 1 else 'es'} without training "
                "images",
                "The network has no name for what it never saw; such images cannot be scored.",
                "Add training images, or correct the name of the class.",
                len(unknown),
                tuple(unknown[:MOST_EXAMPLES]),
            )


def doubtful(survey: Survey) -> Iterator[Finding]:
    """Yield findings on folders or labels that are read as classes but probably are not."""
    if survey.doubt:
        yield Finding(
            survey.doubt.kind,
            "error" if survey.doubt.certain else "warning",
            "folders read as classes may be none"
            if survey.doubt.kind == "layout"
            else "labels may be no names of classes",
            f"{survey.doubt.what}.",
            survey.doubt.todo,
            1,
        )


def _shared_groups(survey: Survey) -> Iterator[Finding]:
    """Yield findings on groups across given splits; a drawn split keeps groups together."""
    splits_of: dict[str, set[int]] = {}
    for at, group in enumerate(survey.groups):
        splits_of.setdefault(group, set()).add(survey.home_of(at))
    shared = sorted(group for group, splits in splits_of.items() if len(splits) > 1)
    if shared:
        yield Finding(
            "group_leak",
            "error",
            f"{len(shared):,} group{'' if len(shared) == 1 else 's'} in more than one split",
            "Images of one group are too alike to be trained on and scored.",
            "Keep each group in one split.",
            len(shared),
            tuple(shown(group) for group in shared[:MOST_EXAMPLES]),
        )


def missing_classes(survey: Survey) -> Iterator[Finding]:
    """Yield findings on classes without images in a split, which cannot be scored there."""
    if "train" not in survey.splits:
        return
    train = survey.splits.index("train")
    missing = [
        _place(name, survey.classes[label])
        for label, row in enumerate(counts_by_class(survey))
        for split, name in enumerate(survey.splits)
        if row[train] and not row[split] and (name, survey.classes[label]) not in survey.empty
    ]
    if missing:
        yield Finding(
            "missing_class",
            "warning",
            f"{len(missing):,} class{'' if len(missing) == 1 else 'es'} missing from a split",
            "The accuracy on them is not measured.",
            "Move some images of each into that split.",
            len(missing),
            tuple(missing[:MOST_EXAMPLES]),
        )


def counts_by_class(survey: Survey) -> list[list[int]]:
    """Return the number of images of each class in each split."""
    counts = np.zeros((len(survey.classes), max(1, len(survey.splits))), dtype=np.int64)
    np.add.at(counts, (np.asarray(survey.class_of), np.asarray(survey.split_of)), 1)
    rows: list[list[int]] = counts.tolist()
    return rows


def _sentence(text: str) -> str:
    return f"{text}{'' if text.endswith(('.', '?')) else '.'}"


def _place(split: str, name: str) -> str:
    return name if split == "all" else f"{split}/{name}"
