"""Text output of ``train --dry-run``."""

from __future__ import annotations

from finetune.config import yaml_loader
from finetune.core.text import plural
from finetune.report.layout import Document, Field, Fields, Paragraph, Verbatim, document
from finetune.report.param_groups import render_groups
from finetune.report.stages import planned_facts
from finetune.report.train import weights_trained
from finetune.results.train import DryRun


def render_dry_run(result: DryRun) -> Document:
    """Render the plan of a run, and as a detail its resolved config."""
    staged = len(result.stages) > 1
    some, first = (", in some stage", " for the first") if staged else ("", "")
    facts = [
        Field("Model", f"{result.model}, weights {result.weights}, on {result.device}"),
        Field("Trained", f"{weights_trained(result, result.head)}{some}"),
        *_tensors(result, first),
        Field(
            "Data",
            f"{plural(result.num_train, 'training image')} in "
            f"{plural(result.batches_per_epoch, 'step')} per epoch, "
            f"{plural(result.num_val, 'validation image')}, {len(result.class_names)} classes: "
            f"{_few(result.class_names)}",
        ),
        *_weights(result),
        *planned_facts(result.stages),
        Field("Output", result.run_dir),
    ]
    config = "\n".join(f"    {line}" for line in yaml_loader.dump(result.config).splitlines())
    several = len(result.groups) > 1
    return document(
        Fields(facts),
        render_groups(result.groups) if several else None,
        [Paragraph("Resolved config:", detail=True), Verbatim(config.rstrip(), detail=True)],
        Paragraph("Dry run: nothing was trained or written."),
    )


def _tensors(result: DryRun, first: str) -> list[Field]:
    if not result.frozen_parameters:
        return []
    tensors = (
        f"{plural(result.trainable_tensors, 'tensor')} trained, "
        f"{result.frozen_tensors:,} frozen; {result.frozen_hashed} tensors and buffers "
        f"hashed{first}"
    )
    return [Field("", tensors, detail=True)]


def _weights(result: DryRun) -> list[Field]:
    if result.class_weights is None:
        return []
    listed = [f"{name} {weight:.3g}" for name, weight in result.class_weights.items()]
    return [Field("Weights", f"n / (k n_c) in the loss: {_few(tuple(listed))}")]


def _few(names: tuple[str, ...], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
