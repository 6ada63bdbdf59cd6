"""SIGINT and SIGTERM: they end the program at once, or between two steps where there is work to
save; imports no torch.

A handler that raises would tear a step apart, and one that saves would save half a step: so while a
run trains the handler sets a flag alone, at which whoever works looks between two pieces of work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from finetune.errors import Interrupted

T = TypeVar("T")

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class _Signals:
    """What this process has been told."""

    owner = 0
    """Process that listens: a worker forked from it inherits the handler, and is not meant."""
    asked = 0
    """Number of the signal that asked to stop."""
    patient = False


def listen() -> None:
    """Handle both signals from now on; for the program itself, not for its callers from Python."""
    _Signals.owner = os.getpid()
    for number in _WORDS:
        # A shell lets its background jobs ignore SIGINT, and nohup says the same.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)


def ignore() -> None:
    """From now on: the program has its result, and is about to end with it."""
    for number in _WORDS:
        signal.signal(number, signal.SIG_IGN)


def leave_to_the_parent(_worker: int = 0) -> None:
    """In a worker process: what is sent to all of a job, such as Ctrl-C, is the parent's to handle,
    which still needs what its workers are at; SIGTERM alone is how it ends them."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def without_word_of_dead_workers() -> None:
    """Keep torch from raising in the middle of a step when a worker process dies.

    Whoever waits for the worker finds out within seconds.
    """
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, lambda *_: None)


def asked() -> bool:
    """Whether a signal has asked to stop."""
    return bool(_Signals.asked)


def interrupted(where: str = "") -> Interrupted:
    """The error that ends the program as the signal asked, not raised."""
    word = _WORDS[signal.Signals(_Signals.asked or signal.SIGINT)]
    return Interrupted(f"{word}{where}", exit_code=128 + (_Signals.asked or signal.SIGINT))


@contextmanager
def patiently(where: str = "") -> Iterator[None]:
    """A signal sets the flag alone: whoever works here looks at `asked` between two pieces.

    Raises:
        Interrupted: at the end, where nobody did.
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
    """Says where a signal ended the work."""
    try:
        yield
    except Interrupted:
        raise interrupted(where) from None


def unless_asked(items: Iterable[T]) -> Iterator[T]:
    """Pass items on until a signal asks to stop.

    Raises:
        Interrupted: it did.
    """
    for item in items:
        if asked():
            raise interrupted()
        yield item


def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if os.getpid() != _Signals.owner:
        return
    if _Signals.asked:
        _leave(number)
    _Signals.asked = number
    if not _Signals.patient:
        raise interrupted()


def _leave(number: int) -> None:
    """The second signal: at once. Files take their names when they are whole, so none is torn."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os.write(2, b"finetune: left at once; what was saved before is whole\n")
    os._exit(128 + number)
