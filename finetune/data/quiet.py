"""Decoding without Python's warnings, in any number of threads; imports no torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from finetune.locks import lock_across_forks

# Pillow logs what is wrong with a file, which is judged and reported by its caller. Without any
# handler, logging would print it to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_lock = lock_across_forks()
_inside = 0
_filters = ExitStack()


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Ignore warnings while any thread is inside.

    Where warnings are errors, a decoder that warns would refuse a sound photo, or lose its
    orientation. ``warnings.catch_warnings`` alone would let threads restore each other's filters.
    """
    global _inside
    with _lock:
        if not _inside:
            _filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _filters.close()
