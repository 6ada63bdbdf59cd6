"""Preflight check: a quick inspection of every file before a run.

For a file that is not in the inspection cache, the header is read and the end is compared with what
the format requires, in some 50 microseconds. A file that was inspected before, here or by
``check-data``, costs a query. A run on known files thus starts at once, and all damaged files are
still reported together before training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from finetune.core.errors import DataError, UnreadableError
from finetune.core.reporter import Reporter
from finetune.core.text import plural
from finetune.data.checks.inspect_file import FileInspection, inspect_file
from finetune.data.checks.inspection_cache import InspectionCache, key_of_file
from finetune.data.checks.known_copies import KnownCopies, find_copies
from finetune.data.images import Images, shown, shown_few

_MOST_LISTED = 20
_MOST_FAULTS = 3
_THREADS = 8  # files on a server: each thread waits for its own
_AT_ONCE = 256

T = TypeVar("T")

Skipped = tuple[Path, str]
"""Path of a file that was left out, and the reason."""


@dataclass(frozen=True)
class PreflightResult:
    """Result of a preflight check.

    Attributes:
        parts: Images of each split without the unreadable ones.
        skipped: Unreadable files that were left out.
        copies: Copies among the images that are left.
        verdict: One-line summary.
        worrying: Whether the summary should be shown as a warning.
    """

    parts: tuple[Images, ...]
    skipped: tuple[Skipped, ...]
    copies: KnownCopies
    verdict: str
    worrying: bool


def preflight_check(
    *parts: Images, on_unreadable: str, base: Path, reporter: Reporter
) -> PreflightResult:
    """Inspect every file of these splits that is not in the inspection cache.

    Args:
        on_unreadable: Value of ``data.on_unreadable``: fail or skip.
        base: Folder that paths in messages are relative to.

    Raises:
        DataError: Files cannot be read and must not be skipped, a class would have no images left,
            or files could not be inspected because of the machine.
    """
    start = time.perf_counter()
    paths = [str(path) for images in parts for path in images.paths]
    inspections, num_new = _inspections(paths, reporter)
    bad = sorted(
        (Path(path), inspection.reason)
        for path, inspection in zip(paths, inspections, strict=True)
        if inspection.reason
    )
    elapsed_s = time.perf_counter() - start
    faults = [
        path
        for path, inspection in zip(paths, inspections, strict=True)
        if inspection.machine_fault
    ]
    if faults:
        raise _machine_fault(faults, dict(bad), len(paths), base)
    if bad and on_unreadable == "fail":
        raise _refusal(bad, len(paths), base)
    kept = tuple(_without(images, {path for path, _ in bad}) for images in parts) if bad else parts
    _refuse_lost_classes(parts, kept)
    left = [one for one in inspections if not one.reason]
    copies = find_copies(kept, left)
    new = f" ({num_new:,} for the first time)" if num_new else ""
    facts = f"checked {plural(len(paths), 'image')}{new} in {elapsed_s:.2f} s: "
    if bad:
        facts += (
            f"{len(bad):,} cannot be read and {'is' if len(bad) == 1 else 'are'} left out "
            "(data.on_unreadable: skip): "
            f"{shown_few([path for path, _ in bad], base)}"
        )
    else:
        facts += "all can be read"
    verdict = f"{facts}; {_words_about(copies, len(parts))}"
    are_copies = bool(copies.leaked or copies.in_two_classes)
    return PreflightResult(kept, tuple(bad), copies, verdict, bool(bad) or are_copies)


def copies_of_training(train: Images, scored: Images, reporter: Reporter) -> KnownCopies:
    """Return the copies between training images and those of an evaluation."""
    paths = [str(path) for images in (train, scored) for path in images.paths]
    inspections, _ = _inspections(paths, reporter)
    return find_copies((train, scored), inspections)


def dropping_unreadable(
    work: Callable[[int], T],
    *,
    on_unreadable: str,
    reporter: Reporter,
    decide: Callable[[Callable[[], list[Path]]], list[Path]] = lambda inspect: inspect(),
) -> T:
    """Run work that begins with a preflight check, and restart it if images turn out to be broken.

    Images that passed the check but fail to decode are stored in the inspection cache, so that the
    next check skips them. Whether an image is broken is decided by a full inspection after the
    work has ended, because the machine may have caused the failure.

    Args:
        work: Function of the number of the attempt, from 0.
        decide: Function that returns the result of an inspection, of several processes the first
            one's.

    Raises:
        UnreadableError: Broken images must not be skipped, or the images are not broken.
    """
    known: set[Path] = set()
    attempt = 0
    while True:
        try:
            return work(attempt)
        except UnreadableError as error:
            known |= set(decide(partial(_broken, error, known, on_unreadable)))
            reporter.warn(f"{error.found[0][0]}: failed to decode; restarting without it")
            attempt += 1


def _broken(error: UnreadableError, known: Collection[Path], on_unreadable: str) -> list[Path]:
    """Return the images of an error that are broken indeed, and note them in the inspection cache.

    Raises:
        UnreadableError: As `dropping_unreadable`.
    """
    suspects = {path for path, _ in error.found} - error.passing - set(known)
    # A file that is completed during its inspection must get another key than the result.
    keys = {path: key_of_file(str(path)) for path in suspects}
    inspections = {path: inspect_file(str(path), full=True) for path in suspects}
    broken = {
        path: inspection
        for path, inspection in inspections.items()
        if inspection.reason and inspection.lasting
    }
    with InspectionCache() as cache:
        cache.keep((keys[path], inspection) for path, inspection in broken.items())
    passing = error.passing | (suspects - broken.keys())
    if passing:
        raise UnreadableError(error.found, passing=passing) from error
    if on_unreadable == "fail" or not broken:
        raise error
    return list(broken)


def known_contents(paths: Sequence[Path]) -> list[str]:
    """Return the content hash of each image in the inspection cache, else its path."""
    names = [str(path) for path in paths]
    keys = [key_of_file(name) for name in names]
    with InspectionCache() as cache:
        known = cache.find(keys)
    inspections = [known.get(key, FileInspection()) if key else FileInspection() for key in keys]
    return [
        inspection.pixels.hex() or name for inspection, name in zip(inspections, names, strict=True)
    ]


def sizes_of(images: Images, most: int, reporter: Reporter) -> list[tuple[int, int]]:
    """Return width and height, from the file headers, of at most ``most`` sampled images."""
    number = min(most, len(images))
    paths = [str(images.paths[i * len(images) // number]) for i in range(number)]
    inspections, _ = _inspections(paths, reporter)
    return [(inspection.width, inspection.height) for inspection in inspections]


def _inspections(paths: Sequence[str], reporter: Reporter) -> tuple[list[FileInspection], int]:
    """Return the inspection of each file, and the number of new inspections."""
    with InspectionCache() as cache:
        keys = [key_of_file(path) for path in paths]
        known = cache.find(keys)
        new = [at for at, key in enumerate(keys) if key is None or key not in known]
        fresh: dict[int, FileInspection] = {}
        if len(new) <= _AT_ONCE:
            fresh.update((at, inspect_file(paths[at], full=False)) for at in new)
        else:
            looking = reporter.track(_in_threads(paths, new), "check images", total=len(new))
            fresh.update(looking)
        for at, inspection in fresh.items():
            if (
                inspection.reason and not inspection.decoded
            ):  # other threads may have used the memory
                fresh[at] = inspect_file(paths[at], full=True)
        cache.keep((keys[at], inspection) for at, inspection in fresh.items())
    inspections = [
        fresh[at] if at in fresh else known[key]  # type: ignore[index]  # a file without a key is new
        for at, key in enumerate(keys)
    ]
    return inspections, len(new)


def _in_threads(
    paths: Sequence[str], positions: Sequence[int]
) -> Iterator[tuple[int, FileInspection]]:
    def look_at_some(some: Sequence[int]) -> list[tuple[int, FileInspection]]:
        return [(at, inspect_file(paths[at], full=False)) for at in some]

    chunks = [positions[i : i + _AT_ONCE] for i in range(0, len(positions), _AT_ONCE)]
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for looked in pool.map(look_at_some, chunks):
            yield from looked
    finally:
        pool.shutdown(cancel_futures=True)


def _refusal(bad: Sequence[Skipped], total: int, base: Path) -> DataError:
    todo = "or set data.on_unreadable: skip"
    if len(bad) == 1:
        path, reason = bad[0]
        return DataError(
            f"cannot be read: {reason}",
            kind="data.undecodable",
            path=path,
            to_do=f"Repair or remove it, {todo}",
        )
    lines = [f"  {shown(path, base)}: {reason}" for path, reason in bad[:_MOST_LISTED]]
    if len(bad) > _MOST_LISTED:
        more = len(bad) - _MOST_LISTED
        lines.append(f"  … and {more:,} more; `finetune check-data --json` lists them all")
    return DataError(
        "\n".join([f"{len(bad):,} of {total:,} files cannot be read", *lines]),
        kind="data.undecodable",
        path=base,
        to_do=f"repair or remove them, {todo}",
    )


def _machine_fault(
    faults: Sequence[str], reasons: dict[Path, str], total: int, base: Path
) -> DataError:
    """Return the error for files that could not be inspected; these are never skipped."""
    listed = "; ".join(
        f"{shown(path, base)}: {reasons[Path(path)]}" for path in faults[:_MOST_FAULTS]
    )
    return DataError(
        f"{len(faults):,} of {total:,} files could not be inspected now: {listed}",
        kind="data.machine_fault",
        path=base,
        to_do="The files may be intact. Free memory, or repair what failed, and run again",
    )


def _without(images: Images, bad: set[Path]) -> Images:
    kept = images.subset([i for i, path in enumerate(images.paths) if path not in bad])
    return replace(kept, skipped=images.skipped)


def _refuse_lost_classes(before: Sequence[Images], after: Sequence[Images]) -> None:
    for old, new in zip(before, after, strict=True):
        for name, had, has in zip(old.class_names, old.counts(), new.counts(), strict=True):
            if had and not has:
                raise DataError(
                    f"class {name!r}: none of its {had:,} files in a split can be read",
                    kind="data.class_unreadable",
                    to_do="`finetune check-data` lists the reasons",
                )


def _words_about(copies: KnownCopies, splits: int) -> str:
    found = []
    if copies.leaked:
        found.append(
            f"{_they_are(len(copies.leaked), 'validation image')} also in the training split"
        )
    if copies.in_two_classes:
        found.append(f"{_they_are(copies.in_two_classes, 'image')} in more than one class")
    if found:
        return f"but {' and '.join(found)} (`finetune check-data` names them)"
    if not copies.all_decoded:
        return "`finetune check-data` decodes them and looks for more copies"
    return "no copies in two classes" + (" or two splits" if splits > 1 else "")


def _they_are(number: int, noun: str) -> str:
    return f"{plural(number, noun)} {'is' if number == 1 else 'are'}"
