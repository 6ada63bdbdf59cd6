"""Randomness that is keyed, not stored: a seed is a hash of what it is for; no torch.

A resumed or repeated run draws the same numbers because it asks for the same keys, whatever the
number of worker processes and whatever ran before.
"""

from __future__ import annotations

import hashlib


def seed_for(*key: int | str) -> int:
    """A 32-bit seed for a key such as ``(run_seed, "augment", epoch, index)``.

    Hashed rather than packed: torch's CPU generator uses the low 32 bits of a seed only.
    """
    text = "\x1f".join(map(str, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little")
