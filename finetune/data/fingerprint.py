"""What data a run is trained on, in a few lines: enough to notice another, and to say where."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.images import Images, TrainVal, below


@dataclass(frozen=True)
class Fingerprint:
    """Of the images of a run.

    Attributes:
        sha256: Of every image's split, path below the data's base, size in bytes and class.
        classes: Images and bytes, by split and class.
        times: SHA-256 of when each was written; empty where nobody noted it.
    """

    sha256: str
    classes: dict[str, tuple[int, int]]
    times: str = ""


def fingerprint_of(data: TrainVal) -> Fingerprint:
    """Looks at sizes and times alone; reads no image."""
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
    """Of every image's path, size in bytes and class, in any order; reads no image.

    Args:
        bases: Paths are taken below the first of these folders that holds them, so that images are
            the same ones after they were moved, and where a part of a folder is named.
    """
    folders = [Path(os.path.abspath(base)) for base in bases]  # noqa: PTH100
    lines = []
    for (path, label), (size, _) in zip(_labelled(images), _stats(images), strict=True):
        full = os.path.abspath(path)  # noqa: PTH100
        name = next((n for n in (below(full, folder) for folder in folders) if n != full), full)
        lines.append(f"{name}\0{size}\0{label}\n".encode("utf-8", "surrogateescape"))
    return hashlib.sha256(b"".join(sorted(lines))).hexdigest()


def differences(before: Fingerprint, now: Fingerprint) -> list[str]:
    """What changed, class by class; nothing where nothing did."""
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
    """Bytes, and the time of the last change in nanoseconds."""
    for path in images.paths:
        try:
            stat = path.stat()
            yield stat.st_size, stat.st_mtime_ns
        except OSError:  # whoever decodes it will say so
            yield 0, 0
