"""Folders with the images of each predicted class, for ``predict --sort-into``."""

from __future__ import annotations

import errno
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from finetune.core.errors import OutputError
from finetune.core.files import UNSUPPORTED, exists, is_folder, remove_stale, unwritable
from finetune.core.reporter import Reporter
from finetune.report.prediction import UNLIKE, UNSURE
from finetune.results.evaluation import Prediction, SortedInto, Unreadable

_SCRATCH = ".tmp-sort-"
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
"""Characters that no file name may have on some system."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names that Windows reserves for devices."""
_NO_LINKS = UNSUPPORTED | {errno.EPERM, errno.EACCES}
"""Error numbers of systems that have no symbolic links, or forbid them."""
_MOST_BYTES = 200
"""Maximum length of a name; file systems allow 255 bytes, of which a number may need some."""


class Sorter:
    """Collects predictions, and makes a folder with their images by class at the end.

    The folders hold symbolic links, which take no space and leave the images as they are: a hard
    link would change the time by which the feature cache knows an image, and an edit of it would
    change the image. Where there are no symbolic links, the images are copied.

    Raises:
        OutputError: the folder has something in it already, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: Sequence[str] = ()
        self._answers: list[Prediction] = []
        if exists(folder) and not is_folder(folder):
            raise OutputError(
                "is not a folder",
                kind="output.not_a_folder",
                key="--sort-into",
                path=folder,
                to_do="give a new folder",
            )
        if is_folder(folder) and any(folder.iterdir()):
            raise OutputError(
                "is not empty",
                kind="output.exists",
                key="--sort-into",
                path=folder,
                to_do="give a new folder, or remove this one",
            )
        if not is_folder(folder.absolute().parent):
            raise unwritable(folder, f"there is no folder {folder.parent}")

    def add(self, names: Sequence[str], answer: Prediction | Unreadable) -> None:
        """Add a prediction; images that cannot be read are left out."""
        self._names = names
        if isinstance(answer, Prediction):
            self._answers.append(answer)

    def write(self, reporter: Reporter) -> SortedInto:
        """Make the folder, complete or not at all.

        Raises:
            OutputError: it cannot be made.
        """
        own = {folder for folder in map(_own_folder, self._answers) if folder is not None}
        folders = folder_names(self._names, taken=own)
        sources = {Path(answer.path or "").absolute(): answer for answer in self._answers}
        places: list[tuple[Path, str, str]] = []
        used: set[tuple[str, str]] = set()
        for source, answer in sources.items():
            folder = _own_folder(answer) or folders[answer.label]
            places.append((source, folder, _free_name(folder, source.name, used)))
        counts = dict(Counter(folder for _, folder, _ in places))
        try:
            with self._scratch() as scratch:
                for folder in counts:
                    (scratch / folder).mkdir()
                links = True
                for source, folder, name in reporter.track(places, "sort", total=len(places)):
                    links = _place(source, scratch / folder / name, links=links)
        except OSError as error:
            raise unwritable(self._folder, error.strerror or str(error)) from error
        return SortedInto(
            str(self._folder),
            counts,
            {folders[name]: name for name in self._names if folders[name] != name},
            links,
        )

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Yield an empty folder that takes its place at the end, or is removed after an error."""
        parent = self._folder.absolute().parent
        remove_stale(parent, f"{_SCRATCH}*")
        scratch = parent / f"{_SCRATCH}{uuid4().hex}"
        try:
            scratch.mkdir()
            yield scratch
            if is_folder(self._folder):
                self._folder.rmdir()  # it is empty, or else this fails
            scratch.rename(self._folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _own_folder(answer: Prediction) -> str | None:
    """Return the folder of an image that is not sorted by its class; None for all others."""
    return UNLIKE if answer.unlike else UNSURE if answer.unsure else None


def folder_names(names: Sequence[str], *, taken: Collection[str] = ()) -> dict[str, str]:
    """Return a folder name for each class: its own, if that is a valid and free name everywhere.

    Other characters become ``_``, and equal names get numbers, upper and lower case being equal.
    """
    used = {_folded(name) for name in taken}
    found: dict[str, str] = {}
    # Names that are valid come first, so that they keep their own name.
    for name in sorted(names, key=lambda name: (_valid(name) != name, name)):
        folder, number = _valid(name), 2
        while _folded(folder) in used:
            folder, number = f"{_valid(name)}-{number}", number + 1
        used.add(_folded(folder))
        found[name] = folder
    return found


def _valid(name: str) -> str:
    valid = _FORBIDDEN.sub("_", name).strip(" ").rstrip(". ")
    valid = valid.encode("utf-8", "surrogateescape")[:_MOST_BYTES].decode("utf-8", "ignore")
    if valid.startswith("."):  # a hidden folder, which listings pass over
        valid = f"_{valid}"
    return f"{valid}_" if not valid or _RESERVED.fullmatch(valid) else valid


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _free_name(folder: str, name: str, used: set[tuple[str, str]]) -> str:
    """Return the name, with a number if another image of the folder has it, and mark it as used."""
    stem, suffix = Path(name).stem, Path(name).suffix
    free, number = name, 2
    while (folder, _folded(free)) in used:
        free, number = f"{stem}-{number}{suffix}", number + 1
    used.add((folder, _folded(free)))
    return free


def _place(source: Path, target: Path, *, links: bool) -> bool:
    """Link or copy an image, and return whether links are possible."""
    if links:
        try:
            target.symlink_to(source)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return True
    shutil.copy2(source, target)
    return False
