"""What data is once it is found: paths with labels, split by split; imports no torch."""

from __future__ import annotations

import errno
import os
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.errors import DataError, UnknownClassError, did_you_mean, first_few, on_one_line

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)
OTHER_PHOTO_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
)
"""Of photos that no decoder here reads; most are of phones and, raw, of cameras."""
# Pillow would hand a PostScript file named .jpg to Ghostscript: only these decoders are asked.
PIL_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MOST_PIXELS = 64_000_000
"""Of one image: a file of 18 KB can hold 144 million, and 1.4 GB of memory once it is decoded."""
MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"}
    | {"I", "I;16", "I;16L", "I;16B", "I;16N"}
)
"""Pillow's names of the kinds of pixels that become RGB; floating point has no known white."""
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


_OF_CONTENT = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError),
    *(struct.error, zlib.error),
)
"""What Pillow's decoders raise about the bytes of a file."""
_OF_MACHINE = (MemoryError, ImportError, AttributeError, Warning)


def lasts(error: BaseException) -> bool:
    """Whether the same file would fail to decode at another time as well.

    An error about the content carries no error number of the system, and was not caused by lack
    of memory or by a decoder that is missing.
    """
    return isinstance(error, _OF_CONTENT) and not any(
        isinstance(cause, _OF_MACHINE) or getattr(cause, "errno", None) is not None
        for cause in _causes(error)
    )


