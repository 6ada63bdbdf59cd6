"""Fingerprint of the data of a run, to detect changes and report where they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.images import Images, TrainVal, below


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of the images of a run.

    Attributes:
        sha256: SHA-256 over the split, path below the data's base, size in bytes and class of every
            image.
        classes: Number of images and bytes, by split and class.
        times: SHA-256 of the modification times; empty if they were not recorded.
    """

    sha256: str
    classes: dict[str, tuple[int, int]]
    times: str = ""


def fingerprint_of(data: TrainVal) -> Fingerprint:
    """Compute the fingerprint from file sizes and times; reads no image."""
    digest, times = hashlib.sha256(), hashlib.sha256()
    classes: dict[str, tuple[int, int]] = {}
    for split, images in (("train", data.train), ("val", data.val)):
        for (path, label), (size, time) in zip(_labelled(images), _stats(images), strict=True):
            times.update(b"%d\n" % time)
            line = f"{split}\0{below(path, data.base)}\0{size}\0{label}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
            count, num_bytes = classes.get(f"{split}/{label}", (0, 0))
            classes[f"{split}/{label}"] = (count + 1, num_bytes + size)
    return Fingerprint(digest.hexdigest(), classes, times.hexdigest())


def sha256_of_images(images: Images, bases: Sequence[Path]) -> str:
    """Return the SHA-256 over the path, size in bytes and class of every image; reads no image.

    The order of the images does not matter.

    Args:
        bases: Folders that paths are made relative to; the first that contains a path is used. The
            hash thus stays the same if images are moved, or if only part of a folder is named.
    """
    folders = [Path(os.path.abspath(base)) for base in bases]  # noqa: PTH100
    lines = []
    for (path, label), (size, _) in zip(_labelled(images), _stats(images), strict=True):
        full = os.path.abspath(path)  # noqa: PTH100
        name = next((n for n in (below(full, folder) for folder in folders) if n != full), full)
        lines.append(f"{name}\0{size}\0{label}\n".encode("utf-8", "surrogateescape"))
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """Return what changed, class by class; empty if nothing did."""
    if before.sha256 == now.sha256:
        return []
    found = [
        f"{name}: {_amount(before, name)} before, {_amount(now, name)} now"
        for name in sorted(before.classes.keys() | now.classes.keys())
        if before.classes.get(name) != now.classes.get(name)
    ]
    return found or ["as many images of the same sizes, under other names"]


def _amount(of: Fingerprint, name: str) -> str:
    count, num_bytes = of.classes.get(name, (0, 0))
    return f"{count:,} image{'' if count == 1 else 's'} of {num_bytes:,} bytes"


def _labelled(images: Images) -> Iterator[tuple[str, str]]:
    for path, label in zip(images.paths, images.labels, strict=True):
        yield str(path), images.class_names[label]


def _stats(images: Images) -> Iterator[tuple[int, int]]:
    """Yield size in bytes and modification time in nanoseconds of each image."""
    for path in images.paths:
        try:
            stat = path.stat()
            yield stat.st_size, stat.st_mtime_ns
        except OSError:  # reported when the image is decoded
            yield 0, 0
