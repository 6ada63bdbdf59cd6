"""Counts of computed and reused features."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureCounts:
    """Rows of features that a command needed; a row belongs to one photo in one view.

    Attributes:
        computed: Number of rows that were computed.
        reused: Number of rows that were known before.
        seconds: Time to find the known rows and compute the others.
    """

    computed: int
    reused: int
    seconds: float

    @property
    def in_words(self) -> str:
        """Counts as a phrase."""
        return f"features: {self.computed:,} computed, {self.reused:,} reused"


def total(counts: Iterable[FeatureCounts | None]) -> FeatureCounts | None:
    """Return the sum of the counts; None if no features were kept anywhere."""
    known = [one for one in counts if one is not None]
    if not known:
        return None
    return FeatureCounts(
        sum(one.computed for one in known),
        sum(one.reused for one in known),
        sum(one.seconds for one in known),
    )
