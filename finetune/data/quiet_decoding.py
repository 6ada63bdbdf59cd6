"""Suppression of Python warnings while decoding, in any number of threads; imports no torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from finetune.core.locks import lock_across_forks

# Pillow logs problems with a file, which the caller checks and reports. Without any handler,
# logging would print them to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_lock = lock_across_forks()
_inside = 0
_filters = ExitStack()


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Ignore warnings while any thread is inside the context.

    If warnings were errors, a decoder that warns would reject an intact photo or lose its
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
