"""What is wrong or odd with a data set, why it matters, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from finetune.check_results import Finding
from finetune.config_data import DataConfig
from finetune.data.check_copies import MOST_EXAMPLES, copies, equal_groups, near_copies
from finetune.data.images import shown
from finetune.data.looks import Looks
from finetune.data.survey import Survey

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
    survey: Survey, looks: Looks, config: DataConfig, *, input_size: int | None
) -> tuple[Finding, ...]:
    """Every finding, the worst first."""
    groups = equal_groups(looks)
    found = [
        *_unreadable(survey, looks, config),
        *_lost(survey, looks, config),
        *_structure(survey),
        *copies(survey, groups),
        *_missing(survey),
        *_balance(survey, config),
        *near_copies(survey, looks, groups),
        *_too_small(survey, looks, input_size),
        *_conversions(survey, looks),
        *_left_out(survey),
    ]
    return tuple(sorted(found, key=lambda finding: _LEVELS.index(finding.level)))


def _unreadable(survey: Survey, looks: Looks, config: DataConfig) -> Iterator[Finding]:
    if not looks.reasons:
        return
    skip = config.on_unreadable == "skip"
    count = len(looks.reasons)
    yield Finding(
        "unreadable",
        "warning" if skip else "error",
        f"{count:,} file{'' if count == 1 else 's'} that cannot be read",
        "Training leaves them out." if skip else "Training stops before it begins.",
        "Repair or remove them." + ("" if skip else " data.on_unreadable: skip leaves them out."),
        count,
        tuple(
            f"{shown(survey.paths[at], survey.base)}: {reason}"
            for at, reason in sorted(looks.reasons.items())[:MOST_EXAMPLES]
        ),
    )


def _lost(survey: Survey, looks: Looks, config: DataConfig) -> Iterator[Finding]:
    """Classes of which nothing is left once unreadable files are skipped."""
    if config.on_unreadable != "skip":
        return
    had = Counter(zip(survey.split_of, survey.class_of, strict=True))
    bad = Counter((survey.split_of[at], survey.class_of[at]) for at in looks.reasons)
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


def _structure(survey: Survey) -> Iterator[Finding]:
    """What training would refuse; in its own words where nothing here says it."""
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


def _shared_groups(survey: Survey) -> Iterator[Finding]:
    """Across the splits that are given: one that is drawn keeps groups together."""
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


def _missing(survey: Survey) -> Iterator[Finding]:
    """Classes that a split cannot score."""
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
            "How well they are recognised is not measured there.",
            "Move some images of each into that split.",
            len(missing),
            tuple(missing[:MOST_EXAMPLES]),
        )


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
            "What is learned of them is chance, and so is their accuracy.",
            "Add images, or join classes.",
            len(few),
            tuple(few[:MOST_EXAMPLES]),
        )


def _too_small(survey: Survey, looks: Looks, input_size: int | None) -> Iterator[Finding]:
    if input_size is None:
        return
    readable = looks.readable
    small = readable[looks.size[readable].min(axis=1) < input_size]
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
                f"{shown(survey.paths[at], survey.base)}: {looks.size[at][0]} x {looks.size[at][1]}"
                for at in small[:MOST_EXAMPLES]
            ),
        )


def _conversions(survey: Survey, looks: Looks) -> Iterator[Finding]:
    """What is not plain colour or grey, and what stands out by its format."""
    words = np.array([_mode_words(mode) for _, mode in looks.kinds] or [""], dtype=object)
    readable = looks.readable
    found = words[looks.kind[readable]]
    odd = readable[found != ""]
    if len(odd):
        kinds = Counter(found[found != ""])
        listed = ", ".join(f"{count:,} {name}" for name, count in kinds.most_common())
        yield Finding(
            "mode",
            "note",
            f"{len(odd):,} image{' is' if len(odd) == 1 else 's are'} not plain colour or grey: "
            f"{listed}",
            "They are converted to RGB when they are read.",
            "Look at one or two of them, if they should matter.",
            len(odd),
            _paths(survey, odd),
        )
    animated = readable[looks.frames[readable] > 1]
    if len(animated):
        yield Finding(
            "frames",
            "note",
            f"{len(animated):,} image{'' if len(animated) == 1 else 's'} with several frames or "
            "pages",
            "The first one is used.",
            "Save the frames as files, if the others should count.",
            len(animated),
            _paths(survey, animated),
        )
    formats: Counter[str] = Counter()
    counts = np.bincount(looks.kind[readable], minlength=len(looks.kinds))
    for (format_name, _), count in zip(looks.kinds, counts.tolist(), strict=True):
        formats[format_name] += count
    rare = [name for name, count in formats.items() if count <= 3 and count * 100 <= len(readable)]
    for name in rare:
        chosen = [k for k, (format_name, _) in enumerate(looks.kinds) if format_name == name]
        places = np.flatnonzero(np.isin(looks.kind, chosen))
        yield Finding(
            "odd_format",
            "note",
            f"{len(places):,} {name} among {len(readable):,} images",
            "What is saved unlike all others is often no photo but a placeholder or a logo.",
            "Look at it." if len(places) == 1 else "Look at them.",
            len(places),
            _paths(survey, places),
        )


def _mode_words(mode: str) -> str:
    return _MODES.get(mode) or ("more than 8 bits" if mode.startswith("I;") else "")


def _left_out(survey: Survey) -> Iterator[Finding]:
    for kind, level, places, what, why, todo in (
        (
            "link",
            "warning",
            survey.links,
            "link{} to folders",
            "Links inside class folders are not followed, since they may lead in a circle.",
            "Put the images themselves there, or link the class folder as a whole.",
        ),
        (
            "skipped",
            "note",
            survey.skipped,
            "file{} skipped",
            "By their names or places they are no images of a class.",
            "Nothing has to be done, unless an image is among them.",
        ),
        (
            "hidden",
            "note",
            survey.hidden,
            "hidden file{0} or folder{0} skipped",
            "Names that begin with a dot are not read.",
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


def counts_by_class(survey: Survey) -> list[list[int]]:
    """Images of each class in each split."""
    counts = np.zeros((len(survey.classes), max(1, len(survey.splits))), dtype=np.int64)
    np.add.at(counts, (np.asarray(survey.class_of), np.asarray(survey.split_of)), 1)
    rows: list[list[int]] = counts.tolist()
    return rows


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '?')) else '.'}"


def _paths(survey: Survey, positions: Iterable[int]) -> tuple[str, ...]:
    return tuple(shown(survey.paths[at], survey.base) for at in list(positions)[:MOST_EXAMPLES])


def _place(split: str, name: str) -> str:
    return name if split == "all" else f"{split}/{name}"
