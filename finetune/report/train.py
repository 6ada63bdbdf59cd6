"""Text output of ``train``."""

from __future__ import annotations

from finetune.core.text import plural
from finetune.report.stages import trained_facts
from finetune.report.tables import table
from finetune.results.train import MONITORED, Scores, TrainSummary


def render_train(summary: TrainSummary) -> str:
    """Render trained and frozen parameters, accuracy, files and next commands."""
    facts = [
        ("Trained", _trained(summary)),
        ("Frozen", _frozen(summary)),
        *_figures(summary),
        *_stopped(summary),
        *_resumed(summary),
        *trained_facts(summary.stages),
        *_files(summary),
    ]
    return table(("", ""), facts)


def render_run(summary: TrainSummary) -> list[tuple[str, str]]:
    """Return the lines about one of several runs, whose accuracy is shown elsewhere."""
    return [("Trained", _trained(summary)), ("Frozen", _frozen(summary)), *_files(summary)]


def _files(summary: TrainSummary) -> list[tuple[str, str]]:
    return [
        ("Saved", f"{summary.run_dir}: best.pt, last.pt, metrics.jsonl, config.yaml, …"),
        *zip(("Next", *[""] * len(summary.next)), summary.next, strict=False),
        ("Rerun", summary.rerun),
    ]


def _figures(summary: TrainSummary) -> list[tuple[str, str]]:
    if summary.val is None or summary.last is None:
        return [
            (
                "Accuracy",
                "not measured: there are no validation images (data.val_fraction 0); best.pt "
                "contains the last epoch",
            )
        ]
    correct = round(summary.val.top1 * summary.num_val)
    return [
        (
            "Accuracy",
            f"val top-1 {summary.val.top1:.2%} ({correct} of {summary.num_val:,}), loss "
            f"{summary.val.loss:.4f} in epoch {summary.best_epoch} of {summary.epochs}, "
            f"{_best(summary, summary.val)}; "
            f"last epoch {summary.last.top1:.2%}",
        ),
        (
            "Balanced",
            f"val {summary.val.balanced_accuracy:.2%} (mean per-class recall); last epoch "
            f"{summary.last.balanced_accuracy:.2%}",
        ),
    ]


def _stopped(summary: TrainSummary) -> list[tuple[str, str]]:
    if summary.stopped is None:
        return []
    return [("Stopped", f"after epoch {summary.last_epoch}: {summary.stopped}")]


def _best(summary: TrainSummary, val: Scores) -> str:
    if summary.monitor == "top1":
        return "the best"
    figure = f" ({val.macro_f1:.2%})" if summary.monitor == "macro_f1" else ""
    return f"the best by {MONITORED[summary.monitor]}{figure}"


def _resumed(summary: TrainSummary) -> list[tuple[str, str]]:
    if not summary.resumed_at:
        return []
    times = plural(len(summary.resumed_at), "time")
    return [("Resumed", f"{times}, the last time at {summary.resumed_at[-1]}")]


def _trained(summary: TrainSummary) -> str:
    memory = f", {summary.peak_memory_mib:,} MiB at most" if summary.peak_memory_mib else ""
    if summary.peak_gpu_memory_mib:
        memory += f", {summary.peak_gpu_memory_mib:,} MiB on the GPU"
    stages = f"{len(summary.stages)} stages, " if len(summary.stages) > 1 else ""
    return (
        f"{summary.model}: {plural(summary.trainable_parameters, 'parameter')} in "
        f"{plural(summary.trainable_tensors, 'tensor')}, the new head {summary.head} among them, "
        f"on {plural(summary.num_train, 'image')} of {len(summary.class_names)} classes "
        f"in {stages}{summary.elapsed_s:.1f} s{memory}"
    )


def _frozen(summary: TrainSummary) -> str:
    in_stages = len(summary.stages) > 1
    if not summary.frozen_parameters:
        return f"nothing: all parameters were trained{' in some stage' if in_stages else ''}"
    exempt = f"; {len(summary.exempt)} norm statistics updated" if summary.exempt else ""
    adapted = ""
    if summary.adapted:
        adapted = f"; adapters were merged into the other {plural(summary.adapted, 'weight')}"
    return (
        f"{plural(summary.frozen_parameters, 'parameter')} in "
        f"{plural(summary.frozen_tensors, 'tensor')}{' in every stage' if in_stages else ''}; "
        f"verified: {summary.frozen_verified} tensors "
        f"and buffers unchanged since loading (SHA-256, in best.pt and last.pt){exempt}"
        f"{adapted}"
    )
