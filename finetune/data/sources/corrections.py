"""Corrections of labels: a table of photos to relabel or to leave out; imports no torch.

No file is changed: corrections are applied to the list of images when it is read.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.core.errors import DataError
from finetune.core.files import expand_user
from finetune.core.text import did_you_mean, first_few, plural
from finetune.data.images import Images, TrainVal, below, shown
from finetune.data.sources.table_text import (
    Problems,
    cleaned,
    delimiter_of,
    read_text,
    records,
    without_declaration,
)

KEY = "data.corrections"
KEEP, RELABEL, DROP = "keep", "relabel", "drop"
ACTIONS = (KEEP, RELABEL, DROP)
_COLUMNS = ("path", "action", "label")
_MOST_COMPARED = 10_000
"""Largest number of paths among which the most similar one is sought."""


@dataclass(frozen=True)
class Correction:
    """Decision about a photo, a row of the table.

    Attributes:
        line: Line of the row, from 1.
        path: Path as written.
        action: ``keep``, ``relabel`` or ``drop``.
        label: New class; empty unless the action is ``relabel``.
    """

    line: int
    path: str
    action: str
    label: str


@dataclass(frozen=True)
class Corrections:
    """Corrections of a table.

    Attributes:
        name: Path of the table.
        base: Folder that paths are relative to, that of the data.
        by_place: Correction of each photo, by its absolute path.
    """

    name: str
    base: Path
    by_place: Mapping[str, Correction]

    def of(self, paths: Iterable[Path | str]) -> list[Correction | None]:
        """Return the correction of each photo, or None."""
        return [self.by_place.get(_place(path)) for path in paths]

    def applied(self, images: Images) -> Images:
        """Return the images with other labels, and without dropped ones.

        Raises:
            DataError: A row names a class that does not exist.
        """
        found = self.of(images.paths)
        if not any(found):
            return images
        label_of = {name: label for label, name in enumerate(images.class_names)}
        problems = Problems(self.name)
        for one in filter(None, found):
            if one.action == RELABEL and one.label not in label_of:
                problems.add(
                    one.line,
                    "data.unknown_class",
                    f"class {one.label!r} does not exist in the data",
                    did_you_mean(one.label, images.class_names),
                )
        problems.refuse()
        labels = tuple(
            label if one is None or one.action != RELABEL else label_of[one.label]
            for one, label in zip(found, images.labels, strict=True)
        )
        kept = [at for at, one in enumerate(found) if one is None or one.action != DROP]
        relabelled = replace(images, labels=labels)
        if len(kept) == len(images):
            return relabelled
        return replace(relabelled.subset(kept), skipped=images.skipped, links=images.links)

    def applied_to_run(self, data: TrainVal, others: Callable[[], Iterable[Path]]) -> TrainVal:
        """Return the data of a run with corrected labels.

        Validation images that were held out stay the same ones.

        Args:
            others: Function that returns the photos of the data that are in neither split.

        Raises:
            DataError: A row names no photo of the data or no class, or a class is left without
                training images.
        """
        self._refuse_unknown(data, others)
        train, val = self.applied(data.train), self.applied(data.val)
        for name, before, now in zip(
            train.class_names, data.train.counts(), train.counts(), strict=True
        ):
            if before and not now:
                raise DataError(
                    f"leaves class {name!r} without training images",
                    kind="data.empty_class",
                    key=KEY,
                    path=self.name,
                    to_do="keep one or more of them, or remove the class from the data",
                )
        counts = Counter(one.action for one in self.by_place.values())
        said = f"{plural(counts[RELABEL], 'label')} corrected, {counts[DROP]:,} left out"
        kept = f", {counts[KEEP]:,} confirmed" if counts[KEEP] else ""
        return replace(
            data,
            train=train,
            val=val,
            notes=(*data.notes, f"{self.name}: {said}{kept}"),
            corrected=tuple((one.path, one.action, one.label) for one in self.by_place.values()),
        )

    def _refuse_unknown(self, data: TrainVal, others: Callable[[], Iterable[Path]]) -> None:
        """Raise if a row names a photo that is not in the data."""
        missing = set(self.by_place) - {
            _place(path) for images in (data.train, data.val) for path in images.paths
        }
        if missing:
            missing -= {_place(path) for path in others()}
        problems = Problems(self.name)
        for place, one in self.by_place.items():
            if place in missing:
                problems.add(
                    one.line,
                    "data.image_not_found",
                    f"no photo of the data: {shown(one.path)} (paths are relative to "
                    f"{shown(self.base)})",
                    self._similar(one.path, data),
                )
        problems.refuse()

    def _similar(self, path: str, data: TrainVal) -> str:
        """Return a question with the most similar path, among those of the same name or folder."""
        meant = Path(path)
        every = [image for part in (data.train, data.val) for image in part.paths]
        near = [
            image
            for image in every
            if image.name == meant.name or image.parent.name == meant.parent.name
        ]
        return did_you_mean(
            path, [below(one, self.base) for one in (near or every)[:_MOST_COMPARED]]
        )


def read_corrections(given: str, base: Path) -> Corrections:
    """Read the table that ``data.corrections`` names.

    Args:
        base: Folder of the data, which paths are relative to.

    Raises:
        DataError: The table cannot be read or has problems; the message lists them.
    """
    file = expand_user(given)
    name = shown(file)
    try:
        declared, text = without_declaration(read_text(file))
        delimiter = declared or delimiter_of(text, _COLUMNS, usual=",")
        rows = list(records(text, name, delimiter))
    except DataError as error:
        raise error.at(key=KEY) from None
    header = [cleaned(title).casefold() for title in rows[0][1]] if rows else []
    missing = [column for column in _COLUMNS[:2] if column not in header]
    if missing:
        raise DataError(
            f"has no column {first_few(missing)}",
            kind="data.missing_column",
            key=KEY,
            path=name,
            to_do=f"name the columns in the first line: {','.join(_COLUMNS)}",
        )
    problems = Problems(name)
    found: dict[str, Correction] = {}
    for line, fields in rows[1:]:
        one = _correction(line, header, fields, problems)
        if one is None:
            continue
        before = found.setdefault(_place(base / one.path), one)
        if (before.action, before.label) != (one.action, one.label):
            problems.add(
                line,
                "data.conflicting_rows",
                f"{shown(one.path)} has another action or label in line {before.line}",
                "remove one of the two rows",
            )
    problems.refuse()
    return Corrections(name, base, found)


def _correction(
    line: int, header: Sequence[str], fields: Sequence[str], problems: Problems
) -> Correction | None:
    if len(fields) > len(header):
        what = f"has {len(fields)} fields, but the first line has {len(header)} columns"
        problems.add(line, "data.number_of_fields", what)
        return None
    values = {title: cleaned(value) for title, value in zip(header, fields, strict=False)}
    path, action = values.get("path", ""), values.get("action", "").lower()
    label = unicodedata.normalize("NFC", values.get("label", ""))
    if not path or "\0" in path:
        what = "the path contains a NUL byte" if path else "the path is empty"
        problems.add(line, "data.invalid_path", what)
        return None
    if not action:
        return None  # not decided yet
    if action not in ACTIONS:
        problems.add(
            line,
            "data.unknown_action",
            f"the action is {action!r}, not {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}",
            did_you_mean(action, ACTIONS),
        )
        return None
    if action == RELABEL and not label:
        problems.add(
            line, "data.empty_label", "relabel needs the correct class in the column label"
        )
        return None
    return Correction(line, path, action, label if action == RELABEL else "")


def _place(path: Path | str) -> str:
    return os.path.abspath(path)  # noqa: PTH100
