"""Which settings a search tries: keyed draws from ranges, or every combination; no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from finetune.backbones import BUILDERS, family_of
from finetune.config import Config, ModelConfig, OptimizerConfig
from finetune.config_problems import problems_of
from finetune.config_tune import Range, TuneConfig, Values
from finetune.errors import ConfigError
from finetune.keyed import seed_for
from finetune.recipe import FEW_PHOTOS, WITHOUT_NORM
from finetune.stages import stage_configs
from finetune.tune_results import Settings

GRID_POINTS = 4
"""Of a range, in a grid; its ends among them."""
MOST_TRIALS = 10_000
_DIGITS = 3
_FOLDS = 5
_HEADS, _OTHERS = 64, 12
"""Trials: of heads, which train together, and of anything larger."""

# Of a head behind norm layers; searched lower where pretrained weights move, or no norm layer holds
# the steps.
_LR = {"sgd": Range(min=0.003, max=1.0), "adamw": Range(min=0.0003, max=0.1)}
_LR_CAUTIOUS = {"sgd": Range(min=0.0005, max=0.05), "adamw": Range(min=3e-5, max=3e-3)}
_WEIGHT_DECAY = {"sgd": Range(min=1e-6, max=1e-1), "adamw": Range(min=1e-4, max=1.0)}
_LABEL_SMOOTHING = (0.0, 0.05, 0.1)
_OF_ANY_OPTIMIZER = ("layer_decay", "groups", "decay_norms_and_biases")
"""Keys of the section ``optimizer`` that go by parameters, whichever class moves them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Space:
    """What may be drawn; rates and decays by optimizer, since each has a scale of its own."""

    optimizers: tuple[str, ...]
    lr: Mapping[str, Values]
    weight_decay: Mapping[str, Values]
    label_smoothing: Values
    batch_sizes: tuple[int, ...]
    epochs: tuple[int, ...]


def space_of(config: Config, *, only_head: bool, num_train: int) -> Space:
    """The config's section ``tune`` with its defaults.

    Raises:
        ConfigError: a number of epochs is shorter than the warmup.
    """
    tune = config.tune or TuneConfig()
    held = only_head and family_of(config.model.name).name not in WITHOUT_NORM
    lr = _LR if held else _LR_CAUTIOUS
    few = num_train < FEW_PHOTOS
    warmup = config.schedule.warmup_epochs
    epochs = tune.epochs
    if epochs is None:
        usual = (10, 25, 50) if only_head and few else (5, 10, 20)
        epochs = tuple(n for n in usual if n >= warmup) or (config.train.epochs,)
    if min(epochs) < warmup:
        raise ConfigError(
            f"tune.epochs: {min(epochs)} is shorter than schedule.warmup_epochs, {warmup:g}"
        )
    return Space(
        optimizers=tune.optimizer,
        lr={name: tune.lr or lr[name] for name in tune.optimizer},
        weight_decay={name: tune.weight_decay or _WEIGHT_DECAY[name] for name in tune.optimizer},
        label_smoothing=tune.label_smoothing or _LABEL_SMOOTHING,
        batch_sizes=tune.batch_size or ((32, 64, 128) if few else (64, 128, 256)),
        epochs=epochs,
    )


def num_folds(config: Config, num_train: int) -> int:
    """What ``tune.folds`` means; 0 where the validation split judges.

    Small sets are those on which `recipe.what_trains` advises a head.
    """
    folds = (config.tune or TuneConfig()).folds
    if folds == "auto":
        return _FOLDS if num_train < FEW_PHOTOS else 0
    return int(folds)


def settings_of(config: Config, space: Space, *, only_head: bool, in_grid: bool) -> list[Settings]:
    """Every trial: the config's own settings first, then the drawn ones or the whole grid.

    Raises:
        ConfigError: the grid is too large to try.
    """
    own = Settings(
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        label_smoothing=config.train.label_smoothing,
        batch_size=config.data.batch_size,
        epochs=config.train.epochs,
    )
    if in_grid:
        others = list(itertools.islice(_grid(space), MOST_TRIALS + 1))
        if len(others) > MOST_TRIALS:
            raise ConfigError(
                f"--grid: the ranges of tune: give more than {MOST_TRIALS:,} combinations; give "
                "fewer values, or take --trials instead"
            )
    else:
        tune = config.tune or TuneConfig()
        count = tune.trials or (_HEADS if only_head else _OTHERS)
        others = draw(space, count - 1, seed=config.seed)
    return list(dict.fromkeys([own, *others]))


