"""Benchmark cases: trainable parameters, network, epochs and compared libraries."""

from __future__ import annotations

from dataclasses import dataclass

PLAIN = "plain loop"
COLD = "finetune, empty cache"
WARM = "finetune, warm cache"
EVAL_EPOCHS = "finetune, no feature cache, evaluation of an epoch"
EVAL_COMMAND = "`finetune eval`, empty cache, as reported"
EVAL_COMPUTED = "`finetune eval`, no feature cache, as reported"
TIMM_BF16 = "timm, bfloat16, channels_last"
FEATURES = "features, then logistic regression"


@dataclass(frozen=True)
class Peer:
    """A compared program in ``peers/``, with its own options."""

    name: str
    program: str
    options: tuple[str, ...] = ()


LIGHTNING = Peer("Lightning, BackboneFinetuning", "lightning_backbone.py")
LIGHTNING_FROZEN = Peer(
    "Lightning, norm layers frozen too", "lightning_backbone.py", ("--freeze-norms",)
)
TRANSFORMERS = Peer("Transformers, Trainer", "transformers_trainer.py")
FASTAI = Peer("fastai, Learner", "fastai_learner.py")
FASTAI_FROZEN = Peer("fastai, norm layers frozen too", "fastai_learner.py", ("--freeze-norms",))
LOGISTIC = Peer(FEATURES, "features_logistic.py")
TIMM = Peer("timm, float32", "timm_script.py")
TIMM_AMP = Peer(TIMM_BF16, "timm_script.py", ("--amp",))


@dataclass(frozen=True)
class Case:
    """One training task, the same for every contender.

    Attributes:
        patterns: Freeze patterns of `finetune`.
        globs: Globs of trainable parameters in the plain loop, equivalent to ``patterns``.
        augment: Augmentation of the plain loop.
        sets: Overrides of `finetune` other than patterns, epochs, learning rate and data.
        warm: Whether to measure later runs too, which use the features cached by the first.
    """

    title: str
    epochs: int
    lr: str
    patterns: tuple[str, ...]
    globs: tuple[str, ...]
    peers: tuple[Peer, ...] = ()
    augment: str = "crop_flip"
    model: str = "mobilenet_v2"
    pretrained: bool = True
    sets: tuple[str, ...] = ()
    warm: bool = False


ALL_FROZEN = ("*",)
CROPS = "augment.crop_scale=0.08"
"""Crop scale that the other contenders use."""

CASES = {
    "head": Case(
        "Only the new head is trained",
        25,
        "0.01",
        ALL_FROZEN,
        (),
        peers=(LOGISTIC,),
        warm=True,
    ),
    "head_libraries": Case(
        "Only the new head is trained, compared with libraries",
        5,
        "0.01",
        ALL_FROZEN,
        (),
        peers=(LIGHTNING, LIGHTNING_FROZEN, TRANSFORMERS, FASTAI, FASTAI_FROZEN),
    ),
    "last_block": Case(
        "The last block and the head are trained",
        5,
        "0.005",
        (*ALL_FROZEN, "!features.18.*"),
        ("features.18.*",),
    ),
    "last_two_blocks": Case(
        "The last two blocks and the head are trained",
        5,
        "0.005",
        (*ALL_FROZEN, "!features.17.*", "!features.18.*"),
        ("features.17.*", "features.18.*"),
    ),
    "everything": Case(
        "All parameters are trained", 4, "0.002", (), ("*",), peers=(TIMM, TIMM_AMP), sets=(CROPS,)
    ),
    "head_same_augmentation": Case(
        "Only the head is trained, with new random crops in every epoch on both sides",
        3,
        "0.01",
        ALL_FROZEN,
        (),
        sets=("augment.policy=crop_flip", CROPS),
    ),
    "random_weights": Case(
        "Only the head of a ResNet-18 with random weights is trained",
        3,
        "0.01",
        ALL_FROZEN,
        (),
        model="resnet18",
        pretrained=False,
    ),
}
