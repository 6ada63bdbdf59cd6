"""Search space: random draws from ranges, or a grid of all combinations; does not import torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune.config.base import AUTO
from finetune.config.error_messages import problems_of
from finetune.config.model_registry import BUILDERS, family_of
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config, ModelConfig
from finetune.config.stages import stage_configs
from finetune.config.tune import Range, TuneConfig, Values
from finetune.core.errors import ConfigError
from finetune.core.seeding import seed_for
from finetune.recipes.heuristics import FEW_PHOTOS, WITHOUT_NORM
from finetune.results.tuning import Settings

GRID_POINTS = 4
"""Number of grid points in a range, both ends included."""
MOST_TRIALS = 10_000
_DIGITS = 3
_FOLDS = 5
_HEADS, _OTHERS = 64, 12
"""Default numbers of trials: of heads, which are trained in parallel, and of anything larger."""

# Ranges for a head after norm layers. The cautious ones are for trainable pretrained weights, and
# for networks without norm layers, which would limit the effect of large steps.
_LR = {"sgd": Range(min=0.003, max=1.0), "adamw": Range(min=0.0003, max=0.1)}
_LR_CAUTIOUS = {"sgd": Range(min=0.0005, max=0.05), "adamw": Range(min=3e-5, max=3e-3)}
_WEIGHT_DECAY = {"sgd": Range(min=1e-6, max=1e-1), "adamw": Range(min=1e-4, max=1.0)}
_LABEL_SMOOTHING = (0.0, 0.05, 0.1)
_REFINED = 4
"""Number of random trials for each trial around the best of them."""
_LR_AROUND, _DECAY_AROUND = 2.0, 4.0
"""Largest factors by which trials around the best differ from it."""
HEAD_RATES: dict[str, tuple[tuple[float, float], ...]] = {
    "sgd": (
        *((0.01, 0.0), (0.03, 0.0), (0.1, 0.0), (0.1, 0.001)),
        *((0.1, 0.01), (0.3, 0.001), (0.3, 0.01), (1.0, 0.001)),
    ),
    "adamw": (
        *((0.0003, 0.01), (0.001, 0.01), (0.003, 0.01), (0.003, 0.1)),
        *((0.01, 0.01), (0.01, 0.1), (0.03, 0.01), (0.03, 0.1)),
    ),
}
"""Learning rates and weight decays of heads that ``lr: auto`` chooses from, for each optimizer."""
_OF_ANY_OPTIMIZER = ("layer_decay", "groups", "decay_norms_and_biases")
"""Keys of the section ``optimizer`` that apply to every optimizer class."""

T = TypeVar("T")
C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Space:
    """Search space; learning rate and weight decay are per optimizer, as their scales differ."""

    optimizers: tuple[str, ...]
    lr: Mapping[str, Values]
    weight_decay: Mapping[str, Values]
    label_smoothing: Values
    batch_sizes: tuple[int, ...]
    epochs: tuple[int, ...]


def space_of(config: PlannedConfig, *, only_head: bool, num_train: int) -> Space:
    """Return the search space of the config's ``tune`` section, with defaults filled in.

    Raises:
        ConfigError: a number of epochs is smaller than that of the warmup.
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
            f"{min(epochs)} is shorter than schedule.warmup_epochs, {warmup:g}",
            kind="config.invalid_value",
            key="tune.epochs",
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
    """Resolve ``tune.folds``; 0 selects on the validation split.

    ``auto`` means cross-validation for fewer than `FEW_PHOTOS` training images.
    """
    folds = (config.tune or TuneConfig()).folds
    if folds == "auto":
        return _FOLDS if num_train < FEW_PHOTOS else 0
    return folds


def settings_of(
    config: PlannedConfig, space: Space, *, only_head: bool, in_grid: bool
) -> list[Settings]:
    """Return the default settings, then random ones or the whole grid.

    Raises:
        ConfigError: the grid is too large.
    """
    first = default_settings(config, only_head=only_head)
    if in_grid:
        others = list(itertools.islice(_grid(space), MOST_TRIALS + 1))
        if len(others) > MOST_TRIALS:
            raise ConfigError(
                f"the values in section tune give more than {MOST_TRIALS:,} combinations",
                kind="config.grid_too_large",
                key="--grid",
                to_do="list fewer values, or use --trials instead",
            )
        return list(dict.fromkeys([first[0], *others]))
    tune = config.tune or TuneConfig()
    count = tune.trials or (_HEADS if only_head else _OTHERS)
    return list(dict.fromkeys([*first, *draw(space, count - len(first), seed=config.seed)]))


def default_settings(config: PlannedConfig, *, only_head: bool) -> list[Settings]:
    """Return the settings of the config itself, then those that ``lr: auto`` chooses from.

    The latter only for heads without a section ``tune``, which limits the settings to its own.
    """
    own = own_settings(config)
    if not only_head or (config.tune or TuneConfig()) != TuneConfig():
        return [own]
    rates = HEAD_RATES.get(own.optimizer, ())
    return list(
        dict.fromkeys([own, *(replace(own, lr=lr, weight_decay=decay) for lr, decay in rates)])
    )


