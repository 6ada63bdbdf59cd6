"""Starting config of ``init`` as commented YAML."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from dataclasses import dataclass

from finetune.config import yaml_loader
from finetune.config.schema import GivenPreprocessing
from finetune.core.text import count, plural
from finetune.data.checks.summary import DatasetSummary
from finetune.models.blocks import Block, listed
from finetune.report.layout import Command, Document, Field, Fields, Verbatim, document
from finetune.results.data import StartingConfig

_WIDTH = 80
_PLAIN = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")


@dataclass(frozen=True)
class Start:
    """Values of the starting config, and their reasons."""

    summary: DatasetSummary
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
    may_differ: bool
    fit: str
    balance: str
    policy: str
    why_policy: str
    budget: str


def render_starting_config(result: StartingConfig) -> Document:
    """Render the config if no file was written, otherwise a summary and the next command."""
    if result.file is None:
        return document(Verbatim(result.config.rstrip("\n"), exact=True))
    file = shlex.quote(result.file)
    return document(
        Fields(
            [
                Field("Written", result.file),
                Field(
                    "Trains",
                    f"{result.model} on {result.num_train:,} images of {result.num_classes} "
                    f"classes, for at most {result.budget}",
                ),
                Field("Next", Command(f"finetune show-batch {file}")),
                Field("", Command(f"finetune train {file}")),
            ]
        )
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
        _recipe(start),
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
    summary = start.summary
    file = shlex.quote(start.file)
    width, height = summary.median_size
    held = " (held out)" if summary.held_out else ""
    classes = f"{len(summary.class_names)} classes of {min(summary.counts):,}"
    if min(summary.counts) != max(summary.counts):
        classes += f" to {max(summary.counts):,}"
    return [
        *_comment(
            f"Starting config, written by `finetune init` ({start.version}): {summary.num_train:,} "
            f"training images in {classes}; {summary.num_val:,} validation images{held}; "
            f"median size {width} x {height} pixels; {start.device}."
        ),
        "#",
        f"#   finetune check-data {file}         find broken files, copies and leaks",
        f"#   finetune show-batch {file}         draw what the network sees",
        f"#   finetune freeze-report {file}      show what is frozen, and what that saves",
        f"#   finetune train {file} --dry-run    check everything; estimate the time",
        f"#   finetune train {file}",
        f"#   finetune eval {file}",
    ]


def _model(start: Start) -> list[str]:
    lines = [
        "model:",
        *_reasoned(f"  name: {start.model}", f"{start.why_model}; see `finetune models`"),
        *_reasoned(f"  weights: {scalar(start.weights)}", start.about_weights),
    ]
    if start.policy != "none":
        why = "the mean over an image and its mirror image: more accurate, in twice the time"
        lines += _reasoned("  average_mirror: true", why)
    other, own = start.other_preprocessing, start.preprocessing
    width, height = start.summary.median_size
    if other is None:
        return lines
    return [
        *lines,
        *_comment(
            f"Images of {width} x {height} pixels are resized to {other.crop} (BiT-HyperRule, "
            "Kolesnikov et al. 2020: 128 for images below 96 x 96). The input size of the weights "
            f"({own.crop}, preprocessing: auto) takes {(own.crop / other.crop) ** 2:.1f} times as "
            "long and may be slightly more accurate.",
            2,
        ),
        f"  preprocessing: {_flow(other)}",
    ]


def _flow(preprocessing: GivenPreprocessing) -> str:
    values = preprocessing.model_dump(mode="json")
    return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in values.items()) + "}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _recipe(start: Start) -> list[str]:
    rows = listed(start.blocks)
    width = max(len(pattern) for pattern, _ in rows)
    lines = [
        *_comment(
            f"Trains the new head ({start.head}) first, then as much more of the network as "
            "train.budget allows, and keeps what is best on the validation images. Another recipe "
            "or freeze.patterns can stand here instead, without train.budget, or be given on the "
            "command line, as in --set recipe=last_block. Patterns match parameter names as in a "
            ".gitignore, the last match wins, and ! unfreezes, as in "
            f'freeze: {{patterns: ["*", "!{rows[-1][0]}"]}}. Blocks of {start.model} from input to '
            "output, with their number of parameters:",
        ),
        *(f"#   {pattern:<{width}}  {count(size):>7}" for pattern, size in rows),
        "recipe: auto",
    ]
    if start.may_differ:
        lines += ["freeze:", "  may_differ: true   # the run that wrote the weights froze others"]
    return lines


def _data(start: Start) -> list[str]:
    summary = start.summary
    lines = ["data:", f"  root: {scalar(summary.root)}"]
    for key, value in summary.table.items():
        if isinstance(value, str):
            lines.append(f"  {key}: {scalar(value)}")
        else:
            flow = ", ".join(f"{inner}: {json.dumps(text)}" for inner, text in value.items())
            lines.append(f"  {key}: {{{flow}}}")
    if summary.held_out:
        lines.append("  val_fraction: 0.2   # share of each class; unused if there is a val folder")
    if summary.num_unreadable:
        lines += _comment(
            f"{plural(summary.num_unreadable, 'unreadable file')}: {summary.unreadable}", 2
        )
        lines.append("  on_unreadable: skip   # fail: stop before training and list all of them")
    why = {
        "pad": f"the median aspect ratio is {summary.median_aspect:.1f}: a central crop would lose "
        "half of a photo",
        "crop": "central square; pad: whole photo with bars; stretch: whole photo, distorted",
    }[start.fit]
    lines += _reasoned(f"  fit: {start.fit}", why)
    few, most = min(summary.counts), max(summary.counts)
    if start.balance != "none":
        lines += _comment(
            f"The largest class has {most:,} images, the smallest {few:,}: rare classes get a "
            "larger weight in the loss. Compare balanced accuracy.",
            2,
        )
    lines += [f"  balance: {start.balance}", "  batch_size: 32"]
    return lines


def _augment(start: Start) -> list[str]:
    lines = ["augment:", *_reasoned(f"  policy: {start.policy}", start.why_policy)]
    if start.policy == "auto":
        lines += _comment(
            "Stronger augmentation, which runs the frozen part in every epoch: policy: trivial, "
            "erasing: 0.25, mixup: 0.2. If left and right differ (digits, signs): policy: none.",
            2,
        )
    return lines


def _training(start: Start) -> list[str]:
    return [
        *_comment(
            "Time of the whole training. The head alone takes a fraction of it; more than this "
            "often gains more, and the summary says how much is predicted for twice the time."
        ),
        f"train: {{budget: {start.budget}}}",
        "seed: 0",
    ]
