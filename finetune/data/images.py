"""Paths and labels of the images of each split; imports no torch."""

from __future__ import annotations

import errno
import os
import re
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from finetune.core.errors import DataError, UnknownClassError
from finetune.core.files import nearest_path
from finetune.core.text import did_you_mean, first_few, on_one_line

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
)
OTHER_PHOTO_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".jxl", ".jp2"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
)
"""Suffixes of photos in unsupported formats: phone formats and camera raw files."""
# Only these decoders are enabled: Pillow would pass a PostScript file named .jpg to Ghostscript.
PIL_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MOST_PIXELS = 64_000_000
"""Maximum number of pixels in an image: an 18 KB file can decode to 144 million, or 1.4 GB."""
MODES = frozenset(
    {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"}
    | {"I", "I;16", "I;16L", "I;16B", "I;16N"}
)
"""Pillow modes that are converted to RGB; floating point pixels have no known white level."""
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


_OF_CONTENT = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, ArithmeticError, EOFError),
    *(struct.error, zlib.error),
)
"""Exceptions that Pillow's decoders raise for invalid file content."""
_OF_MACHINE = (MemoryError, ImportError, AttributeError, Warning)


def lasts(error: BaseException) -> bool:
    """Return whether the error is permanent: decoding the same file would always fail.

    An error about the content has no errno and was not caused by a lack of memory or by a missing
    decoder.
    """
    return isinstance(error, _OF_CONTENT) and not any(
        isinstance(cause, _OF_MACHINE) or getattr(cause, "errno", None) is not None
        for cause in _causes(error)
    )