def settings_around(best: Settings, space: Space, count: int, *, seed: int) -> list[Settings]:
    """Draw settings with other rates near those of the best trial, for a second round.

    A quarter of ``count``, the number of trials so far; none if that is fewer than four. Rates
    that the space lists are kept; a weight decay of 0 and those of another optimizer too.
    """
    fewest = 4
    number = count // _REFINED
    if number < fewest:
        return []
    lr, decay = space.lr.get(best.optimizer), space.weight_decay.get(best.optimizer)

    def near(value: float, values: Values | None, factor: float, share: float) -> float:
        if not isinstance(values, Range) or not value:
            return value
        moved = value * factor ** (2 * share - 1)
        # A default setting may lie outside the range.
        low, high = min(values.min, value), max(values.max, value)
        return float(f"{min(max(moved, low), high):.{_DIGITS}g}")

    found = []
    for one in range(1, number + 1):
        shares = [seed_for(seed, "tune around", one, key) / 2**32 for key in ("lr", "weight_decay")]
        found.append(
            replace(
                best,
                lr=near(best.lr, lr, _LR_AROUND, shares[0]),
                weight_decay=near(best.weight_decay, decay, _DECAY_AROUND, shares[1]),
            )
        )
    return [one for one in dict.fromkeys(found) if one != best]


def own_settings(config: PlannedConfig) -> Settings:
    """Return the settings of the config itself."""
    return Settings(
        optimizer=config.optimizer.name,
        lr=config.optimizer.lr,
        weight_decay=config.optimizer.weight_decay,
        label_smoothing=config.train.label_smoothing,
        batch_size=config.data.batch_size,
        epochs=config.train.epochs,
    )


def draw(space: Space, count: int, *, seed: int) -> list[Settings]:
    """Draw random settings (Bergstra and Bengio 2012).

    Each is seeded by its number, so that a longer search starts with the same settings.
    """
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
    """Return the value at a fraction of the range, rounded to a few significant digits."""
    if not isinstance(values, Range):
        return _pick(values, share)
    if values.min > 0:
        value = values.min * (values.max / values.min) ** share
    else:
        value = values.max * share
    return float(f"{value:.{_DIGITS}g}")


def _grid(space: Space) -> Iterator[Settings]:
    """Yield every combination, with `GRID_POINTS` evenly spaced points per range."""
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


def with_settings(config: C, settings: Settings) -> C:
    """Return the config of a trial: one stage, with the settings of the trial.

    Keys that are specific to another optimizer are dropped.
    """
    values: dict[str, Any] = {
        "optimizer.lr": settings.lr,
        "optimizer.weight_decay": settings.weight_decay,
        "data.batch_size": settings.batch_size,
        "train.epochs": settings.epochs,
        "train.label_smoothing": settings.label_smoothing,
        "stages": (),
        "tune": None,
    }
    if settings.optimizer != config.optimizer.name:
        kept = {key: getattr(config.optimizer, key) for key in _OF_ANY_OPTIMIZER}
        values = {"optimizer": {"name": settings.optimizer, **kept}} | values
    return config.with_values(values)


def with_backbones(config: Config, given: str) -> list[Config]:
    """Return one config per backbone in a list such as ``a,b=weights,c``.

    The default weights are the config's own for the config's backbone, and DEFAULT for others. Each
    backbone uses its own preprocessing, unless the config gives explicit values.

    Raises:
        ConfigError: a backbone is unknown or repeated, or more than the head is trainable.
    """
    patterns = {one.freeze.patterns for one in stage_configs(config)}
    if config.recipe == AUTO:
        config = config.with_values({"recipe": "linear_probe", "train.budget": None})
    if config.recipe not in (None, "linear_probe") or patterns != {("*",)}:
        raise ConfigError(
            "compares linear probes, but this config does not train only the head",
            kind="config.conflict",
            key="--backbones",
            to_do="remove recipe, stages and freeze.patterns, whose patterns apply to one backbone",
        )
    found: dict[tuple[str, str], Config] = {}
    for entry in given.split(","):
        name, _, weights = entry.strip().partition("=")
        if not weights:
            weights = config.model.weights if name == config.model.name else "DEFAULT"
        if (name, weights) in found:
            raise ConfigError(
                f"{name} is given twice with the same weights",
                kind="config.duplicate_backbone",
                key="--backbones",
                to_do="remove one of them",
            )
        found[name, weights] = config.with_values({"model": _backbone(config.model, name, weights)})
    return list(found.values())


def _backbone(own: ModelConfig, name: str, weights: str) -> ModelConfig:
    if (name, weights) == (own.name, own.weights):
        return own
    values = own.model_dump(exclude_unset=True) | {"name": name, "weights": weights}
    values.pop("keep_head", None)  # applies to the config's own weights only
    values.pop("leave_out", None)
    if name in BUILDERS and not family_of(name).aux_modules:
        values.pop("aux_heads", None)
    if isinstance(own.preprocessing, str) and name != own.name:
        values["preprocessing"] = "auto"
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as error:
        first = next(problems_of(error))
        what = first.what if name else f"empty name: {first.what}"
        raise ConfigError(what, kind=first.kind, key="--backbones", to_do=first.to_do) from None
