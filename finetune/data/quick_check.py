"""The check that every run makes: can each file be read, as far as a quick look can tell?

A file that was never looked at has its header read and its end compared with what its format ends
with: some 50 microseconds. What is remembered, from here or from ``check-data``, costs a query. So
a run of known files starts at once, and a damaged file is still named before training, with all
others of its kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from finetune.data.images import Images, shown, shown_few
from finetune.data.look import Look, look_at
from finetune.data.remembered import Remembered, key_of_file
from finetune.errors import DataError, UnreadableError
from finetune.progress import Progress

_MOST_LISTED = 20
_MOST_FAULTS = 3
_THREADS = 8  # where files lie on a server, each waits for its own
_AT_ONCE = 256

T = TypeVar("T")

Skipped = tuple[Path, str]
"""A file that was left out, and why."""


@dataclass(frozen=True)
class Checked:
    """What is left to train on or to evaluate.

    Attributes:
        verdict: One line for people.
        worrying: Something deserves a warning.
    """

    parts: tuple[Images, ...]
    skipped: tuple[Skipped, ...]
    verdict: str
    worrying: bool


def quick_check(*parts: Images, on_unreadable: str, base: Path, progress: Progress) -> Checked:
    """Look at every file of these splits that is not known yet.

    Raises:
        DataError: files cannot be read and are not to be skipped, or a class has no other.
    """
    start = time.perf_counter()
    paths = [str(path) for images in parts for path in images.paths]
    looks, num_new = _looks(paths, progress)
    bad = sorted(
        (Path(path), look.reason) for path, look in zip(paths, looks, strict=True) if look.reason
    )
    elapsed_s = time.perf_counter() - start
    faults = [path for path, look in zip(paths, looks, strict=True) if look.machine_fault]
    if faults:
        raise DataError(_machine_fault(faults, dict(bad), len(paths), base))
    if bad and on_unreadable == "fail":
        raise DataError(_refusal(bad, len(paths), base))
    kept = tuple(_without(images, {path for path, _ in bad}) for images in parts) if bad else parts
    _refuse_lost_classes(parts, kept)
    copies = _copies(parts, looks)
    facts = f"checked {len(paths):,} images, {num_new:,} of them new, in {elapsed_s:.2f} s: "
    if bad:
        facts += (
            f"{len(bad):,} cannot be read and are left out (data.on_unreadable: skip): "
            f"{shown_few([path for path, _ in bad], base)}"
        )
    else:
        facts += "all can be read"
    return Checked(kept, tuple(bad), facts + copies[0], bool(bad) or copies[1])


def dropping_unreadable(work: Callable[[], T], *, on_unreadable: str, progress: Progress) -> T:
    """Do work that begins with a check, and once more for each time it meets images that passed
    the check and are broken all the same: they are remembered, and the check then knows them.

    Whether an image is broken is decided by a full look at the file, once the work has ended: what
    failed in the work may have been the machine.

    Raises:
        UnreadableError: it is not to skip them, or they are not broken.
    """
    known: set[Path] = set()
    while True:
        try:
            return work()
        except UnreadableError as error:
            suspects = {path for path, _ in error.found} - error.passing - known
            looks = {path: look_at(str(path), full=True) for path in suspects}
            broken = {path: look for path, look in looks.items() if look.reason and look.lasting}
            with Remembered() as remembered:
                remembered.keep((key_of_file(str(path)), look) for path, look in broken.items())
            passing = error.passing | (suspects - broken.keys())
            if passing:
                raise UnreadableError(error.found, passing=passing) from error
            if on_unreadable == "fail" or not broken:
                raise
            known |= broken.keys()
            progress.warn(f"{error.found[0][0]}: turned out to be broken; beginning without it")


def known_contents(paths: Sequence[Path]) -> list[str]:
    """Of each image what is equal in copies of it, as far as full looks are remembered; where they
    are not, its path."""
    names = [str(path) for path in paths]
    keys = [key_of_file(name) for name in names]
    with Remembered() as remembered:
        known = remembered.find(keys)
    looks = [known.get(key, Look()) if key else Look() for key in keys]
    return [look.pixels.hex() or name for look, name in zip(looks, names, strict=True)]


def sizes_of(images: Images, most: int, progress: Progress) -> list[tuple[int, int]]:
    """Width and height, as the files state them, of so many images from all over."""
    number = min(most, len(images))
    paths = [str(images.paths[i * len(images) // number]) for i in range(number)]
    looks, _ = _looks(paths, progress)
    return [(look.width, look.height) for look in looks]


def _looks(paths: Sequence[str], progress: Progress) -> tuple[list[Look], int]:
    """A look at each file, and how many of them are new."""
    with Remembered() as remembered:
        keys = [key_of_file(path) for path in paths]
        known = remembered.find(keys)
        new = [at for at, key in enumerate(keys) if key is None or key not in known]
        fresh: dict[int, Look] = {}
        if len(new) <= _AT_ONCE:
            fresh.update((at, look_at(paths[at], full=False)) for at in new)
        else:
            looking = progress.track(_in_threads(paths, new), "check images", total=len(new))
            fresh.update(looking)
        for at, look in fresh.items():
            if look.reason and not look.decoded:  # in a thread, others may have had the memory
                fresh[at] = look_at(paths[at], full=True)
        remembered.keep((keys[at], look) for at, look in fresh.items())
    looks = [
        fresh[at] if at in fresh else known[key]  # type: ignore[index]  # what has no key is new
        for at, key in enumerate(keys)
    ]
    return looks, len(new)


def _in_threads(paths: Sequence[str], positions: Sequence[int]) -> Iterator[tuple[int, Look]]:
    def look_at_some(some: Sequence[int]) -> list[tuple[int, Look]]:
        return [(at, look_at(paths[at], full=False)) for at in some]

    chunks = [positions[i : i + _AT_ONCE] for i in range(0, len(positions), _AT_ONCE)]
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for looked in pool.map(look_at_some, chunks):
            yield from looked
    finally:
        pool.shutdown(cancel_futures=True)


def _refusal(bad: Sequence[Skipped], total: int, base: Path) -> str:
    if len(bad) == 1:
        path, reason = bad[0]
        return (
            f"{shown(path)}: cannot be read: {reason}. Repair or remove it, or set "
            "data.on_unreadable: skip"
        )
    lines = [f"  {shown(path, base)}: {reason}" for path, reason in bad[:_MOST_LISTED]]
    if len(bad) > _MOST_LISTED:
        more = len(bad) - _MOST_LISTED
        lines.append(f"  … and {more:,} more; `finetune check-data --json` lists them all")
    return "\n".join(
        [
            f"{base}: {len(bad):,} of {total:,} files cannot be read",
            *lines,
            "Repair or remove them, or set data.on_unreadable: skip",
        ]
    )


def _machine_fault(faults: Sequence[str], reasons: dict[Path, str], total: int, base: Path) -> str:
    """Nothing is known of such files, so that they are not skipped either."""
    listed = "; ".join(
        f"{shown(path, base)}: {reasons[Path(path)]}" for path in faults[:_MOST_FAULTS]
    )
    return (
        f"{base}: {len(faults):,} of {total:,} files could not be looked at now: {listed}. The "
        "files may be sound. Free memory, or repair what failed, and run again"
    )


def _without(images: Images, bad: set[Path]) -> Images:
    kept = images.subset([i for i, path in enumerate(images.paths) if path not in bad])
    return replace(kept, skipped=images.skipped)


def _refuse_lost_classes(before: Sequence[Images], after: Sequence[Images]) -> None:
    for old, new in zip(before, after, strict=True):
        for name, had, has in zip(old.class_names, old.counts(), new.counts(), strict=True):
            if had and not has:
                raise DataError(
                    f"class {name!r}: none of its {had:,} files in a split can be read; "
                    "`finetune check-data` says why"
                )


def _copies(parts: Sequence[Images], looks: Sequence[Look]) -> tuple[str, bool]:
    """What a full look at every image already knows about copies, and whether that is bad."""
    if not all(look.decoded or look.reason for look in looks):
        return "; `finetune check-data` decodes them and looks for copies and wrong labels", False
    first: dict[bytes, tuple[int, int]] = {}
    conflicts: set[bytes] = set()
    leaks: set[bytes] = set()
    at = 0
    for part, images in enumerate(parts):
        for label in images.labels:
            look = looks[at]
            at += 1
            if look.reason:
                continue
            before = first.setdefault(look.pixels, (part, label))
            if before[0] != part:
                leaks.add(look.pixels)
            if before[1] != label:
                conflicts.add(look.pixels)
    if not conflicts and not leaks:
        return "; no copy lies in two classes or two splits", False
    return (
        f"; but {len(conflicts):,} lie in two classes, and {len(leaks):,} in both splits "
        "(`finetune check-data` names them)"
    ), True
