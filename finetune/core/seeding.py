"""Keyed seeding: a seed is a hash of its purpose instead of stored RNG state; imports no torch.

A resumed or repeated run draws the same numbers because it uses the same keys, independent of the
number of worker processes and of what ran before.
"""

from __future__ import annotations

import hashlib


def seed_for(*key: int | str) -> int:
    """Return a 32-bit seed for a key such as ``(run_seed, "augment", epoch, index)``.

    The key is hashed instead of packed, since torch's CPU generator uses only the low 32 bits of a
    seed.
    """
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