def is_machine_fault(error: BaseException) -> bool:
    """Whether memory, the system or the installation failed, whatever the file holds."""
    return any(
        isinstance(cause, MemoryError | ImportError | Warning)
        # A broken file may name an offset that the system calls invalid.
        or getattr(cause, "errno", None) not in (None, errno.EINVAL)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refusal(mode: str, width: int, height: int) -> str | None:
    """Why pixels of this mode, or so many of them, are not read; None where they are."""
    if width * height > MOST_PIXELS:
        return (
            f"has {width * height:,} pixels, more than the {MOST_PIXELS:,} that are read; "
            "make it smaller"
        )
    if mode == "F":
        return "has floating point pixels, which have no known white; save it with 8 or 16 bits"
    return None if mode in MODES else f"has {mode} pixels, which are not read; save it as RGB"


@dataclass(frozen=True)
class Images:
    """Images of one split with their labels.

    Attributes:
        labels: Index into ``class_names`` for each path.
        skipped: Files among them that are no images.
        links: Links to folders among them that are not followed.
        misnamed: Files among them that are photos by their content, but not by their names.
        groups: For each path, what must stay together when some are held out; or nothing.
        balanced: An epoch draws every class equally often, with replacement.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    skipped: tuple[Path, ...] = ()
    links: tuple[Path, ...] = ()
    misnamed: tuple[Path, ...] = ()
    num_bytes: int = field(default=0, compare=False)
    groups: tuple[str, ...] = ()
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> Images:
        """The images at these positions, in this order."""
        share = len(indices) / max(len(self), 1)
        return replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            groups=tuple(self.groups[i] for i in indices) if self.groups else (),
            skipped=(),
            links=(),
            misnamed=(),
            num_bytes=round(self.num_bytes * share),
        )

    def counts(self) -> list[int]:
        """Images of each class."""
        counts = [0] * len(self.class_names)
        for label in self.labels:
            counts[label] += 1
        return counts


@dataclass(frozen=True)
class TrainVal:
    """What a training run reads, and one line on how it was found.

    Attributes:
        base: The folder that paths are shown relative to.
        held_out: The validation images were drawn from the training images.
        warnings: What is probably not meant so.
        parents: Folders of which every folder is read as a class, where there are such.
    """

    train: Images
    val: Images
    notes: tuple[str, ...]
    base: Path = Path()
    held_out: bool = False
    warnings: tuple[str, ...] = ()
    parents: tuple[Path, ...] = ()


def split_named(word: str) -> str | None:
    """train, val or test, where ``word`` is one of their usual names in any case."""
    lower = word.lower()
    return next((split for split, names in SPLITS.items() if lower in names), None)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the names that differ only by case, by spaces or by their Unicode normal form.

    Single characters keep their case: `a` and `A` are two classes of handwriting.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", name).split())
        groups.setdefault(key if len(key) == 1 else key.lower(), []).append(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def refuse_alike(where: str, class_names: Sequence[str]) -> None:
    """Refuse names that a person reads as one class, and the network would learn as several.

    Raises:
        DataError: names the first few.
    """
    groups = alike(class_names)
    if groups:
        raise DataError(
            f"{where}: {first_few(' and '.join(map(repr, group)) for group in groups)}: classes "
            "whose names differ only by case or spaces; join the folders or correct the labels, so "
            "that each class has one name"
        )


def refuse_unknown_classes(
    found: Iterable[str], known: Sequence[str], where: Callable[[str], object]
) -> None:
    """Refuse classes that training does not know.

    Args:
        where: Says for a class what in the data names it.

    Raises:
        UnknownClassError: names the first few, and the nearest to the first that is known.
    """
    known_set = set(known)
    unknown = [name for name in found if name not in known_set]
    if unknown:
        first, others = unknown[0], unknown[1:]
        as_well = f", and so are {first_few(map(repr, others))}" if others else ""
        raise UnknownClassError(
            f"{where(first)}: class {first!r} is unknown in training{as_well}."
            f"{did_you_mean(first, known)} Known: {', '.join(known[:20])}"
            f"{' …' if len(known) > 20 else ''}."
        )


def shown(path: str | os.PathLike[str], base: Path | None = None) -> str:
    """A path on one line: what cannot be printed is escaped, and then it stands in quotes."""
    return on_one_line(os.fspath(path) if base is None else below(path, base))


def below(path: str | os.PathLike[str], base: Path) -> str:
    """A path relative to ``base`` where it lies there; as it is elsewhere."""
    return os.fspath(path).removeprefix(os.path.join(base, ""))  # noqa: PTH118


def shown_few(paths: Iterable[str | os.PathLike[str]], base: Path | None = None) -> str:
    """The first three, and how many more there are."""
    return first_few(shown(path, base) for path in paths)


def is_other_photo(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a photo by its name, in a format that is not read."""
    return os.path.splitext(path)[1].lower() in OTHER_PHOTO_SUFFIXES  # noqa: PTH122


def other_photos(paths: Iterable[str | os.PathLike[str]]) -> str:
    """How many of these files are photos in formats that are not read, and what to do; or nothing.

    They are not counted as stray files: whoever has a phone's photos would train on the rest.
    """
    suffixes = Counter(
        os.path.splitext(path)[1].lower()  # noqa: PTH122
        for path in paths
        if is_other_photo(path)
    )
    if not suffixes:
        return ""
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common())
    if suffixes.total() == 1:
        return f"1 photo in a format that is not read ({listed}): save it as JPEG"
    return f"{suffixes.total():,} photos in formats that are not read ({listed}): save them as JPEG"


def passed_over(
    links: Sequence[os.PathLike[str] | str], misnamed: Sequence[os.PathLike[str] | str]
) -> list[str]:
    """What is said of links that are not followed, and of photos that have other files' names."""
    said = []
    if links:
        count = f"{len(links):,} link{'' if len(links) == 1 else 's'}"
        said.append(
            f"{count} not followed, to folders that are not there or are read already: "
            f"{shown_few(links)}"
        )
    if misnamed:
        what = "file is a photo" if len(misnamed) == 1 else "files are photos"
        said.append(
            f"{len(misnamed):,} {what} by content but not by name, and not read: "
            f"{shown_few(misnamed)}; rename to .jpg, or to the ending of the format"
        )
    return said


def near(path: Path) -> str:
    """The sibling that was probably meant, and what paths are relative to."""
    try:
        names = [child.name for child in path.parent.iterdir()]
    except OSError:
        names = []
    hint = "" if path.is_absolute() else " Paths are relative to the working directory."
    return f"{did_you_mean(path.name, names)}{hint}"
