"""``finetune check-data --report``: a page that shows what was found, and a table of all pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.checkpoints.run_dir import make_output
from finetune.commands.check_data import Checked
from finetune.core.files import is_folder, write_csv, write_text
from finetune.core.reporter import Reporter
from finetune.core.text import today, valid_utf8
from finetune.core.threads import on_cores
from finetune.data.checks.duplicates import alike_pairs, equal_groups
from finetune.data.checks.findings import odd_images
from finetune.data.images import below
from finetune.inference.thumbnails import photo_urls, thumbnail
from finetune.report.check_data import verdict
from finetune.report.page import CheckFacts, OddPhotos, Pair, Photo, render_check_page
from finetune.report.page.data_page import PAIR_KINDS, where_found
from finetune.results.check import CheckReport

DRAWN, COMPARED, LISTED = 96, 600, 2000
"""Maximum numbers of pairs: drawn, compared by their pixels for the order, and listed."""
ODD = 12
"""Maximum number of pictures of each kind of odd image."""
_SIZES = 12
_SIDE = 32
_KINDS = tuple(PAIR_KINDS)
_AT_ONCE = 32
HEADER = (
    *("found", "path", "class", "split", "other_path", "other_class", "other_split"),
    "different_bits",
)
"""Columns of the table of pairs; the last one is empty for images with the same pixels."""


@dataclass(frozen=True)
class _Found:
    """A pair of positions, closest first; ``bits`` is None for images with the same pixels."""

    first: int
    second: int
    kinds: tuple[str, ...]
    bits: int | None
    difference: float | None = None

    @property
    def rank(self) -> tuple[float, int, int]:
        return (
            (-1.0 if self.bits is None else self.difference or 0.0),
            min(map(_KINDS.index, self.kinds)),
            self.bits or 0,
        )


def write_check_page(checked: Checked, output: str | None, reporter: Reporter) -> CheckReport:
    """Write the page and the table of pairs, and return the report with their paths.

    Args:
        output: Path of the page, or a folder; by default the page is in the working directory, with
            the name of the data.

    Raises:
        OutputError: A file cannot be written.
    """
    report = checked.report
    root = Path(report.data.rpartition(":")[2]).resolve()
    name = f"{root.name if is_folder(root) else root.stem}-check.html"
    page = Path(output if output is not None else name)
    page = page / name if is_folder(page) else page
    table = page.with_name(f"{page.stem}-pairs.csv")
    make_output(page.parent)
    pairs, complete = _pairs(checked)
    write_csv(table, HEADER, (_csv_row(checked, pair) for pair in pairs))
    drawn, others = _chosen(checked, pairs, reporter)
    odd = _odd(checked)
    wanted = [at for pair in drawn for at in (pair.first, pair.second)]
    wanted += [at for group in odd for at in group[1]]
    urls = _thumbnails(checked, wanted, reporter)
    counts = Counter(kind for pair in pairs for kind in pair.kinds[:1])
    facts = CheckFacts(
        report=_printable(replace(report, files=())),
        verdict=verdict(report),
        pairs=[
            *(_pair(checked, pair, urls) for pair in drawn),
            *(_pair(checked, pair, {}) for pair in others),
        ],
        num_pairs={kind: counts[kind] for kind in _KINDS},
        complete=complete,
        odd=[
            OddPhotos(title, count, [_photo(checked, at, urls) for at in some], notes)
            for title, some, count, notes in odd
        ],
        sizes=_frequent_sizes(checked),
        table=table.name,
        written=today(),
    )
    write_text(page, render_check_page(facts))
    return replace(report, files=(str(page), str(table)))


def _pairs(checked: Checked) -> tuple[list[_Found], bool]:
    """Return all pairs, equal ones first, and whether all were found."""
    survey, groups = checked.found, equal_groups(checked.inspections)
    alike = alike_pairs(checked.inspections, groups)

    def kinds(first: int, second: int) -> tuple[str, ...]:
        apart = survey.class_of[first] != survey.class_of[second]
        # Those that training draws: the table names them, too.
        across = survey.split_of[first] != survey.split_of[second]
        return (*["classes"] * apart, *["splits"] * across) or ("same",)

    pairs = [
        _Found(group[0], other, kinds(group[0], other), None)
        for group in groups
        for other in group[1:]
    ]
    for (first, second), bits in zip(alike.pairs.tolist(), alike.bits.tolist(), strict=True):
        pairs.append(_Found(first, second, kinds(first, second), bits))
    # Until they are compared by their pixels, the number of bits is the difference.
    pairs.sort(key=lambda pair: (-1 if pair.bits is None else pair.bits, pair.rank[1]))
    return pairs, alike.complete


def _chosen(
    checked: Checked, pairs: Sequence[_Found], reporter: Reporter
) -> tuple[list[_Found], list[_Found]]:
    """Return the pairs to draw, closest first, and other pairs for the list.

    Each kind gets its share of the drawings, so that many copies in one class do not hide a pair in
    two classes. Hashes find candidates; the pixels of small grey versions decide how close they
    are.
    """
    by_kind: dict[str, list[_Found]] = {kind: [] for kind in _KINDS}
    for pair in pairs:
        by_kind[pair.kinds[0]].append(pair)
    some = [pair for kind in by_kind.values() for pair in kind[: COMPARED // len(_KINDS)]]
    batches = [some[start : start + _AT_ONCE] for start in range(0, len(some), _AT_ONCE)]
    compared = [
        pair
        for batch in reporter.track(batches, "compare pairs", total=len(batches))
        for pair in on_cores(lambda pair: _compared(checked, pair), batch)
    ]
    compared.sort(key=lambda pair: pair.rank)
    turns = [[pair for pair in compared if pair.kinds[0] == kind] for kind in _KINDS]
    in_turn = (
        pair
        for round_ in range(max(map(len, turns), default=0))
        for turn in turns
        for pair in turn[round_ : round_ + 1]
    )
    drawn = sorted(islice(in_turn, DRAWN), key=lambda pair: pair.rank)
    places = {(pair.first, pair.second) for pair in drawn}
    others = [pair for pair in pairs if (pair.first, pair.second) not in places]
    return drawn, others[: LISTED - len(drawn)]


def _compared(checked: Checked, pair: _Found) -> _Found:
    if pair.bits is None:
        return pair
    first, second = (_small(checked.found.paths[at]) for at in (pair.first, pair.second))
    if first is None or second is None:  # it was readable before, or is of a rare format
        return replace(pair, difference=1.0)
    return replace(pair, difference=float(np.abs(first - second).mean()) / 255)


def _small(path: str) -> NDArray[np.float64] | None:
    """Return a small grey version of a photo; of a JPEG, only so many pixels are decoded."""
    try:
        with Image.open(path) as image:
            image.draft("L", (2 * _SIDE, 2 * _SIDE))
            small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
            return np.asarray(small, dtype=np.float64)
    except (OSError, Image.DecompressionBombError):
        return None


def _odd(checked: Checked) -> list[tuple[str, list[int], int, list[str]]]:
    """Return title, some positions, number of positions and notes of each kind of odd image."""
    inspections = checked.inspections
    reasons = dict(sorted(inspections.reasons.items()))
    groups: list[tuple[str, list[int], int, list[str]]] = []
    if reasons:
        some = list(islice(reasons, LISTED))
        files = "1 file that cannot be read" if len(reasons) == 1 else "files that cannot be read"
        title = files if len(reasons) == 1 else f"{len(reasons):,} {files}"
        groups.append((title, some, len(reasons), [reasons[at] for at in some]))
    for odd in odd_images(inspections):
        groups.append((odd.title, odd.positions[:ODD].tolist(), len(odd.positions), []))
    readable = inspections.readable
    if len(readable):
        areas = inspections.size[readable].prod(axis=1, dtype=np.int64)
        ends = [int(readable[areas.argmin()]), int(readable[areas.argmax()])]
        sizes = [" x ".join(map(str, inspections.size[at].tolist())) for at in ends]
        notes = [f"smallest: {sizes[0]}", f"largest: {sizes[1]}"]
        if ends[0] != ends[1]:
            groups.append(("The smallest and the largest image", ends, 2, notes))
    return groups


def _thumbnails(checked: Checked, positions: Iterable[int], reporter: Reporter) -> dict[int, str]:
    """Return the data URL of each readable image."""
    wanted = [at for at in dict.fromkeys(positions) if checked.inspections.kind[at] >= 0]
    places = {checked.found.paths[at]: at for at in wanted}
    urls = photo_urls([*places], thumbnail, reporter, what="pictures")
    return {places[path]: url for path, url in urls.items()}


def _frequent_sizes(checked: Checked) -> list[tuple[tuple[int, int], int]]:
    inspections = checked.inspections
    counts = Counter(map(tuple, inspections.size[inspections.readable].tolist()))
    return [((width, height), count) for (width, height), count in counts.most_common(_SIZES)]


def _photo(checked: Checked, at: int, urls: dict[int, str]) -> Photo:
    survey = checked.found
    return Photo(
        path=valid_utf8(below(survey.paths[at], survey.base)),
        name=valid_utf8(survey.classes[survey.class_of[at]]),
        split=survey.splits[survey.split_of[at]],
        url=urls.get(at),
    )


def _pair(checked: Checked, pair: _Found, urls: dict[int, str]) -> Pair:
    first, second = (_photo(checked, at, urls) for at in (pair.first, pair.second))
    if first.url is None or second.url is None:
        first, second = replace(first, url=None), replace(second, url=None)
    return Pair(first, second, pair.kinds, pair.bits, pair.difference)


def _csv_row(checked: Checked, pair: _Found) -> tuple[str, ...]:
    survey = checked.found
    cells = [
        text
        for at in (pair.first, pair.second)
        for text in (
            below(survey.paths[at], survey.base),
            survey.classes[survey.class_of[at]],
            survey.splits[survey.split_of[at]],
        )
    ]
    found = f"{'equal' if pair.bits is None else 'alike'} {where_found(pair.kinds)}"
    return found, *cells, "" if pair.bits is None else str(pair.bits)


def _printable(report: CheckReport) -> CheckReport:
    findings = tuple(
        replace(one, title=valid_utf8(one.title), examples=tuple(map(valid_utf8, one.examples[:3])))
        for one in report.findings
    )
    return replace(report, data=valid_utf8(report.data), findings=findings)