def draw(space: Space, count: int, *, seed: int) -> list[Settings]:
    """Random settings (Bergstra and Bengio 2012), each drawn by its own number, so that a longer
    search begins with the same ones."""
    return [_drawn(space, number, seed) for number in range(1, count + 1)]


def _drawn(space: Space, number: int, seed: int) -> Settings:
    def share(key: str) -> float:
        return seed_for(seed, "tune", number, key) / 2**32

    optimizer = _pick(space.optimizers, share("optimizer"))
    return Settings(
        optimizer=optimizer,
        lr=_at(space.lr[optimizer], share("lr")),
        weight_decay=_at(space.weight_decay[optimizer], share("weight_decay")),
        label_smoothing=_at(space.label_smoothing, share("label_smoothing")),
        batch_size=_pick(space.batch_sizes, share("batch_size")),
        epochs=_pick(space.epochs, share("epochs")),
    )


def _pick(choices: Sequence[T], share: float) -> T:
    return choices[int(share * len(choices))]


def _at(values: Values, share: float) -> float:
    """The value at a share of the way, rounded to what a person would write."""
    if not isinstance(values, Range):
        return _pick(values, share)
    if values.min > 0:
        value = values.min * (values.max / values.min) ** share
    else:
        value = values.max * share
    return float(f"{value:.{_DIGITS}g}")


def _grid(space: Space) -> Iterator[Settings]:
    """Every combination; of a range, points evenly apart."""
    for optimizer in space.optimizers:
        for combination in itertools.product(
            _points(space.lr[optimizer]),
            _points(space.weight_decay[optimizer]),
            _points(space.label_smoothing),
            space.batch_sizes,
            space.epochs,
        ):
            yield Settings(optimizer, *combination)


def _points(values: Values) -> tuple[float, ...]:
    if not isinstance(values, Range):
        return values
    return tuple(_at(values, point / (GRID_POINTS - 1)) for point in range(GRID_POINTS))


def with_settings(config: Config, settings: Settings) -> Config:
    """The config as a trial trains it: one stage, which the base tells; what belongs to another
    optimizer is left behind."""
    moved = {"lr": settings.lr, "weight_decay": settings.weight_decay}
    if settings.optimizer == config.optimizer.name:
        optimizer = config.optimizer.model_copy(update=moved)
    else:
        kept = {key: getattr(config.optimizer, key) for key in _OF_ANY_OPTIMIZER}
        optimizer = OptimizerConfig.model_validate({"name": settings.optimizer, **moved, **kept})
    length = {"epochs": settings.epochs, "label_smoothing": settings.label_smoothing}
    return config.model_copy(
        update={
            "optimizer": optimizer,
            "data": config.data.model_copy(update={"batch_size": settings.batch_size}),
            "train": config.train.model_copy(update=length),
            "stages": (),
            "tune": None,
        }
    )


def with_backbones(config: Config, given: str) -> list[Config]:
    """The config with each of the backbones in ``a,b=weights,c``.

    Without weights it is the config's own for its own backbone, else DEFAULT. Its preprocessing is
    each backbone's own, where the config does not state one by its values.

    Raises:
        ConfigError: one is unknown or comes twice, or more than the head would train.
    """
    patterns = {one.freeze.patterns for one in stage_configs(config)}
    if config.recipe not in (None, "linear_probe") or patterns != {("*",)}:
        raise ConfigError(
            "--backbones compares probes, in which the head alone trains: leave out recipe, "
            "stages and freeze.patterns, whose names are those of one backbone"
        )
    found: dict[tuple[str, str], Config] = {}
    for entry in given.split(","):
        name, _, weights = entry.strip().partition("=")
        if not weights:
            weights = config.model.weights if name == config.model.name else "DEFAULT"
        if (name, weights) in found:
            raise ConfigError(f"--backbones: {name} is given twice with the same weights")
        found[name, weights] = config.model_copy(
            update={"model": _backbone(config.model, name, weights)}
        )
    return list(found.values())


def _backbone(own: ModelConfig, name: str, weights: str) -> ModelConfig:
    if (name, weights) == (own.name, own.weights):
        return own
    values = own.model_dump(exclude_unset=True) | {"name": name, "weights": weights}
    values.pop("keep_head", None)  # of the config's own weights
    values.pop("leave_out", None)
    if name in BUILDERS and not family_of(name).aux_modules:
        values.pop("aux_heads", None)
    if isinstance(own.preprocessing, str) and name != own.name:
        values["preprocessing"] = "auto"
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        texts = "; ".join(problem.text for problem in problems_of(error))
        raise ConfigError(f"--backbones: {name or 'an empty name'}: {texts}") from None
