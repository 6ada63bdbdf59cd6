"""Errors reported to the user, with their exit codes.

FinetuneError (1, unexpected)
 ├─ ConfigError (2)       config file, ``--set`` or command line
 ├─ DataError (3)         images, folders, classes
 ├─ ModelError (4)        backbone, weights, input size
 ├─ CheckpointError (5)   missing, damaged or foreign checkpoint
 ├─ OutputError (6)       a file or the run directory cannot be written
 └─ ResultError (7)       unusable result: not a finite number, or a frozen tensor that changed
Interrupted (130, 143)    signal; not an Exception

A message states where the problem is, what it is and what to do. Only `finetune.cli.app.main`
catches these errors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from finetune.core.text import on_one_line

_MOST_LISTED = 20


class FinetuneError(Exception):
    """Base class of expected errors; the user is shown only the message, without a traceback."""

    exit_code = 1


class ConfigError(FinetuneError):
    """The config file, an override or the command line is invalid."""

    exit_code = 2


class DataError(FinetuneError):
    """The images, folders or classes are invalid."""

    exit_code = 3


class UnknownClassError(DataError):
    """The data has classes that the checkpoint was not trained on."""


class UnreadableError(DataError):
    """Images failed to decode.

    Attributes:
        found: Path of each image, and the reason.
        passing: Paths of images whose failure may be temporary.
    """

    def __init__(
        self, found: Sequence[tuple[Path, str]], *, passing: Collection[Path] = ()
    ) -> None:
        listed = []
        for path, reason in found[:_MOST_LISTED]:
            what = "cannot be read any more" if path in passing else "cannot be decoded"
            listed.append(f"{on_one_line(str(path))}: {what} ({reason})")
        if len(found) > _MOST_LISTED:
            listed.append(f"and {len(found) - _MOST_LISTED:,} more")
        todo = (
            "it was readable when the run started. Was it moved or deleted, is its disk unmounted, "
            "or is memory short? Run again once that is repaired"
            if passing
            else "repair or remove what is broken, or set data.on_unreadable: skip"
        )
        super().__init__("\n".join(listed) + f"; {todo}")
        self.found = tuple(found)
        self.passing = frozenset(passing)


class ModelError(FinetuneError):
    """The backbone, its weights or its input size are invalid."""

    exit_code = 4


class CheckpointError(FinetuneError):
    """A checkpoint is missing, damaged or not written by finetune."""

    exit_code = 5


class OutputError(FinetuneError):
    """A file, a folder or stdout cannot be written."""

    exit_code = 6


class ResultError(FinetuneError):
    """A result must not be used."""

    exit_code = 7


class NotFiniteError(ResultError):
    """A loss, a gradient or a weight is not a finite number.

    Attributes:
        what: Name of the value.
        epoch, batch: Epoch and batch, from 1.
        lr: Learning rate of the step.
    """

    def __init__(self, what: str, *, epoch: int, batch: int, lr: float, more: str = "") -> None:
        super().__init__(
            f"epoch {epoch}, batch {batch}: {what} is not a finite number, at a learning rate of "
            f"{lr:.3g}{more}"
        )
        self.what, self.epoch, self.batch, self.lr = what, epoch, batch, lr


class Interrupted(BaseException):
    """A signal asked the program to stop; the exit code is 130 for SIGINT, 143 for SIGTERM.

    Not an Exception, like KeyboardInterrupt: it may be raised at any line, also inside
    ``except Exception`` blocks that treat every error as a damaged file.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def address_problem(text: str) -> str | None:
    """Return a message if ``text`` is a URL instead of a path, else None.

    `pathlib.Path` would drop one of its slashes, and the name would denote a folder that is created
    in the working directory.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    if found is None:
        return None
    if found[1].lower() == "file":
        return f"{text!r} is an address; give the path that follows {found[0]}"
    return (
        f"{text!r} is an address, and finetune reads and writes only files of this machine; copy "
        "what it names here first, or mount it, and give the path (to write there, give a path "
        "here and copy the result)"
    )
