"""Config section ``model``: network, weights and preprocessing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from finetune.config.base import InvalidError, LocalPath, NoEffectError, Section, Text, tuple_of
from finetune.config.data import FULL_RANGE, WHITE_LEVELS, Fit
from finetune.config.model_registry import BUILDERS, BUNDLED_MODEL
from finetune.core.text import did_you_mean

LARGEST_SIZE = 4096
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
RGB = Annotated[tuple[float, float, float], BeforeValidator(tuple_of)]


class GivenPreprocessing(Section):
    """Preprocessing from a decoded photo to the network's input, as stated in a config."""

    resize: Size
    """Length of the shorter side before the crop, in pixels; only for data.fit crop."""
    crop: Size
    """Side length of the network's square input, in pixels."""
    mean: RGB = (0.485, 0.456, 0.406)
    """Mean of each channel, for pixel values in 0..1; subtracted."""
    std: RGB = (0.229, 0.224, 0.225)
    """Standard deviation of each channel; divides after the mean is subtracted."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """Interpolation of resized photos."""

    @field_validator("std")
    @classmethod
    def _std_divides(cls, std: RGB) -> RGB:
        if min(std) <= 0:
            raise InvalidError(f"every value must be above 0, not {list(std)}")
        if min(std) < 1e-4 or max(std) > 1e4:
            raise InvalidError(f"every value must be from 0.0001 to 10000, not {list(std)}")
        return std

    @field_validator("mean")
    @classmethod
    def _mean_is_of_pixels(cls, mean: RGB) -> RGB:
        if max(map(abs, mean)) > 1e4:
            raise InvalidError(f"every value must be from -10000 to 10000, not {list(mean)}")
        return mean


class PreprocessingConfig(GivenPreprocessing):
    """Complete preprocessing, saved in checkpoints."""

    fit: Fit = "crop"
    """Value of ``data.fit``; checkpoints older than this key used crop."""
    levels: Annotated[int, Field(ge=WHITE_LEVELS[0], le=FULL_RANGE)] | None = None
    """Resolved ``data.levels``: maximum pixel value (white) of images with more than 8 bits per
    channel. None means 65535: no training image was of this kind, or the value was not recorded."""

    def given(self) -> GivenPreprocessing:
        """Return the part that a config states in ``model.preprocessing``."""
        return GivenPreprocessing(**self.model_dump(include=set(GivenPreprocessing.model_fields)))


def _word_or_section(value: Any) -> str:
    return "word" if isinstance(value, str) else "section"


class ModelConfig(Section):
    """Network, weights and preprocessing."""

    name: str
    """Name of a torchvision classification builder; `finetune models` lists them."""
    weights: LocalPath = "DEFAULT"
    """Initial weights: DEFAULT, an entry such as IMAGENET1K_V2, the path of a state dict or of a
    finetune run, bundled, or none."""
    leave_out: Annotated[tuple[Text, ...], BeforeValidator(tuple_of)] | None = None
    """Globs over the names of tensors that are not loaded from the weights, such as a head saved by
    another tool; parameters with such a name are initialised randomly."""
    keep_head: Literal["none", "same_names"] = "none"
    """Rows of the head to keep if the weights are a finetune run; same_names: those of classes that
    the data also has, none: no rows, the whole head is new."""
    preprocessing: Annotated[
        Annotated[str, Tag("word")] | Annotated[GivenPreprocessing, Tag("section")],
        Discriminator(_word_or_section),
    ] = "auto"
    """Preprocessing: auto (the weights' own), the name of a weights entry, or all values."""
    aux_heads: bool = False
    """Whether to keep and train the auxiliary heads of googlenet and inception_v3."""
    average_mirror: bool = False
    """Whether validation, eval, predict and export average the logits of an image and its mirror
    image, which takes twice the time."""

    @property
    def num_views(self) -> int:
        """Number of views of an image that a prediction is the mean over."""
        return 2 if self.average_mirror else 1

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        if name not in BUILDERS:
            raise InvalidError(
                f"{name!r} is not a torchvision classification builder",
                to_do=f"{did_you_mean(name, BUILDERS)} `finetune models` lists all {len(BUILDERS)}",
                kind="config.unknown_model",
            )
        return name

    @field_validator("weights", mode="before")
    @classmethod
    def _null_is_none(cls, weights: Any) -> Any:
        return "none" if weights is None else weights

    @model_validator(mode="after")
    def _weights_fit(self) -> ModelConfig:
        if self.weights == "bundled" and self.name != BUNDLED_MODEL:
            raise InvalidError(
                f"the bundled weights belong to {BUNDLED_MODEL}, not to {self.name}",
                key="weights",
                to_do=f"choose {BUNDLED_MODEL} as the model, or other weights",
                kind="config.conflict",
            )
        if self.weights == "none" and self.leave_out:
            raise NoEffectError("leave_out", " with weights: none", to_do="remove it")
        return self
