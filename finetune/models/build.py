"""Build torchvision networks: weights, build flags, preprocessing and input size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from finetune.checkpoints.finetuned_source import SourceRun, find_source_run
from finetune.config.model_registry import Family, family_of
from finetune.config.schema import Fit, GivenPreprocessing, ModelConfig, PreprocessingConfig
from finetune.core.errors import ConfigError, ModelError
from finetune.core.files import expand_user
from finetune.core.seeding import seed_for
from finetune.core.text import did_you_mean
from finetune.models.known_weights import (
    as_trained,
    exported_preprocessing,
    in_words,
    origin_of,
    preprocessing_of,
)
from finetune.models.shapes import ShapesOnly
from finetune.models.weight_files import about

_BUNDLED_PREPROCESSING = PreprocessingConfig(resize=64, crop=64)
_TRAINED_WITH = ("transform_input", "image_size")
"""Build flags tied to the weights; maxvit's input_size is not, as its window size is fixed."""


@dataclass(frozen=True)
class ModelSpec:
    """Resolved specification of a network, without ``auto`` values.

    Attributes:
        name: Name of the torchvision builder.
        weights: Name of a weights entry, a path, ``bundled`` or ``none``; never ``DEFAULT``.
        build_flags: Further keyword arguments of the torchvision builder. They are stored in the
            checkpoint, since a network rebuilt without them may silently differ.
        preprocessing: Preprocessing of the images.
    """

    name: str
    weights: str
    build_flags: dict[str, Any]
    preprocessing: PreprocessingConfig
    earlier: SourceRun | None = None
    """Earlier finetune run that the weights are from, or None."""
    leave_out: tuple[str, ...] = ()
    """Globs of the tensors that are not loaded from the weights (``model.leave_out``)."""
    note: str = ""
    """Message about the origin of the preprocessing for a weights file; empty if it was given."""

    def with_levels(self, levels: int | None) -> ModelSpec:
        """Return a copy with another white level in the preprocessing."""
        preprocessing = self.preprocessing.model_copy(update={"levels": levels})
        return replace(self, preprocessing=preprocessing)

    @property
    def family(self) -> Family:
        """Model family, with the path of its head."""
        return family_of(self.name)

    @property
    def heads(self) -> tuple[str, ...]:
        """Paths of the replaced layers: the head, and auxiliary heads if they are kept."""
        kept = self.build_flags.get("aux_logits", False)
        return (self.family.head, *(self.family.aux_heads if kept else ()))


def is_entry(weights: str) -> bool:
    """Whether ``weights`` has the form of a torchvision entry name (upper case), not of a path."""
    return weights.isidentifier() and weights.isupper()


def is_path(weights: str) -> bool:
    """Whether ``weights`` is the path of a file or run directory."""
    return not is_entry(weights) and weights not in ("bundled", "none")


def resolve_model(config: ModelConfig, *, fit: Fit = "crop") -> ModelSpec:
    """Resolve weights entry, build flags and preprocessing.

    Args:
        fit: Value of ``data.fit``.

    Raises:
        ModelError: The weights entry does not exist, or the weights are from another network.
        ConfigError: The preprocessing names an unknown entry, or there are no auxiliary heads.
        CheckpointError: The checkpoint of an earlier finetune run is damaged.
    """
    entries = {entry.name: entry for entry in models.get_model_weights(config.name)}
    weights = config.weights
    if weights == "DEFAULT":
        weights = models.get_model_weights(config.name).DEFAULT.name
    elif is_entry(weights) and weights not in entries:
        raise ModelError(
            f"{config.name} has no weights {weights!r}",
            kind="model.unknown_weights",
            key="model.weights",
            to_do=f"{did_you_mean(weights, entries)} It has {', '.join(entries)}; a path, bundled "
            "or none are also possible",
        )
    earlier = find_source_run(weights) if is_path(weights) else None
    if earlier is not None:
        _check_continues(config, earlier)
        weights = str(earlier.path)
    first = next(iter(entries.values()))
    entry = entries.get(weights, first)
    file = expand_user(weights) if is_path(weights) and earlier is None else None
    fixed_size = family_of(config.name).fixed_size
    facts = None if file is None else about(file, fixed_size=fixed_size)
    origin = None if file is None else origin_of(file, facts, entries)
    if origin is not None:
        entry = origin.entry
    given = _resolve_preprocessing(config, weights, entry, entries, earlier)
    flags = _build_flags(config, weights, entry, given)
    note = ""
    if facts is not None and facts.image_size is not None:
        flags = {"image_size": facts.image_size}
    if origin is not None and facts is not None and config.preprocessing == "auto":
        exported = exported_preprocessing(facts)
        given = exported or as_trained(given, flags.get("image_size", given.crop))
        note = in_words(weights, origin, given, exported=exported is not None)
    if earlier is not None:
        before = earlier.metadata.build_flags
        flags |= {key: before[key] for key in _TRAINED_WITH if key in flags and key in before}
    preprocessing = PreprocessingConfig(**{**given.model_dump(), "fit": fit})
    return ModelSpec(
        config.name, weights, flags, preprocessing, earlier, config.leave_out or (), note
    )


def _check_continues(config: ModelConfig, earlier: SourceRun) -> None:
    before = earlier.metadata
    if before.model_name != config.name:
        raise ModelError(
            f"{earlier.path} is a run of {before.model_name}, not of {config.name}",
            kind="model.other_model",
            key="model.weights",
            to_do=f"set model.name to {before.model_name}, or choose other weights",
        )
    if config.aux_heads and not before.build_flags.get("aux_logits", False):
        raise ConfigError(
            f"{earlier.path} was trained without auxiliary heads",
            kind="config.no_effect",
            key="model.aux_heads",
            to_do="remove it",
        )


