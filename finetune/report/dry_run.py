"""Text output of ``train --dry-run``."""

from __future__ import annotations

from finetune.config import yaml_loader
from finetune.core.text import plural
from finetune.report.param_groups import render_groups
from finetune.report.stages import planned_facts
from finetune.report.tables import table
from finetune.results.train import DryRun


def render_dry_run(result: DryRun) -> str:
    """Render the plan of a run and its resolved config."""
    staged = len(result.stages) > 1
    some, every, first = (
        (", in some stage", " in every stage", " for the first") if staged else ("", "", "")
    )
    facts = [
        ("Model", f"{result.model}, weights {result.weights}, on {result.device}"),
        (
            "Trainable",
            f"{plural(result.trainable_parameters, 'parameter')} in "
            f"{plural(result.trainable_tensors, 'tensor')}, the new head {result.head} among "
            f"them{some}",
        ),
        (
            "Frozen",
            f"{plural(result.frozen_parameters, 'parameter')} in "
            f"{plural(result.frozen_tensors, 'tensor')}{every}; "
            f"{result.frozen_hashed} tensors and buffers hashed{first}",
        ),
        (
            "Data",
            f"{plural(result.num_train, 'training image')} in "
            f"{plural(result.batches_per_epoch, 'step')} per epoch, "
            f"{plural(result.num_val, 'validation image')}, {len(result.class_names)} classes: "
            f"{_few(result.class_names)}",
        ),
        *_weights(result),
        *planned_facts(result.stages),
        ("Output", result.run_dir),
    ]
    config = "\n".join(f"    {line}" for line in yaml_loader.dump(result.config).splitlines())
    groups = f"{render_groups(result.groups)}\n\n" if len(result.groups) > 1 else ""
    return (
        f"{table(('', ''), facts)}\n\n{groups}  Resolved config:\n{config}\n\n"
        "  Dry run: nothing was trained or written."
    )


def _weights(result: DryRun) -> list[tuple[str, str]]:
    if result.class_weights is None:
        return []
    listed = [f"{name} {weight:.3g}" for name, weight in result.class_weights.items()]
    return [("Weights", f"n / (k n_c) in the loss: {_few(tuple(listed))}")]


def _few(names: tuple[str, ...], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
