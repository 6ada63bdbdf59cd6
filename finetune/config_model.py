"""The config's section ``model``: which network, with which weights, for which input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from finetune.backbones import BUILDERS, BUNDLED_MODEL
from finetune.config_data import FULL_RANGE, WHITE_LEVELS, Fit
from finetune.config_section import LocalPath, Section, Text, tuple_of
from finetune.errors import did_you_mean

LARGEST_SIZE = 4096
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
RGB = Annotated[tuple[float, float, float], BeforeValidator(tuple_of)]


class GivenPreprocessing(Section):
    """From a decoded photo to the network's input, as a config gives it."""

    resize: Size
    """The shorter side, in pixels, before the crop; data.fit pad and stretch do without."""
    crop: Size
    """Side of the square, in pixels, that the network takes."""
    mean: RGB = (0.485, 0.456, 0.406)
    """Subtracted from each channel, for pixels in 0..1."""
    std: RGB = (0.229, 0.224, 0.225)
    """Divides each channel, after the mean."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"

    @field_validator("std")
    @classmethod
    def _std_divides(cls, std: RGB) -> RGB:
        if min(std) <= 0:
            raise ValueError(f"every value must be above 0, not {list(std)}")
        if min(std) < 1e-4 or max(std) > 1e4:
            raise ValueError(f"every value must be from 0.0001 to 10000, not {list(std)}")
        return std

    @field_validator("mean")
    @classmethod
    def _mean_is_of_pixels(cls, mean: RGB) -> RGB:
        if max(map(abs, mean)) > 1e4:
            raise ValueError(f"every value must be from -10000 to 10000, not {list(mean)}")
        return mean


class PreprocessingConfig(GivenPreprocessing):
    """The whole way to the network's input, which travels in a checkpoint."""

    fit: Fit = "crop"
    """From ``data.fit``; checkpoints from before it was there cropped."""
    levels: Annotated[int, Field(ge=WHITE_LEVELS[0], le=FULL_RANGE)] | None = None
    """From ``data.levels``: the level that is white in images with more than 8 bits a channel. None
    is 65535, where training had no such image, or nobody noted it."""

    def given(self) -> GivenPreprocessing:
        """The part that a config states in ``model.preprocessing``."""
        return GivenPreprocessing(**self.model_dump(include=set(GivenPreprocessing.model_fields)))


def _word_or_section(value: Any) -> str:
    return "word" if isinstance(value, str) else "section"


class ModelConfig(Section):
    """Which network, with which weights."""

    name: str
    """A torchvision classification builder; `finetune models` lists them."""
    weights: LocalPath = "DEFAULT"
    """DEFAULT, an entry such as IMAGENET1K_V2, a path to a state dict or to a run of our own,
    bundled, or none."""
    leave_out: Annotated[tuple[Text, ...], BeforeValidator(tuple_of)] | None = None
    """Globs over tensors that are not taken from the weights, as those of a head of another tool;
    what the network has under such a name begins at random."""
    keep_head: Literal["none", "same_names"] = "none"
    """same_names: where the weights are a run of our own, the head's rows of classes that the data
    has as well are kept; none: the whole head is new."""
    preprocessing: Annotated[
        Annotated[str, Tag("word")] | Annotated[GivenPreprocessing, Tag("section")],
        Discriminator(_word_or_section),
    ] = "auto"
    """auto (the weights' own), the name of an entry, or every value."""
    aux_heads: bool = False
    """Keep and train the auxiliary heads of googlenet and inception_v3."""

    @field_validator("name")
    @classmethod
    def _name_is_known(cls, name: str) -> str:
        if name not in BUILDERS:
            raise ValueError(
                f"{name!r} is no torchvision classification builder."
                f"{did_you_mean(name, BUILDERS)} `finetune models` lists all {len(BUILDERS)}."
            )
        return name

    @field_validator("weights", mode="before")
    @classmethod
    def _null_is_none(cls, weights: Any) -> Any:
        return "none" if weights is None else weights

    @model_validator(mode="after")
    def _weights_fit(self) -> ModelConfig:
        if self.weights == "bundled" and self.name != BUNDLED_MODEL:
            raise ValueError(
                f"weights: bundled are of {BUNDLED_MODEL}, not of {self.name}; "
                f"set name: {BUNDLED_MODEL}, or give other weights"
            )
        if self.weights == "none" and self.leave_out:
            raise ValueError("leave_out: has no effect with weights: none; remove it")
        return self
