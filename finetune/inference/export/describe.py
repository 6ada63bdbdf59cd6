"""Metadata and README of an export."""

from __future__ import annotations

import json
from typing import Any

from finetune.checkpoints.checkpoint import Metadata
from finetune.checkpoints.limits import Limits
from finetune.data.loading.transforms import mean_colour
from finetune.inference.export.graph import COVERAGE, LARGEST_SIDE, SMALLEST_SIDE
from finetune.inference.limits import has_limit, least_images, set_threshold

_COVERAGES = (0.8, 0.9, 0.95, 0.99)


def describe(
    metadata: Metadata, *, preprocessing: bool, limits: Limits | None = None
) -> dict[str, str]:
    """Return the metadata as strings, which every format can store; most values are JSON.

    Args:
        limits: Limits that the export has outputs for.
    """
    about = {} if limits is None else {"limits": json.dumps(_limits(limits))}
    return about | {
        "format": "finetune export 1",
        "model": metadata.model_name,
        "build_flags": json.dumps(metadata.build_flags),
        "class_names": json.dumps(metadata.class_names, ensure_ascii=False),
        "preprocessing": metadata.preprocessing.model_dump_json(),
        "preprocessing_inside": json.dumps(preprocessing),
        "temperature": json.dumps(metadata.temperature),
        "average_mirror": json.dumps(metadata.config.model.average_mirror),
        "epoch": json.dumps(metadata.epoch),
        "versions": json.dumps(metadata.versions),
    }


def _limits(limits: Limits) -> dict[str, Any]:
    """Return what the outputs mean, and the least probabilities of sets with other coverages."""
    record = limits.record
    return record.model_dump() | {
        "coverage": COVERAGE,
        "least_probability": {
            f"{coverage:g}": set_threshold(limits, coverage)
            for coverage in _COVERAGES
            if record.images >= least_images(coverage)
        },
    }


def readme(
    metadata: Metadata,
    file: str,
    *,
    preprocessing: bool,
    agreement: str,
    limits: Limits | None = None,
) -> str:
    """Return a README with code that uses the exported file without this package."""
    kinds = {
        "model.onnx": _ONNX,
        "model.pt2": _PROGRAM,
        "model.safetensors": _TENSORS,
    }
    crop = metadata.preprocessing.crop
    takes = (
        f"uint8 pixels (N, 3, H, W), RGB, of one size in a batch, sides from {SMALLEST_SIDE} to "
        f"{LARGEST_SIDE:,}; resizing, cropping and normalisation are inside"
        if preprocessing
        else f"normalised float32 images (N, 3, {crop}, {crop}), RGB"
    )
    values: dict[str, Any] = metadata.preprocessing.model_dump() | {
        "model": metadata.model_name,
        "flags": "".join(f", {key}={value!r}" for key, value in metadata.build_flags.items()),
        "divided": f" / {metadata.temperature}" if metadata.temperature else "",
        "logits": "(network(images) + network(images.flip(3))) / 2  # with its mirror image"
        if metadata.config.model.average_mirror
        else "network(images)",
    }
    fitted = _PHOTO_PREPARED.replace("FIT\n", _FITS[metadata.preprocessing.fit])
    values["colour"] = tuple(mean_colour(metadata.preprocessing))
    photo = _PHOTO_AS_IT_IS if preprocessing else fitted.format_map(_in_code(values))
    if metadata.preprocessing.levels is not None:
        photo = photo.replace(_OPENED, _OPENED_OVER_LEVELS)
    code = kinds[file].replace("PHOTO\n", photo)
    for key, value in values.items():
        code = code.replace(f"<{key}>", str(value))
    given = (
        "weights for torchvision's own network"
        if file == "model.safetensors"
        else f"takes {takes}; gives probabilities (N, {len(metadata.class_names)})"
    )
    if metadata.config.model.average_mirror:
        given += "; a prediction is the mean over an image and its mirror image"
    return (
        f"# {file}\n\n{metadata.model_name} for {len(metadata.class_names)} classes; {given}.\n\n"
        f"```python\n{code}```\n\n{_about_limits(limits, file)}\n\n"
        f"Checked when it was written: {agreement}\n"
    )


