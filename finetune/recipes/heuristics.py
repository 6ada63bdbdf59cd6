"""Heuristics for config values, from the dataset and the trainable part; imports no torch.

`init` writes their results to the config, and ``auto`` resolves to them. Each heuristic is one
function that names its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from finetune.config.base import AUTO, seconds_of
from finetune.config.model_registry import BUILDERS, BUNDLED_MODEL, family_of
from finetune.config.schema import GivenPreprocessing
from finetune.data.checks.summary import DatasetSummary

FEW_PHOTOS = 5_000
_BUDGETS = ("1m", "2m", "5m", "10m", "15m", "30m", "1h", "2h", "4h", "8h")
_BATCH_OF_BIT = 512
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 30
_SMALL_PX = 96
SMALL_CROP = 128
"""Input size, in pixels, that images below 96 x 96 are resized to."""
_LONG = 2.0
_IMBALANCED_FROM = 5.0
WITHOUT_NORM = frozenset({"alexnet", "vgg", "squeezenet"})
_TRAINED_BY_ADAMW = frozenset({"convnext", "vit", "swin", "swin_v2", "maxvit"})

_MOST_TRAINS = 0.5
_FEW = 1_000
"""Number of photos below which SGD was at least as accurate as AdamW."""
_MEASURED_AT = 32
"""Batch size at which the learning rates were measured."""
_MOST_LARGER = 8
"""Maximum factor of that batch size up to which learning rates are scaled."""

HEAD, BLOCK, EVERYTHING = "head", "block", "everything"


@dataclass(frozen=True)
class Optimizer:
    """Name and hyperparameters of an optimizer, and the warm-up in epochs."""

    name: str
    lr: float
    weight_decay: float
    warmup_epochs: int


def backbone_of(weights: str) -> tuple[str, str] | None:
    """Return the backbone that weights belong to, and why; None if any backbone has such weights.

    Args:
        weights: Value of ``model.weights``.
    """
    if weights == "bundled":
        return BUNDLED_MODEL, "the backbone that is included in finetune"
    if weights == "DEFAULT":
        return None
    stem = Path(weights).name.lower()
    named = [name for name in BUILDERS if stem.startswith(name)]
    if named:
        return max(named, key=len), "detected from the file name of the weights"
    return "mobilenet_v2", "small; weights that name no backbone are taken to be of this one"


def budget_for(pass_s: float) -> str:
    """Return the value of ``train.budget`` for which `init` expects a good model.

    Eight times the predicted duration of computing every image's features once, half a minute for
    timing, and rounded up. Measured with MobileNetV2 on two cores: on 3,251 photos of flowers, the
    new head and the last quarter of the network are trained in five times that duration.

    Args:
        pass_s: Predicted seconds of the feature pass over all images and mirror images.
    """
    needed_s = 30 + 8 * pass_s
    return next((it for it in _BUDGETS if seconds_of(it) >= needed_s), _BUDGETS[-1])


def epochs_for(num_train: int) -> int:
    """Return the number of epochs by the BiT-HyperRule (Kolesnikov et al. 2020).

    500 steps of 512 images below 20,000 images, 10,000 steps below 500,000, else 20,000. At least
    10 epochs, and at most 30, since a partly frozen network converges sooner than a whole one.
    """
    steps = 500 if num_train < 20_000 else 10_000 if num_train < 500_000 else 20_000
    epochs = round(steps * _BATCH_OF_BIT / num_train)
    return min(max(epochs, _FEWEST_EPOCHS), _MOST_EPOCHS)


def trains_of(training: int, layers: int) -> str:
    """Return ``head``, ``block`` or ``everything``, by the number of trainable backbone layers."""
    if not training:
        return HEAD
    return EVERYTHING if training >= _MOST_TRAINS * layers else BLOCK


def optimizer_for(
    model: str,
    weights: str,
    trains: str,
    *,
    name: str = AUTO,
    batch_size: int = _MEASURED_AT,
    num_train: int | None = None,
) -> Optimizer:
    """Return the optimizer with the values of the measured recipes (configs/).

    The rate for a block is lower in families without norm layers, where nothing limits its steps.
    AdamW is chosen for families that were pretrained with it, with the usual tenth of the rate for
    pretrained parameters, and where more than the head of a network with norm layers trains on a
    thousand images or more.
    Learning rates scale with the batch size: linearly for SGD (Goyal et al. 2017), with the square
    root for Adam variants (Malladi et al. 2022), up to eight times the batch size at which they
    were measured: far beyond it, neither rule holds without a longer warm-up. SGD has no weight
    decay, as in BiT's fine-tuning (Kolesnikov et al. 2020); AdamW has its default (Loshchilov and
    Hutter 2019).

    Norm layers limit the effect of AdamW's steps: with all of MobileNetV2 trainable, CIFAR-100
    (14,250 images, 3 epochs) ended at 64.4 % with 0.00025, at 65.3 % with 0.0005, at 61.9 % with
    0.001 and at 59.8 % with SGD at 0.005; 245 photos of ants and bees (10 epochs) at 94.1 % with
    0.0002 and at 92.2 % with 0.0005.

    With the last 30 % of MobileNetV2's work trainable after its head, flowers5 (4 epochs) ended at
    95.7 % with 0.001, at 94.6 % with 0.0005 and at 94.6 % with SGD at 0.005; CIFAR-100 (4 epochs)
    at 71.1 % with 0.001 and at 70.6 % with SGD; ants and bees (8 epochs) at 94.8 % with 0.0002 and
    at 92.8 % with 0.001.

    With its last block trainable, flowers5 (4 epochs) ended at 93.4 % with AdamW and at 92.0 % with
    SGD, CIFAR-100 (3 epochs) at 60.1 and 53.9 %, ants and bees (10 epochs, three seeds) at 95.0 and
    95.9 %.

    With all of MobileNetV2 trainable, SGD ended with a lower loss at 0.005 than at 0.002 (ants and
    bees, 10 epochs, three seeds): 0.16 and 93.9 %, compared with 0.27 and 93.7 %.

    Args:
        trains: ``head``, ``block`` or ``everything``.
        name: ``auto``, or one of `finetune.config.optimizer.RATED`.
        batch_size: Number of images per optimizer step.
        num_train: Number of training images; None if unknown.
    """
    family = family_of(model).name
    few = num_train is not None and num_train < _FEW
    if name == AUTO:
        held = trains != HEAD and family not in WITHOUT_NORM and not few
        name = "adamw" if held or family in _TRAINED_BY_ADAMW else "sgd"
    warmup = {HEAD: 0, BLOCK: 1, EVERYTHING: 2}[trains]
    larger = min(batch_size / _MEASURED_AT, _MOST_LARGER)
    if name != "sgd":
        block, whole = 1e-4, 5e-5
        if family not in _TRAINED_BY_ADAMW | WITHOUT_NORM:
            block, whole = (2e-4, 2e-4) if few else (1e-3, 5e-4)
        lr = {HEAD: 1e-3, BLOCK: block, EVERYTHING: whole}[trains]
        return Optimizer(name, _short(lr * larger**0.5), 0.01 if name == "adamw" else 0.0, warmup)
    if weights == "bundled" and trains == HEAD:
        return Optimizer(name, _short(0.1 * larger), 0.0, warmup)  # configs/quickstart.yaml
    pretrained = 0.002 if family in WITHOUT_NORM else 0.005
    lr = 0.01 if trains == HEAD else pretrained
    return Optimizer(name, _short(lr * larger), 0.0, warmup)


def _short(value: float) -> float:
    """Round to three significant digits; the rules are not more precise."""
    return float(f"{value:.3g}")


def preprocessing_for(
    given: GivenPreprocessing, summary: DatasetSummary, model: str, weights: str
) -> GivenPreprocessing | None:
    """Return preprocessing with a smaller input size for small images; None to keep that given.

    BiT-HyperRule: images below 96 x 96 pixels are resized to 128. With a head on mobilenet_v2,
    CIFAR-100 (32 pixels) reached 64.6 % at 128, and 65.4 % at 224 in 2.6 times the time.
    """
    family = family_of(model)
    takes_any = not family.fixed_size and family.name != "maxvit"
    width, height = summary.median_size
    if weights == "bundled" or not takes_any or not are_small([(width, height)]):
        return None
    if given.crop <= SMALL_CROP:
        return None
    return given.model_copy(update={"resize": SMALL_CROP, "crop": SMALL_CROP})


def are_small(sizes: Sequence[tuple[int, int]]) -> bool:
    """Return whether the median image is below 96 x 96 pixels, the limit of the BiT-HyperRule.

    Random crops of small images leave too little to see: all of MobileNetV2 at 96 px reached 73.9 %
    on CIFAR-100 (32 pixels, 3 epochs after those of the head) without crops, and 72.8 % in twice
    the number of epochs with them. On flowers5 (227 pixels, 4 epochs) it reached 94.3 % without and
    95.6 % with crops.

    Args:
        sizes: Width and height of some images.
    """
    return median(width * height for width, height in sizes) < _SMALL_PX**2


def fit_for(summary: DatasetSummary) -> str:
    """Return ``pad`` if a central crop loses more than half of the median photo, else ``crop``."""
    return "pad" if summary.median_aspect >= _LONG else "crop"


def policy_for(class_names: tuple[str, ...], trains: str) -> tuple[str, str]:
    """Return the policy and the reason for it; letters and digits must not be mirrored."""
    if all(len(name) == 1 for name in class_names):
        return (
            "none",
            "class names of one character may be letters or digits, which must not be mirrored",
        )
    if trains == EVERYTHING:
        return "crop_flip", "no features can be cached, so new random crops have no extra cost"
    return "auto", "each photo and its mirror image if features are cached, else random crops"


def balance_for(counts: tuple[int, ...]) -> str:
    """Return ``weights`` from the imbalance ratio at which check-data warns, else ``none``."""
    return "weights" if max(counts) / max(min(counts), 1) >= _IMBALANCED_FROM else "none"
