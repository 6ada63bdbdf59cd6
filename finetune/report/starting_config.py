"""Starting config of ``init`` as commented YAML."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from dataclasses import dataclass

from finetune.config import yaml_loader
from finetune.config.schema import GivenPreprocessing
from finetune.core.text import count
from finetune.data.checks.summary import DatasetSummary
from finetune.models.blocks import Block, listed
from finetune.recipes import heuristics
from finetune.recipes.heuristics import Optimizer
from finetune.results.data import StartingConfig

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Start:
    """Values of the starting config, and their reasons."""

    glance: DatasetSummary
    device: str
    version: str
    file: str
    model: str
    why_model: str
    weights: str
    about_weights: str
    preprocessing: GivenPreprocessing
    other_preprocessing: GivenPreprocessing | None
    blocks: tuple[Block, ...]
    head: str
    trains: str
    why_trains: str
    patterns: tuple[str, ...]
    may_differ: bool
    fit: str
    balance: str
    policy: str
    why_policy: str
    mixup: float
    epochs: int
    optimizer: Optimizer


def render_starting_config(result: StartingConfig) -> str:
    """Render the config if no file was written, otherwise a summary and the next command."""
    if result.file is None:
        return result.config.rstrip("\n")
    file = shlex.quote(result.file)
    what = {
        heuristics.HEAD: "a new head trains",
        heuristics.BLOCK: "the last block and a new head train",
        heuristics.EVERYTHING: "everything trains",
    }[result.trains]
    return (
        f"  {result.file}: {result.model}, {what} for {result.epochs} epochs on "
        f"{result.num_train:,} images of {result.num_classes} classes\n"
        f"  Next  finetune train --config {file}"
    )


def scalar(text: str) -> str:
    """Format text as a one-line YAML scalar, quoted if it could be parsed as another value."""
    if _PLAIN.fullmatch(text) and yaml_loader.parse(f"x: {text}\n").value == {"x": text}:
        return text
    # Every JSON string is a valid YAML scalar.
    return json.dumps(text, ensure_ascii=False)


def starting_config(start: Start) -> str:
    """Render the complete config file."""
    sections = [
        _heading(start),
        ["format: 1"],
        _model(start),
        _freeze(start),
        _data(start),
        _augment(start),
        _training(start),
    ]
    return "\n".join(line for section in sections for line in section) + "\n"


def _comment(text: str, indent: int = 0) -> list[str]:
    lead = f"{' ' * indent}# "
    return [f"{lead}{line}" for line in textwrap.wrap(text, _WIDTH - len(lead))]


def _reasoned(line: str, why: str) -> list[str]:
    """Add a reason as a comment: on the same line if it fits, otherwise above."""
    if not why:
        return [line]
    together = f"{line}   # {why}"
    indent = len(line) - len(line.lstrip())
    return [together] if len(together) <= _WIDTH else [*_comment(why, indent), line]


def _heading(start: Start) -> list[str]:
    glance = start.glance
    file = shlex.quote(start.file)
    width, height = glance.median_size
    held = " held out" if glance.held_out else ""
    classes = f"{len(glance.class_names)} classes of {min(glance.counts):,}"
    if min(glance.counts) != max(glance.counts):
        classes += f" to {max(glance.counts):,}"
    return [
        *_comment(
            f"A first config, written by `finetune init` ({start.version}): {glance.num_train:,} "
            f"training images in {classes}, {glance.num_val:,} for validation{held}, "
            f"{width} x {height} pixels in the median; {start.device}."
        ),
        "#",
        f"#   finetune check-data --config {file}         every image decoded: copies, leaks, …",
        f"#   finetune show-batch --config {file}         what the network sees, as a picture",
        f"#   finetune freeze-report --config {file}      what trains, and what that costs",
        f"#   finetune train --config {file} --dry-run    all but training; says how long it takes",
        f"#   finetune train --config {file}",
        f"#   finetune eval --config {file}",
    ]


def _model(start: Start) -> list[str]:
    lines = [
        "model:",
        *_reasoned(f"  name: {start.model}", f"{start.why_model}; `finetune models` lists all"),
        *_reasoned(f"  weights: {scalar(start.weights)}", start.about_weights),
    ]
    other, own = start.other_preprocessing, start.preprocessing
    width, height = start.glance.median_size
    if other is None:
        return lines
    return [
        *lines,
        *_comment(
            f"Images of {width} x {height} are seen at {other.crop} pixels (BiT-HyperRule, "
            f"Kolesnikov et al. 2020: below 96 x 96 at 128). The weights' own size, {own.crop}, "
            f"costs {(own.crop / other.crop) ** 2:.1f} times as much and may be a little better: "
            "preprocessing: auto",
            2,
        ),
        f"  preprocessing: {_flow(other)}",
    ]


def _flow(preprocessing: GivenPreprocessing) -> str:
    values = preprocessing.model_dump(mode="json")
    return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in values.items()) + "}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _freeze(start: Start) -> list[str]:
    patterns = ", ".join(json.dumps(pattern) for pattern in start.patterns)
    rows = listed(start.blocks)
    may_differ = "  may_differ: true   # the run that the weights are of froze others"
    width = max(len(pattern) for pattern, _ in rows)
    return [
        "freeze:",
        *_comment(
            f"{start.why_trains[:1].upper()}{start.why_trains[1:]}. Patterns are matched with "
            "parameter names as in .gitignore: the last match wins, and ! lets train. The new "
            f"head ({start.head}) always trains. {start.model}, first to last:",
            2,
        ),
        *(f"  #   {pattern:<{width}}  {count(size):>7}" for pattern, size in rows),
        f"  patterns: [{patterns}]",
        *([may_differ] if start.may_differ else []),
    ]


def _data(start: Start) -> list[str]:
    glance = start.glance
    lines = ["data:", f"  root: {scalar(glance.root)}"]
    for key, value in glance.table.items():
        if isinstance(value, str):
            lines.append(f"  {key}: {scalar(value)}")
        else:
            flow = ", ".join(f"{inner}: {json.dumps(text)}" for inner, text in value.items())
            lines.append(f"  {key}: {{{flow}}}")
    if glance.held_out:
        lines.append("  val_fraction: 0.2   # held out of each class; a val folder would be taken")
    if glance.num_unreadable:
        lines += _comment(f"{glance.num_unreadable:,} cannot be read: {glance.unreadable}", 2)
        lines.append("  on_unreadable: skip   # fail would stop before training, with all names")
    why = {
        "pad": f"the usual photo is {glance.median_aspect:.1f} times as long as it is wide: a "
        "central square would lose half of it",
        "crop": "the central square; pad shows all of a photo between bars, stretch distorts it",
    }[start.fit]
    lines += _reasoned(f"  fit: {start.fit}", why)
    few, most = min(glance.counts), max(glance.counts)
    if start.balance != "none":
        lines += _comment(
            f"The largest class has {most:,} images, the smallest {few:,}: rare ones weigh more in "
            "the loss. Watch balanced accuracy.",
            2,
        )
    lines += [f"  balance: {start.balance}", "  batch_size: 32"]
    return lines


def _augment(start: Start) -> list[str]:
    lines = ["augment:", *_reasoned(f"  policy: {start.policy}", start.why_policy)]
    if start.mixup:
        lines.append(f"  mixup: {start.mixup:g}   # BiT-HyperRule, from 20,000 images on")
    elif start.trains != heuristics.EVERYTHING and start.policy == "auto":
        lines += _comment(
            "Stronger, at the price of running what is frozen in every epoch: policy: trivial, "
            "erasing: 0.25, mixup: 0.2. Where left and right differ (digits, signs): policy: none.",
            2,
        )
    return lines


def _training(start: Start) -> list[str]:
    optimizer = start.optimizer
    momentum = ", momentum: 0.9" if optimizer.name == "sgd" else ""
    warmup = f", warmup_epochs: {optimizer.warmup_epochs}" if optimizer.warmup_epochs else ""
    return [
        *_comment(
            "Length by the BiT-HyperRule (Kolesnikov et al. 2020): as many images as 500 steps of "
            "512 see, 10,000 steps from 20,000 images on; here at least 10 and at most 30 epochs."
        ),
        f"train: {{epochs: {start.epochs}}}",
        f"optimizer: {{name: {optimizer.name}, lr: {optimizer.lr:g}{momentum}}}",
        f"schedule: {{name: cosine{warmup}}}",
        "seed: 0",
    ]
