"""Handling of SIGINT and SIGTERM: stop at once, or during training after the current step.

A handler that raises would interrupt a step, and one that saves would save half a step. So during
training the handler only sets a flag, which is checked between two pieces of work. Imports no
torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from finetune.core.cores import processes_here
from finetune.core.errors import Interrupted

T = TypeVar("T")

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class _Signals:
    """State of the signal handler in this process."""

    owner = 0
    """Id of the process that handles signals; in forked workers the handler does nothing."""
    asked = 0
    """Number of the signal that asked to stop, or 0."""
    patient = False
    """Whether the handler only sets ``asked`` instead of raising."""
    agreed: int | None = None
    """Signal that all processes of a run know of; None in a run of one process."""
    at = 0.0
    """Time of the first signal."""


_REPEATED_S = 2.0
"""In a run of several processes, a launcher may pass on a signal that the process has already
received from the terminal; within this time it is not a request to abort."""


def listen() -> None:
    """Install the handlers; for the command line, not for callers from Python."""
    _Signals.owner = os.getpid()
    for number in _WORDS:
        # Shells start background jobs with SIGINT ignored, and so does nohup.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """Ignore both signals: the program has its result and is about to exit."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def leave_to_the_parent(_worker: int = 0) -> None:
    """Make a worker process ignore signals sent to the whole job, such as Ctrl-C.

    The parent handles them and still needs the results of its workers; it ends them with SIGTERM.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def without_word_of_dead_workers() -> None:
    """Keep torch's SIGCHLD handler from raising within a step when a worker process dies.

    The code that waits for the worker detects this within seconds.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, lambda *_: None)


def asked() -> bool:
    """Return whether a signal has asked to stop.

    In a section where processes act `together`, whether all of them know of it.
    """
    return bool(_Signals.asked if _Signals.agreed is None else _Signals.agreed)


def own_signal() -> int:
    """Return the number of the signal that this process has received, or 0."""
    return _Signals.asked


def agree_on(number: int) -> None:
    """Note the signal that some process has received and of which all know now; 0 for none."""
    _Signals.agreed = number


@contextmanager
def together() -> Iterator[None]:
    """Make `asked` depend on `agree_on` alone, because all processes have to stop at one place."""
    _Signals.agreed = 0
    try:
        yield
    finally:
        _Signals.asked = _Signals.asked or _Signals.agreed or 0
        _Signals.agreed = None


def interrupted(where: str = "") -> Interrupted:
    """Return, without raising it, the error that ends the program for the received signal."""
    number = _Signals.asked or _Signals.agreed or signal.SIGINT
    return Interrupted(f"{_WORDS[signal.Signals(number)]}{where}", exit_code=128 + number)


@contextmanager
def patiently(where: str = "") -> Iterator[None]:
    """Let signals only set a flag; the code inside checks `asked` between two pieces of work.

    Raises:
        Interrupted: A signal arrived and the code inside ended normally; raised on exit.
    """
    _Signals.patient = True
    try:
        yield
    finally:
        _Signals.patient = False
    if asked():
        raise interrupted(where)


@contextmanager
def impatiently(where: str) -> Iterator[None]:
    """Add ``where`` to the message of an `Interrupted` raised inside."""
    try:
        yield
    except Interrupted:
        raise interrupted(where) from None


def unless_asked(items: Iterable[T]) -> Iterator[T]:
    """Yield items until a signal asks to stop.

    Raises:
        Interrupted: A signal asked to stop.
    """
    for item in items:
        if asked():
            raise interrupted()
        yield item


def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if os.getpid() != _Signals.owner:
        return
    if _Signals.asked:
        if processes_here() > 1 and time.monotonic() - _Signals.at < _REPEATED_S:
            return
        _leave(number)
    _Signals.asked, _Signals.at = number, time.monotonic()
    if not _Signals.patient:
        raise interrupted()


def _leave(number: int) -> None:
    """Exit at once on the second signal; files are written atomically, so all remain intact."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os.write(2, b"finetune: aborted; checkpoints written so far are intact\n")
    os._exit(128 + number)
