"""RNG scope: temporary seed for torch's global generator, the only one transforms.v2 uses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_drawing = threading.Lock()


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside the context and restore its state afterwards.

    One thread at a time can be inside, because the generator is global to the process.
    """
    generator = torch.default_generator
    with _drawing:
        before = generator.get_state()
        generator.manual_seed(seed)
        try:
            yield
        finally:
            generator.set_state(before)
