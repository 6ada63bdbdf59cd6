"""Torch's global generator, lent out: transforms.v2 draws from it and takes no other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_drawing = threading.Lock()


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Within, torch draws from ``seed``; afterwards the generator is as it was.

    One thread at a time: the generator belongs to the process.
    """
    generator = torch.default_generator
    with _drawing:
        before = generator.get_state()
        generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(before)