def _resolve_preprocessing(
    config: ModelConfig,
    weights: str,
    entry: Any,
    entries: dict[str, Any],
    earlier: SourceRun | None,
) -> GivenPreprocessing:
    wanted = config.preprocessing
    if isinstance(wanted, GivenPreprocessing):
        return wanted
    if wanted == "auto" and earlier is not None:
        return earlier.metadata.preprocessing
    if wanted == "auto":
        return _BUNDLED_PREPROCESSING if weights == "bundled" else preprocessing_of(entry)
    if wanted not in entries:
        raise ConfigError(
            f"{config.name} has no weights {wanted!r} whose preprocessing could be used",
            kind="config.unknown_weights",
            key="model.preprocessing",
            to_do=f"{did_you_mean(wanted, entries)} It has {', '.join(entries)}; auto, or resize, "
            "crop, mean, std and interpolation are also possible",
        )
    return preprocessing_of(entries[wanted])


def _build_flags(
    config: ModelConfig, weights: str, entry: Any, preprocessing: GivenPreprocessing
) -> dict[str, Any]:
    """Explicit values of the flags that torchvision's builder would derive from the weights."""
    family = family_of(config.name)
    pretrained = weights != "none"
    if config.aux_heads and not family.aux_modules:
        raise ConfigError(
            f"{config.name} has no auxiliary heads; only googlenet and inception_v3 have",
            kind="config.no_effect",
            key="model.aux_heads",
            to_do="remove it",
        )
    if family.aux_modules:
        return {
            "transform_input": pretrained,
            "aux_logits": config.aux_heads,
            "init_weights": False,  # weights are loaded right after building
        }
    if family.fixed_size:
        size = entry.meta["min_size"][0] if pretrained else preprocessing.crop
        return {"image_size": size}
    if family.name == "maxvit" and preprocessing.crop != 224:
        return {"input_size": [preprocessing.crop, preprocessing.crop]}
    return {}


def rebuild(name: str, num_classes: int, build_flags: dict[str, Any]) -> nn.Module:
    """Build a network without weights; ``weights=`` of a builder would unpickle its cached file.

    Raises:
        ModelError: The network cannot be built with these flags.
    """
    try:
        model: nn.Module = models.get_model(
            name, weights=None, num_classes=num_classes, **build_flags
        )
    except (ValueError, RuntimeError, AssertionError) as error:
        raise ModelError(
            f"{name} cannot be built with {build_flags}: {_first_line(error)}",
            kind="model.cannot_be_built",
            key="model.name",
            to_do=f"Sizes that work: {family_of(name).sizes}",
        ) from error
    return model


def build_untrained(spec: ModelSpec, num_classes: int, *, seed: int) -> nn.Module:
    """Build the network with a head for ``num_classes``, with the family's initialisation.

    The torchvision builder creates the head, so that its type (a convolution in squeezenet, without
    bias in maxvit) and initialisation are those of the family.
    """
    flags = dict(spec.build_flags)
    if "init_weights" in flags:
        flags["init_weights"] = True
    torch.manual_seed(seed_for(seed, "init"))
    return rebuild(spec.name, num_classes, flags)


class _OnMeta(TorchFunctionMode):
    """Mode that allocates parameters on the meta device, and computes everything else normally.

    ``torch.device("meta")`` as a context would also affect the tensor arithmetic in regnet's
    builder.
    """

    allocators = (torch.empty, torch.zeros, torch.ones, torch.randn, torch.rand)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.allocators and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def build_skeleton(spec: ModelSpec, num_classes: int) -> nn.Module:
    """Build the network on the meta device (no values), within a fraction of a second."""
    return rebuild_skeleton(spec.name, num_classes, spec.build_flags)


def rebuild_skeleton(name: str, num_classes: int, build_flags: dict[str, Any]) -> nn.Module:
    """Build a network like `rebuild`, but on the meta device (shapes without values)."""
    with _OnMeta():
        model = rebuild(name, num_classes, build_flags)
    return model.to("meta")


def check_input_size(skeleton: nn.Module, spec: ModelSpec, *, batch_size: int) -> None:
    """Run the skeleton once, in its current modes, on the input shape of training.

    Raises:
        ModelError: The network does not accept this input size.
    """
    crop = spec.preprocessing.crop
    images = torch.empty(min(batch_size, 2), 3, crop, crop, device="meta")
    try:
        with torch.no_grad(), ShapesOnly():
            skeleton(images)
    except (ValueError, RuntimeError, AssertionError, TypeError, IndexError) as error:
        raise _size_error(spec, batch_size, error) from error


def _size_error(spec: ModelSpec, batch_size: int, error: Exception) -> ModelError:
    crop = spec.preprocessing.crop
    if batch_size == 1 and "more than 1 value per channel" in str(error):
        return ModelError(
            f"{spec.name} at {crop} px cannot train its norm layers on one image at a time",
            kind="model.batch_of_one",
            key="data.batch_size",
            to_do="set it to 2 or more",
        )
    works = spec.family.sizes
    if spec.family.fixed_size:
        works = f"{spec.build_flags['image_size']} px, fixed by its position embedding"
    return ModelError(
        f"{spec.name} cannot process images of {crop} px ({_first_line(error)})",
        kind="model.image_size",
        key="model.preprocessing",
        to_do=f"Sizes that work: {works}. Set model.preprocessing to auto, or choose another crop",
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