def _about_limits(limits: Limits | None, file: str) -> str:
    """Explain the outputs for the limits of the answers, or say that there are none."""
    if limits is None or file != "model.onnx":
        return (
            "It gives neither the distance to the training photos nor prediction sets: "
            "`finetune predict` and ONNX exports do, if the checkpoint has limits."
        )
    record = limits.record
    on = f"{record.images:,} validation photos"
    lines = []
    if has_limit(record):
        lines.append(
            "- `distance` (N,): distance to the training photos (Mahalanobis distance of the "
            "normalised inputs of the last layer to the nearest class, 1 at the limit).\n"
            "- `unlike` (N,): whether it is above 1. Of photos like the training photos, "
            f"{record.rate * 100:g}% are, by {on}."
        )
    else:
        lines.append(
            f"There is no output that marks photos unlike the training photos: {on} are too few "
            "to set its limit."
        )
    if record.images >= least_images(COVERAGE):
        lines.append(
            f"- `in_set` (N, classes): prediction set with a coverage of {COVERAGE * 100:g}%: of "
            "photos like the training photos, at least so many have their class in it. It holds "
            "the most probable class and all with at least the probability that is stored, also "
            "for other coverages, in the file's metadata: "
            '`json.loads(session.get_modelmeta().custom_metadata_map["limits"])`.'
        )
    return (
        "\n".join(lines) + "\n\nThe validation photos that set these limits also chose the epoch; "
        "photos of another kind are another matter: for them no rate holds."
    )


def _in_code(values: dict[str, Any]) -> dict[str, Any]:
    sampling = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "nearest": "NEAREST"}
    return values | {
        "sampling": sampling[values["interpolation"]],
        "mean": list(values["mean"]),
        "std": list(values["std"]),
    }


_OPENED = """\
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
"""

_OPENED_OVER_LEVELS = """\
photo = ImageOps.exif_transpose(Image.open("photo.png"))
if photo.mode.startswith("I"):  # more than 8 bits: level <levels> is white, as in training
    levels = np.array(photo).clip(0, <levels>).astype(int) * 255 // <levels>
    photo = Image.fromarray(levels.astype(np.uint8))
photo = photo.convert("RGB")
"""

_PHOTO_AS_IT_IS = """\
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
pixels = np.array(photo).transpose(2, 0, 1)[None]
"""

_FITS = {
    "crop": """\
short = min(photo.size)
photo = photo.resize([side * {resize} // short for side in photo.size], Image.Resampling.{sampling})
left, top = (round((side - {crop}) / 2) for side in photo.size)
photo = photo.crop((left, top, left + {crop}, top + {crop}))
""",
    "pad": """\
longer = max(photo.size)
sizes = [max(1, (2 * side * {crop} + longer) // (2 * longer)) for side in photo.size]
fitted = photo.resize(sizes, Image.Resampling.{sampling})
photo = Image.new("RGB", ({crop}, {crop}), {colour})
photo.paste(fitted, tuple(({crop} - side) // 2 for side in sizes))
""",
    "stretch": """\
photo = photo.resize(({crop}, {crop}), Image.Resampling.{sampling})
""",
}

_PHOTO_PREPARED = """\
photo = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")
FIT
pixels = ((np.array(photo) / 255 - {mean}) / {std}).transpose(2, 0, 1)[None].astype(np.float32)
"""

_ONNX = """\
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession("model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
PHOTO
(probabilities,) = session.run(None, {"pixels": pixels})[0]
print(classes[probabilities.argmax()], probabilities.max())
"""

_PROGRAM = """\
import json
import numpy as np
import torch
from PIL import Image, ImageOps

about = {"metadata.json": ""}
network = torch.export.load("model.pt2", extra_files=about).module()
classes = json.loads(json.loads(about["metadata.json"])["class_names"])
PHOTO
with torch.no_grad():
    (probabilities,) = network(torch.from_numpy(np.ascontiguousarray(pixels)))
print(classes[probabilities.argmax()], float(probabilities.max()))
"""

_TENSORS = """\
import json
import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from torchvision import models

with safe_open("model.safetensors", "pt") as file:
    classes = json.loads(file.metadata()["class_names"])
    network = models.<model>(weights=None, num_classes=len(classes)<flags>).eval()
    state = network.state_dict()
    state.update({name: file.get_tensor(name) for name in file.keys()})
network.load_state_dict(state)
PHOTO
with torch.no_grad():
    images = torch.from_numpy(np.ascontiguousarray(pixels))
    logits = <logits>
(probabilities,) = torch.softmax(logits<divided>, dim=1)
print(classes[probabilities.argmax()], float(probabilities.max()))
"""
