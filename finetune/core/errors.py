"""Errors reported to the user, with their exit codes.

FinetuneError (1, unexpected)
 ├─ ConfigError (2)       config file, ``--set`` or command line
 ├─ DataError (3)         images, folders, classes
 ├─ ModelError (4)        backbone, weights, input size
 ├─ CheckpointError (5)   missing, damaged or foreign checkpoint
 ├─ OutputError (6)       a file or the run directory cannot be written
 └─ ResultError (7)       unusable result: not a finite number, or a frozen tensor that changed
Interrupted (130, 143)    signal; not an Exception

An error keeps place, kind, problem and remedy in separate fields, and `worded` alone joins them to
a message. Code that knows the place better than the function that raised sets it with
`FinetuneError.at`; no code edits or parses a message. Only `finetune.cli.app.main` catches these
errors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, TypeVar

from finetune.core.text import on_one_line

_MOST_LISTED = 20

_Error = TypeVar("_Error", bound="FinetuneError")


class _Fields(Protocol):
    """The fields that `worded` reads; `FinetuneError` describes them."""

    @property
    def source(self) -> str | None: ...
    @property
    def key(self) -> str | None: ...
    @property
    def path(self) -> str | None: ...
    @property
    def line(self) -> int | None: ...
    @property
    def what(self) -> str: ...
    @property
    def to_do(self) -> str | None: ...
    @property
    def also(self) -> str | None: ...


def worded(error: _Fields) -> str:
    """Return the message of an error or a problem: ``source: key: path:line: what; to do``.

    What to do is a separate sentence if it begins with a capital letter, and a separate line after
    a list.
    """
    path = None if error.path is None else on_one_line(error.path)
    if error.line is not None:
        path = f"{path}:{error.line}"
    overridden = (error.source or "").removeprefix("--set ").partition("=")[0].strip()
    key = error.key if error.key != overridden else None  # `--set KEY=VALUE` names it already
    text = ": ".join(part for part in (error.source, key, path, error.what) if part)
    to_do = (error.to_do or "").strip()
    if to_do and "\n" in error.what:
        text += f"\n{to_do[0].upper()}{to_do[1:]}"
    elif to_do:
        stop = "" if text.endswith("?") else "." if to_do[0].isupper() else ";"
        text += f"{stop} {to_do}"
    return f"{text}\n{error.also}" if error.also else text


@dataclass(frozen=True)
class Problem:
    """One of several problems that an error reports together; fields as in `FinetuneError`."""

    kind: str
    what: str
    to_do: str | None = None
    source: str | None = None
    key: str | None = None
    path: str | None = None
    line: int | None = None
    also: str | None = None


class FinetuneError(Exception):
    """Base class of expected errors; the user is shown only the message, without a traceback.

    Attributes:
        kind: Stable identifier of the problem, such as ``config.unknown_key``.
        what: The problem: a phrase without place and remedy.
        to_do: The remedy, or a suggestion.
        source: Where the key was given (``pets.yaml:3``, ``--set seed=x``), the command, or the
            epoch and batch.
        key: Dotted key of the config, or option of the command line.
        path: File or folder that has the problem.
        line: Line in ``path``, from 1.
        also: Related finding, shown on a separate line; set with `at`.
        problems: All problems, if the error reports several together; set with `at`.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        kind: str,
        to_do: str | None = None,
        source: str | None = None,
        key: str | None = None,
        path: str | PathLike[str] | None = None,
        line: int | None = None,
    ) -> None:
        super().__init__(what)
        self.kind, self.what = kind, what
        self.to_do = (to_do or "").strip() or None
        self.source, self.key = source, key
        self.path = None if path is None else str(path)
        self.line = line
        self.also: str | None = None
        self.problems: tuple[Problem, ...] = ()

    def __str__(self) -> str:
        """Return the message, as `worded` joins it."""
        return worded(self)

    @classmethod
    def of(cls: type[_Error], problems: Sequence[Problem], *, kind: str) -> _Error:
        """Return the error of the only problem, or one of this kind that lists all of them."""
        if len(problems) == 1:
            return cls("", kind="").at(**asdict(problems[0]), problems=tuple(problems))
        lines = [f"  {worded(problem)}" for problem in problems]
        what = "\n".join([f"{len(problems)} problems", *lines])
        return cls(what, kind=kind).at(problems=tuple(problems))

    def at(self: _Error, **fields: Any) -> _Error:
        """Return a copy of the error with other fields, such as ``key`` or ``to_do``."""
        other: _Error = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__, **fields)
        other.to_do = (other.to_do or "").strip() or None
        return other


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
        super().__init__(
            "\n".join(listed),
            kind="data.became_unreadable" if passing else "data.undecodable",
            to_do="it was readable when the run started. Was it moved or deleted, is its disk "
            "unmounted, or is memory short? Run again once that is repaired"
            if passing
            else "repair or remove what is broken, or set data.on_unreadable: skip",
        )
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
        epoch, batch: Epoch and batch, from 1.
        lr: Learning rate of the step.
    """

    def __init__(self, name: str, *, epoch: int, batch: int, lr: float) -> None:
        super().__init__(
            f"{name} is not a finite number, at a learning rate of {lr:.3g}",
            kind="result.not_finite",
            source=f"epoch {epoch}, batch {batch}",
        )
        self.epoch, self.batch, self.lr = epoch, batch, lr


class Interrupted(BaseException):
    """A signal asked the program to stop; the exit code is 130 for SIGINT, 143 for SIGTERM.

    Not an Exception, like KeyboardInterrupt: it may be raised at any line, also inside
    ``except Exception`` blocks that treat every error as a damaged file.
    """

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def address_problem(text: str) -> Problem | None:
    """Return a problem if ``text`` is a URL instead of a path, else None.

    `pathlib.Path` would drop one of its slashes, and the name would denote a folder that is created
    in the working directory.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", text)
    if found is None:
        return None
    kind, what = "config.is_an_address", f"{text!r} is a URL, not a path"
    if found[1].lower() == "file":
        return Problem(kind, what, f"give the path that follows {found[0]}")
    return Problem(kind, what, "copy the files to this machine or mount them, and give their path")
