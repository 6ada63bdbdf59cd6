"""Which picture of an image an epoch sees: a finite set of views can be computed once and kept."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.keyed import seed_for


@dataclass(frozen=True)
class Views:
    """The views of each image under a policy.

    Attributes:
        policy: none (one view), flip (the image and its mirror image) or crop_flip.
        count: How many views there are; None where every epoch draws a new one.
        seed: Of the run.
    """

    policy: str
    count: int | None
    seed: int

    @classmethod
    def of(cls, policy: str, *, crops: int = 0, seed: int = 0) -> Views:
        """The views of a policy; ``crops`` bounds those of crop_flip, 0 leaves them unbounded."""
        counts = {"none": 1, "flip": 2, "crop_flip": crops or None}
        return cls(policy, counts[policy], seed)

    @property
    def are_random(self) -> bool:
        """Whether a view is drawn by seed, so that another seed gives other views."""
        return self.policy == "crop_flip"

    def pick(self, epoch: int, index: int) -> int:
        """The view of image ``index`` in an epoch."""
        if self.count is None:
            return epoch
        if self.count == 1:
            return 0
        return seed_for(self.seed, "pick", epoch, index) % self.count

    def seed_of(self, index: int, view: int) -> int:
        """What a random view is drawn from, whenever it is drawn."""
        return seed_for(self.seed, "view", index, view)
