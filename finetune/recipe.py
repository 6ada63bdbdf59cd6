"""Rules for a config, from what was seen of the data and what trains; no torch.

`init` writes down what they give, and `auto` goes by them. Each is one function, and says where it
comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.backbones import BUILDERS, BUNDLED_MODEL, family_of
from finetune.config import GivenPreprocessing
from finetune.config_section import AUTO
from finetune.data.glance import Glance

FEW_PHOTOS = 5_000
MANY_PHOTOS = 20_000
_BATCH_OF_BIT = 512
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 30
_SMALL_PX, _SMALL_CROP = 96, 128
_LONG = 2.0
_IMBALANCED_FROM = 5.0
WITHOUT_NORM = frozenset({"alexnet", "vgg", "squeezenet"})
_TRAINED_BY_ADAMW = frozenset({"convnext", "vit", "swin", "swin_v2", "maxvit"})

_MOST_TRAINS = 0.5
_MEASURED_AT = 32
"""Images a batch."""
_MOST_LARGER = 8
"""Times that batch, as far as learning rates go with it."""

HEAD, BLOCK, EVERYTHING = "head", "block", "everything"


@dataclass(frozen=True)
class Optimizer:
    """The optimizer with its values, and the warm-up in epochs."""

    name: str
    lr: float
    weight_decay: float
    warmup_epochs: int


def backbone_for(weights: str, device: str) -> tuple[str, str]:
    """A backbone where none was named, and why.

    Networks that are better on ImageNet transfer better (Kornblith et al. 2019), so the best that
    the machine trains at ease.
    """
    if weights == "bundled":
        return BUNDLED_MODEL, "the backbone that comes with finetune"
    stem = Path(weights).name.lower()
    named = [name for name in BUILDERS if stem.startswith(name)]
    if named:
        return max(named, key=len), "by the name of the weights' file"
    if device == "cuda":
        return "resnet50", "accurate, and quick on a GPU"
    return "mobilenet_v2", "small enough for a processor"


def what_trains(num_train: int, device: str) -> tuple[str, str]:
    """head, block or everything, and why.

    Measured with mobilenet_v2: on 245 photos of ants and bees a head alone did best; on 3,251 of
    flowers the last block, after 12 epochs of 35 s, had not passed the 93 % that a head reaches
    with epochs of under a second; on 11,400 of CIFAR-100 it gained 1.3 points (65.9 % for 64.6 %)
    at eleven times the time. All of a network is left to the numbers that BiT (Kolesnikov et
    al. 2020) no longer counts as few, and to machines that can.
    """
    if num_train < FEW_PHOTOS:
        return HEAD, f"below {FEW_PHOTOS:,} photos a new head alone is hard to beat"
    if num_train < MANY_PHOTOS:
        return BLOCK, f"from {FEW_PHOTOS:,} photos on, training the last block can repay itself"
    if device == "cpu":
        return BLOCK, "there are photos enough to train everything, on a GPU: patterns: []"
    return EVERYTHING, f"from {MANY_PHOTOS:,} photos on, everything can train"


def epochs_for(num_train: int) -> int:
    """How long, by the BiT-HyperRule (Kolesnikov et al. 2020): 500 steps of 512 images below 20,000
    images, 10,000 below 500,000, else 20,000.

    At least 10 epochs; at most 30, since what trains here settles sooner than a whole network.
    """
    steps = 500 if num_train < 20_000 else 10_000 if num_train < 500_000 else 20_000
    epochs = round(steps * _BATCH_OF_BIT / num_train)
    return min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS)


def trains_of(training: int, layers: int) -> str:
    """head, block or everything: what trains where so many layers of a backbone do."""
    if not training:
        return HEAD
    return EVERYTHING if training >= _MOST_TRAINS * layers else BLOCK


def optimizer_for(
    model: str, weights: str, trains: str, *, name: str = AUTO, batch_size: int = _MEASURED_AT
) -> Optimizer:
    """The measured recipes' values (configs/); a block's is lower where there is no norm layer to
    hold its steps.

    AdamW for the families that were themselves trained by it, at its usual tenth for pretrained
    parameters. Learning rates go with the batch: in proportion for SGD (Goyal et al. 2017), with
    its root for Adam's kind (Malladi et al. 2022), up to eight times the batch that they were
    measured at: far beyond it neither rule holds without a longer warm-up. No weight decay with
    SGD, as BiT fine-tunes (Kolesnikov et al. 2020); AdamW's own (Loshchilov and Hutter 2019).

    Where all of MobileNetV2 trained, SGD ended lower at 0.005 than at 0.002: on ants and bees, 10
    epochs, three seeds, with a loss of 0.16 and 93.9 % for 0.27 and 93.7 %.

    Args:
        name: auto, or one of `finetune.config_optimizer.RATED`.
        batch_size: Images of an optimizer step.
    """
    family = family_of(model).name
    if name == AUTO:
        name = "adamw" if family in _TRAINED_BY_ADAMW else "sgd"
    warmup = {HEAD: 0, BLOCK: 1, EVERYTHING: 2}[trains]
    larger = min(batch_size / _MEASURED_AT, _MOST_LARGER)
    if name != "sgd":
        lr = {HEAD: 1e-3, BLOCK: 1e-4, EVERYTHING: 5e-5}[trains]
        return Optimizer(name, _short(lr * larger**0.5), 0.01 if name == "adamw" else 0.0, warmup)
    if weights == "bundled" and trains == HEAD:
        return Optimizer(name, _short(0.1 * larger), 0.0, warmup)  # configs/quickstart.yaml
    pretrained = 0.002 if family in WITHOUT_NORM else 0.005
    lr = 0.01 if trains == HEAD else pretrained
    return Optimizer(name, _short(lr * larger), 0.0, warmup)


def _short(value: float) -> float:
    """To three digits: a rule is no more exact."""
    return float(f"{value:.3g}")


def preprocessing_for(
    given: GivenPreprocessing, glance: Glance, model: str, weights: str
) -> GivenPreprocessing | None:
    """Another size than the weights' own, for small images; None where their own is right.

    BiT-HyperRule: images below 96 x 96 pixels are seen at 128. With a head on mobilenet_v2,
    CIFAR-100's 32 pixels gave 64.6 % at 128 and 65.4 % at 224, for 2.6 times the time.
    """
    family = family_of(model)
    takes_any = not family.fixed_size and family.name != "maxvit"
    width, height = glance.median_size
    if weights == "bundled" or not takes_any or width * height >= _SMALL_PX**2:
        return None
    if given.crop <= _SMALL_CROP:
        return None
    return given.model_copy(update={"resize": _SMALL_CROP, "crop": _SMALL_CROP})


def fit_for(glance: Glance) -> str:
    """pad where a central square would lose more than half of the usual photo."""
    return "pad" if glance.median_aspect >= _LONG else "crop"


def policy_for(class_names: tuple[str, ...], trains: str) -> tuple[str, str]:
    """The policy, and why: letters and digits are others in the mirror."""
    if all(len(name) == 1 for name in class_names):
        return "none", "names of one character may be letters or digits, which no mirror keeps"
    if trains == EVERYTHING:
        return "crop_flip", "nothing is frozen that could be kept, so new crops cost nothing more"
    return "auto", "a photo and its mirror image where features can be kept, else random crops"


def mixup_for(num_train: int, trains: str) -> float:
    """0.1 from 20,000 images on (BiT-HyperRule), where everything trains: mixed images have no
    features that could be kept."""
    return 0.1 if trains == EVERYTHING and num_train >= MANY_PHOTOS else 0.0


def balance_for(counts: tuple[int, ...]) -> str:
    """weights from the ratio on at which check-data warns."""
    return "weights" if max(counts) / max(min(counts), 1) >= _IMBALANCED_FROM else "none"
