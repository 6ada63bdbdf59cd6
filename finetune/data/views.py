"""Which picture of an image an epoch sees: a finite set of views can be computed once and kept."""

from __future__ import annotations

from dataclasses import dataclass

from finetune.config_augment import DRAWN_POLICIES, AugmentConfig
from finetune.keyed import seed_for


@dataclass(frozen=True)
class Views:
    """The views of each image under a policy.

    Attributes:
        policy: none (one view), flip (the image and its mirror image) or one that draws.
        count: How many views there are; None where every epoch draws a new one.
        seed: Of the run.
        crop_scale: The smallest share of a photo's area that a crop keeps, where the policy crops.
        color_jitter, erasing: Drawn on top of any policy.
        are_random: A view is drawn by seed, so that another seed gives other views.
    """

    policy: str
    count: int | None
    seed: int
    crop_scale: float = 1.0
    color_jitter: float = 0.0
    erasing: float = 0.0
    are_random: bool = False

    @classmethod
    def of(cls, policy: str, *, bound: int = 0, seed: int = 0) -> Views:
        """The views of a policy; ``bound`` bounds random ones, 0 leaves them unbounded."""
        return cls.of_training(AugmentConfig.model_construct(policy=policy, views=bound), seed=seed)

    @classmethod
    def of_training(cls, augment: AugmentConfig, *, seed: int = 0) -> Views:
        """The views of training images; a batch that is mixed makes every one of them new."""
        random = augment.draws or augment.mixes
        count = augment.views or None if random else {"none": 1, "flip": 2}[augment.policy]
        return cls(
            *(augment.policy, count, seed),
            *(augment.crop_scale, augment.color_jitter, augment.erasing),
            are_random=random,
        )

    @property
    def crops(self) -> bool:
        """Whether the policy cuts photos at random, where they may be cut."""
        return self.policy in DRAWN_POLICIES

    @property
    def name(self) -> str:
        """What decides a view beside its number and the seed, in words."""
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
        """The view of image ``index`` in an epoch."""
        if self.count is None:
            return epoch
        if self.count == 1:
            return 0
        return seed_for(self.seed, "pick", epoch, index) % self.count

    def seed_of(self, index: int, view: int) -> int:
        """What a random view is drawn from, whenever it is drawn."""
        return seed_for(self.seed, "view", index, view)
