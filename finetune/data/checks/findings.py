"""Findings of a dataset inspection: what is wrong, why it matters and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.config.base import AUTO
from finetune.config.data import DataConfig
from finetune.data.checks.duplicates import MOST_EXAMPLES, copies, equal_groups, near_copies
from finetune.data.checks.group_names import suggest_group_pattern
from finetune.data.checks.inspect_dataset import DatasetInspection
from finetune.data.checks.structure import (
    counts_by_class,
    doubtful,
    lost_classes,
    missing_classes,
    structure,
    unreadable,
)
from finetune.data.checks.survey import Survey
from finetune.data.images import is_other_photo, shown
from finetune.data.levels import auto_levels, doubts, extents
from finetune.data.splits.holdout import keys_of
from finetune.results.check import Finding

IMBALANCED_FROM = 5.0
FEW_IMAGES = 10
_LEVELS = ("error", "warning", "note")
_MODES = {
    "CMYK": "CMYK",
    "1": "1-bit",
    "P": "palette",
    "LA": "transparent",
    "PA": "transparent",
    "RGBA": "transparent",
    "I": "more than 8 bits",
    "F": "more than 8 bits",
}


def all_findings(
    survey: Survey, inspections: DatasetInspection, config: DataConfig, *, input_size: int | None
) -> tuple[Finding, ...]:
    """Return all findings, most severe first."""
    groups = equal_groups(inspections)
    found = [
        *unreadable(survey, inspections, config),
        *lost_classes(survey, inspections, config),
        *structure(survey),
        *doubtful(survey),
        *copies(survey, groups),
        *missing_classes(survey),
        *_balance(survey, config),
        *near_copies(survey, inspections, groups),
        *_too_small(survey, inspections, input_size),
        *_levels(survey, inspections, config),
        *_conversions(survey, inspections),
        *_named_groups(survey, config),
        *_left_out(survey),
    ]
    return tuple(sorted(found, key=lambda finding: _LEVELS.index(finding.level)))


def _balance(survey: Survey, config: DataConfig) -> Iterator[Finding]:
    split = survey.splits.index("train") if "train" in survey.splits else 0
    counts = {
        survey.classes[label]: row[split]
        for label, row in enumerate(counts_by_class(survey))
        if row[split]
    }
    if not counts:
        return
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    ratio = counts[most] / counts[least]
    if ratio >= IMBALANCED_FROM:
        handled = config.balance != "none"
        yield Finding(
            "imbalance",
            "note" if handled else "warning",
            f"{most} has {counts[most]:,} training images, {ratio:,.1f} times the "
            f"{counts[least]:,} of {least}",
            "A network that says the frequent class more often looks better than it is.",
            f"data.balance is {config.balance}."
            if handled
            else "Watch balanced accuracy; data.balance: weights makes rare classes count.",
            1,
        )
    few = [f"{name}: {count}" for name, count in counts.items() if count < FEW_IMAGES]
    if few:
        yield Finding(
            "few_images",
            "warning",
            f"{len(few):,} class{'' if len(few) == 1 else 'es'} with fewer than {FEW_IMAGES} "
            "training images",
            "The network cannot learn them reliably, and their accuracy is mostly chance.",
            "Add images, or join classes.",
            len(few),
            tuple(few[:MOST_EXAMPLES]),
        )


def _too_small(
    survey: Survey, inspections: DatasetInspection, input_size: int | None
) -> Iterator[Finding]:
    if input_size is None:
        return
    readable = inspections.readable
    small = readable[inspections.size[readable].min(axis=1) < input_size]
    if len(small):
        share = len(small) / len(readable)
        yield Finding(
            "small",
            "warning" if share >= 0.01 else "note",
            f"{len(small):,} image{'' if len(small) == 1 else 's'} ({share:.0%}) smaller than the "
            f"{input_size} px that the network looks at",
            "Enlarged, they are blurred, and the network works on pixels that say nothing.",
            "Use larger originals, or a smaller model.preprocessing (resize and crop).",
            len(small),
            tuple(
                f"{shown(survey.paths[at], survey.base)}: {width} x {height}"
                for at in small[:MOST_EXAMPLES]
                for width, height in [inspections.size[at]]
            ),
        )


def _levels(
    survey: Survey, inspections: DatasetInspection, config: DataConfig
) -> Iterator[Finding]:
    """Yield findings on images with more than 8 bits that become nearly black or white."""
    found = extents([survey.paths[at] for at in inspections.readable])
    if not found:
        return
    levels = auto_levels(found) if config.levels == AUTO else config.levels
    for what, todo in doubts(config.levels, levels, found):
        yield Finding(
            "levels",
            "warning",
            what,
            "The network sees 256 levels between black and white, the same for every image.",
            todo,
            len(found),
        )


def _conversions(survey: Survey, inspections: DatasetInspection) -> Iterator[Finding]:
    """Yield findings on images that are not plain colour or grey, and on rare formats."""
    texts = {
        "mode": (
            "They are converted to RGB when they are read.",
            "Look at one or two of them, if they should matter.",
        ),
        "frames": (
            "The first one is used.",
            "Save the frames as files, if the others should count.",
        ),
        "odd_format": (
            "What is saved unlike all others is often no photo but a placeholder or a logo.",
            "Look at what it shows.",
        ),
    }
    for odd in odd_images(inspections):
        why, todo = texts[odd.kind]
        yield Finding(
            odd.kind,
            "note",
            odd.title,
            why,
            todo,
            len(odd.positions),
            _paths(survey, odd.positions),
        )


@dataclass(frozen=True)
class OddImages:
    """Positions of images that are unlike most photos."""

    kind: str
    title: str
    positions: NDArray[np.int64]


def odd_images(inspections: DatasetInspection) -> Iterator[OddImages]:
    """Yield images that are not plain colour or grey, have several frames, or a rare format."""
    words = np.array([_mode_words(mode) for _, mode in inspections.kinds] or [""], dtype=object)
    readable = inspections.readable
    found = words[inspections.kind[readable]]
    odd = readable[found != ""]
    if len(odd):
        kinds = Counter(found[found != ""])
        listed = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common())
        are = "image is" if len(odd) == 1 else "images are"
        yield OddImages("mode", f"{len(odd):,} {are} not plain colour or grey: {listed}", odd)
    animated = readable[inspections.frames[readable] > 1]
    if len(animated):
        several = f"image{'' if len(animated) == 1 else 's'} with several frames or pages"
        yield OddImages("frames", f"{len(animated):,} {several}", animated)
    formats: Counter[str] = Counter()
    counts = np.bincount(inspections.kind[readable], minlength=len(inspections.kinds))
    for (format_name, _), count in zip(inspections.kinds, counts.tolist(), strict=True):
        formats[format_name] += count
    rare = [name for name, count in formats.items() if count <= 3 and count * 100 <= len(readable)]
    for name in rare:
        chosen = [k for k, (format_name, _) in enumerate(inspections.kinds) if format_name == name]
        places = np.flatnonzero(np.isin(inspections.kind, chosen))
        title = f"{len(places):,} {name} among {len(readable):,} images"
        yield OddImages("odd_format", title, places)


def _named_groups(survey: Survey, config: DataConfig) -> Iterator[Finding]:
    """Yield a note on names that show which images belong together, such as those of a person."""
    if config.group_pattern or survey.groups:
        return
    labels = list(survey.class_of)
    found = suggest_group_pattern(keys_of(survey.paths, survey.base), labels)
    if found is not None:
        in_yaml = found.pattern.replace("'", "''")
        yield Finding(
            "named_groups",
            "note",
            f"names such as {shown(found.example)} show {found.num_groups:,} groups of images; "
            f"data.group_pattern: '{in_yaml}' keeps each group in one split",
            "Images of one person, scene or video are alike; in two splits, they make the accuracy "
            "on new ones look better than it is.",
            "Set it if the images of a group show the same thing.",
            found.num_images,
        )


def _mode_words(mode: str) -> str:
    return _MODES.get(mode) or ("more than 8 bits" if mode.startswith("I;") else "")


def _left_out(survey: Survey) -> Iterator[Finding]:
    hidden = set(survey.hidden)
    for kind, level, places, what, why, todo in (
        (
            "link",
            "warning",
            survey.links,
            "link{} not followed",
            "They lead to nowhere, in a circle, or to a folder that is read already.",
            "Repair or remove them.",
        ),
        (
            "misnamed",
            "warning",
            survey.misnamed,
            "photo{} with names of other files",
            "By their content they are photos; files without an image's ending are not read.",
            "Rename them to .jpg, or to the suffix of their format.",
        ),
        (
            "other_photo",
            "warning",
            [path for path in survey.skipped if is_other_photo(path)],
            "photo{} in unsupported formats",
            "They would be missing from training, and nothing else says so.",
            "Save them as JPEG.",
        ),
        (
            "skipped",
            "note",
            [path for path in survey.skipped if not is_other_photo(path)],
            "file{} skipped",
            "Their names or folders indicate that they are not images of a class.",
            "Nothing has to be done, unless an image is among them.",
        ),
        (
            "system",
            "note",
            [path for path in survey.system if path not in hidden],
            "folder{} of the system or of a tool skipped",
            "They contain deleted files, thumbnails or copies, not photos of a class.",
            "Nothing has to be done.",
        ),
        (
            "hidden",
            "note",
            survey.hidden,
            "hidden file{0} or folder{0} skipped",
            "Names that start with a dot are skipped.",
            "Nothing has to be done.",
        ),
    ):
        if places:
            ending = "" if len(places) == 1 else "s"
            yield Finding(
                kind,
                level,
                f"{len(places):,} {what.format(ending)}",
                why,
                todo,
                len(places),
                tuple(shown(path, survey.base) for path in places[:MOST_EXAMPLES]),
            )
    for note in survey.notes:
        yield Finding("note", "note", note, "", "", 1)


def _paths(survey: Survey, positions: Iterable[int]) -> tuple[str, ...]:
    return tuple(shown(survey.paths[at], survey.base) for at in list(positions)[:MOST_EXAMPLES])
