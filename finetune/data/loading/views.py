"""Views: the variants that augmentation makes of an image, and which one an epoch uses.

A finite set of views can be computed once and cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.config.augment import DRAWN_POLICIES, AugmentConfig
from finetune.core.seeding import seed_for

KINDS = ("upright", "mirrored")
"""Keys of the views of policies that are not random; validation sees the first one."""


@dataclass(frozen=True)
class Views:
    """Views of each image under an augmentation policy.

    Attributes:
        policy: none (one view), flip (the image and its mirror image) or a random policy.
        count: Number of views; None if every epoch draws a new one.
        seed: Seed of the run.
        crop_scale: Minimum share of a photo's area in a random crop, if the policy crops.
        color_jitter: Strength of colour jitter, applied with any policy.
        erasing: Probability of random erasing, applied with any policy.
        are_random: Whether views are random, so that another seed gives other views.
        only: Number of the view that every epoch uses; None if it is drawn.
    """

    policy: str
    count: int | None
    seed: int
    crop_scale: float = 1.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    are_random: bool = False
    only: int | None = None

    @classmethod
    def of(cls, policy: str, *, bound: int = 0, seed: int = 0) -> Views:
        """Return the views of a policy; ``bound`` limits random views, 0 means no limit."""
        return cls.of_training(AugmentConfig.model_construct(policy=policy, views=bound), seed=seed)

    @classmethod
    def of_training(cls, augment: AugmentConfig, *, seed: int = 0) -> Views:
        """Return the views of training images; with mixup or cutmix they are random."""
        random = augment.draws or augment.mixes
        count = augment.views or None if random else {"none": 1, "flip": 2}[augment.policy]
        return cls(
            policy=augment.policy,
            count=count,
            seed=seed,
            crop_scale=augment.crop_scale,
            color_jitter=augment.color_jitter,
            erasing=augment.erasing,
            are_random=random,
        )

    @property
    def crops(self) -> bool:
        """Whether the policy includes random crops, where the preprocessing permits them."""
        return self.policy in DRAWN_POLICIES

    @property
    def name(self) -> str:
        """Name of the policy and its parameters, which with number and seed define a view."""
        extra = [
            f"{key} {value:g}"
            for key, value in (
                ("crop scale", self.crop_scale if self.crops else 0),
                ("color jitter", self.color_jitter),
                ("erasing", self.erasing),
            )
            if value
        ]
        return ", ".join([self.policy, *extra])

    def pick(self, epoch: int, index: int) -> int:
        """Return the view of image ``index`` in an epoch."""
        if self.only is not None:
            return self.only
        if self.count is None:
            return epoch
        if self.count == 1:
            return 0
        return seed_for(self.seed, "pick", epoch, index) % self.count

    def seed_of(self, path: Path, index: int, view: int) -> int:
        """Return the seed of a random view of an image.

        Views of a bounded number may be kept for later runs, in which the image may have another
        index: they are drawn by the file's name.
        """
        if self.count is None:
            return seed_for(self.seed, "view", index, view)
        return seed_for(self.seed, "view", path.name, view)

    def key_of(self, path: Path, view: int) -> str:
        """Return what distinguishes a view of an image from all others, of other runs as well."""
        if self.are_random:
            return f"{self.name} {self.seed_of(path, 0, view)}"
        return KINDS[view]