def is_machine_fault(error: BaseException) -> bool:
    """Return whether memory, the system or the installation failed, not the file content."""
    return any(
        isinstance(cause, MemoryError | ImportError | Warning)
        # A broken file may contain an offset that the system rejects with EINVAL.
        or getattr(cause, "errno", None) not in (None, errno.EINVAL)
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def refusal(mode: str, width: int, height: int) -> str | None:
    """Return why an image of this mode and size is not read, or None if it is."""
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
        skipped: Skipped files that are not images.
        links: Links to folders that are not followed.
        misnamed: Files that are photos by content, but not by name.
        groups: Group of each path, kept together when images are held out; empty without groups.
        balanced: Whether an epoch draws every class equally often, with replacement.
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
        """Return the images at these positions, in this order."""
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
        """Return the number of images of each class."""
        counts = [0] * len(self.class_names)
        for label in self.labels:
            counts[label] += 1
        return counts


@dataclass(frozen=True)
class TrainVal:
    """Training and validation images of a run, with notes on how they were found.

    Attributes:
        base: Folder that paths are shown relative to.
        held_out: Whether the validation images were drawn from the training images.
        warnings: Probable mistakes in the data.
        parents: Folders whose subfolders are all read as classes; may be empty.
        corrected: Path, action and class of each corrected image.
    """

    train: Images
    val: Images
    notes: tuple[str, ...]
    base: Path = Path()
    held_out: bool = False
    warnings: tuple[str, ...] = ()
    parents: tuple[Path, ...] = ()
    corrected: tuple[tuple[str, str, str], ...] = ()

    def corrected_places(self, *actions: str) -> frozenset[str]:
        """Return the absolute paths of the images with one of these actions."""
        return frozenset(
            os.path.abspath(self.base / path)  # noqa: PTH100
            for path, action, _ in self.corrected
            if action in actions
        )

    def num_relabelled(self, images: Images) -> int:
        """Return how many of some images have a corrected label."""
        places = self.corrected_places("relabel")
        return sum(os.path.abspath(path) in places for path in images.paths)  # noqa: PTH100


def split_named(word: str) -> str | None:
    """Return train, val or test if ``word`` is a usual name of that split, in any case."""
    lower = word.lower()
    return next((split for split, names in SPLITS.items() if lower in names), None)


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group names that differ only by case, spaces or Unicode normal form.

    Single characters keep their case: `a` and `A` are two classes in handwriting data.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", name).split())
        groups.setdefault(key if len(key) == 1 else key.lower(), []).append(name)
    return [tuple(sorted(group)) for group in groups.values() if len(group) > 1]


def refuse_alike(where: str, class_names: Sequence[str]) -> None:
    """Reject class names that differ only by case, spaces or Unicode normal form.

    Raises:
        DataError: There are such names; the message lists the first few.
    """
    groups = alike(class_names)
    if groups:
        raise DataError(
            f"class names differ only by case or spaces: "
            f"{first_few(' and '.join(map(repr, group)) for group in groups)}",
            kind="data.similar_class_names",
            path=where,
            to_do="merge the folders or correct the labels, so that each class has one name",
        )


def refuse_unknown_classes(
    found: Iterable[str], known: Sequence[str], where: Callable[[str], object]
) -> None:
    """Reject classes that are unknown in training.

    Args:
        where: Function that returns where in the data a class is named.

    Raises:
        UnknownClassError: There are unknown classes; the message lists the first few, and the known
            class nearest to the first.
    """
    known_set = set(known)
    unknown = [name for name in found if name not in known_set]
    if unknown:
        first, others = unknown[0], unknown[1:]
        nor = "nor does" if len(others) == 1 else "nor do"
        as_well = f", {nor} {first_few(map(repr, others))}" if others else ""
        raise UnknownClassError(
            f"class {first!r} does not exist in the training data{as_well}",
            kind="data.unknown_class",
            path=str(where(first)),
            to_do=f"{did_you_mean(first, known)} Known classes: {', '.join(known[:20])}"
            f"{' …' if len(known) > 20 else ''}. Correct the name, add training images of it, or "
            "remove its images",
        )


def shown(path: str | os.PathLike[str], base: Path | None = None) -> str:
    """Return a path on one line, escaped and quoted if it has unprintable characters."""
    return on_one_line(os.fspath(path) if base is None else below(path, base))


def below(path: str | os.PathLike[str], base: Path) -> str:
    """Return a path relative to ``base`` if it is inside, otherwise unchanged."""
    return os.fspath(path).removeprefix(os.path.join(base, ""))  # noqa: PTH118


def shown_few(paths: Iterable[str | os.PathLike[str]], base: Path | None = None) -> str:
    """Return the first three paths and the number of remaining ones."""
    return first_few(shown(path, base) for path in paths)


def is_other_photo(path: str | os.PathLike[str]) -> bool:
    """Return whether a file has the suffix of an unsupported photo format."""
    return os.path.splitext(path)[1].lower() in OTHER_PHOTO_SUFFIXES  # noqa: PTH122


def other_photos(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Return a message on the photos in unsupported formats and how to convert them, or "".

    They are reported separately from stray files, because otherwise a user with photos from a phone
    would train without them and not notice.
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
        return f"1 photo in an unsupported format ({listed}): save it as JPEG"
    return f"{suffixes.total():,} photos in unsupported formats ({listed}): save them as JPEG"


def passed_over(
    links: Sequence[os.PathLike[str] | str], misnamed: Sequence[os.PathLike[str] | str]
) -> list[str]:
    """Return messages on links that are not followed and on photos with other files' names."""
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
            f"{shown_few(misnamed)}; rename to .jpg, or to the suffix of the format"
        )
    return said


def near(path: Path) -> str:
    """Return a hint with the most similar sibling name, and what paths are relative to."""
    found = nearest_path(path)
    hint = "" if path.is_absolute() else " Paths are relative to the working directory."
    return f"{f' Did you mean {str(found)!r}?' if found else ''}{hint}"


def why_absent(path: str) -> str:
    """Return the probable reason why a path does not exist."""
    if path.startswith("file:"):
        # pathlib makes one slash of two
        inner = re.sub(r"^file:(//?localhost(?=/))?/*", "/", path)
        return f"is a URL, not a path; give {unquote(inner)}"
    if re.match(r"[A-Za-z][\w+.-]+:/", path):
        return "is a URL, not a path; download the file first"
    if is_pattern(path):
        return (
            "no such file; a shell replaces a pattern by file names only outside of quotes, and "
            "only where a file matches it"
        )
    return "no such file"


def is_pattern(path: str) -> bool:
    """Return whether a path looks like a pattern that a shell replaces by file names."""
    return re.search(r"[*?]|\[.+\]|\{.*(,|\.\.).*\}", path) is not None
