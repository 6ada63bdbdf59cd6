"""Every error a user can meet, with its exit code.

FinetuneError (1, unexpected)
 ├─ ConfigError (2)       the config file, ``--set`` or the command line
 ├─ DataError (3)         images, folders, classes
 ├─ ModelError (4)        backbone, weights, input size
 ├─ CheckpointError (5)   a file that should hold a checkpoint
 ├─ OutputError (6)       the run folder cannot be written
 └─ ResultError (7)       a result that must not be used: not-a-number, a frozen tensor that changed
Interrupted (130, 143)    a signal; it is no Exception

A message says where, what, and what to do. ``cli.main`` is the one place that catches them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

_MOST_LISTED = 20


class FinetuneError(Exception):
    """The root of every expected failure; its text is all that the user is shown."""

    exit_code = 1


class ConfigError(FinetuneError):
    """The config file, an override or the command line is wrong."""

    exit_code = 2


class DataError(FinetuneError):
    """The images or their folders are wrong."""

    exit_code = 3


class UnknownClassError(DataError):
    """The data has classes that training does not know."""


class UnreadableError(DataError):
    """Images that turned out to be broken when they were decoded.

    Attributes:
        found: Path of each, and why.
        passing: Those among them that another time may bring.
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
    """The backbone, its weights or its input size are wrong."""

    exit_code = 4


class CheckpointError(FinetuneError):
    """A checkpoint is missing, damaged or not ours."""

    exit_code = 5


class OutputError(FinetuneError):
    """Something could not be written."""

    exit_code = 6


class ResultError(FinetuneError):
    """A result that must not be used."""

    exit_code = 7


class NotFiniteError(ResultError):
    """A loss, a gradient or a weight that is no finite number.

    Attributes:
        epoch, batch: Both from 1.
    """

    def __init__(self, what: str, *, epoch: int, batch: int, lr: float, more: str = "") -> None:
        super().__init__(
            f"epoch {epoch}, batch {batch}: {what} is not a finite number, at a learning rate of "
            f"{lr:.3g}{more}"
        )
        self.what, self.epoch, self.batch, self.lr = what, epoch, batch, lr


class Interrupted(BaseException):
    """A signal asked the program to stop: 130 after SIGINT, 143 after SIGTERM.

    Like KeyboardInterrupt it is no Exception: it may come at any line, also where whatever fails
    means a damaged file.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(word: str, choices: Iterable[str], *, limit: int = 3, cutoff: float = 0.6) -> list[str]:
    """The choices that look most like ``word``, best first; case is forgiven."""
    by_lower: dict[str, str] = {}
    for choice in choices:
        by_lower.setdefault(choice.lower(), choice)
    close = difflib.get_close_matches(word.lower(), by_lower, n=limit, cutoff=cutoff)
    return [by_lower[match] for match in close]


def did_you_mean(word: str, choices: Iterable[str], *, limit: int = 1) -> str:
    """`` Did you mean 'x'?``, or nothing where no choice is near."""
    close = nearest(word, choices, limit=limit)
    if not close:
        return ""
    return f" Did you mean {' or '.join(repr(choice) for choice in close)}?"


def address_problem(text: str) -> str | None:
    """Say what is wrong with a path that is an address of another machine; None where it is none.

    As a path it would lose a slash, and name a folder that is made in the working directory.
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


def first_few(texts: Iterable[str], *, most: int = 3, between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    every = list(texts)
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return between.join(every[:most]) + more


def printable(text: str, *, but: str = "") -> str:
    """Text with what cannot be printed escaped: a name in it must not steer a terminal.

    Args:
        but: Characters that are left as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in but else ascii(c)[1:-1] for c in text)


def on_one_line(text: str) -> str:
    """A name as it is; where something in it cannot be printed, that escaped and all in quotes."""
    return text if text.isprintable() else ascii(text)
