"""Results as text for a terminal or a pipe."""

from __future__ import annotations

import time

from finetune import yaml_text
from finetune.report.groups import render_groups
from finetune.report.module_tree import render_module_tree
from finetune.report.stages import planned_facts, trained_facts
from finetune.report.tables import count, mib, plural, table
from finetune.results import (
    MONITORED,
    CacheList,
    Cut,
    DryRun,
    FreezeReport,
    ModelList,
    NormRow,
    Scores,
    StagedFreezeReport,
    TrainSummary,
)


def render_train(summary: TrainSummary) -> str:
    """What was trained, what stayed frozen and was verified, how good it is, what comes next."""
    facts = [
        ("Trained", _trained(summary)),
        ("Frozen", _frozen(summary)),
        *_figures(summary),
        *_stopped(summary),
        *_resumed(summary),
        *trained_facts(summary.stages),
        ("Saved", f"{summary.run_dir}: best.pt, last.pt, metrics.jsonl, config.yaml, …"),
        *zip(("Next", *[""] * len(summary.next)), summary.next, strict=False),
        ("Rerun", summary.rerun),
    ]
    return table(("", ""), facts)


def _figures(summary: TrainSummary) -> list[tuple[str, str]]:
    if summary.val is None or summary.last is None:
        return [
            (
                "Accuracy",
                "not measured: no image was held out (data.val_fraction 0), and no epoch is the "
                "best; best.pt holds the last one",
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
            f"val {summary.val.balanced_accuracy:.2%}, every class counting the same; last epoch "
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
        return f"nothing: every parameter trained{' in some stage' if in_stages else ''}"
    exempt = f"; {len(summary.exempt)} norm statistics updated" if summary.exempt else ""
    adapted = ""
    if summary.adapted:
        adapted = f"; to the other {plural(summary.adapted, 'weight')} adapters were added"
    return (
        f"{plural(summary.frozen_parameters, 'parameter')} in "
        f"{plural(summary.frozen_tensors, 'tensor')}{' in every stage' if in_stages else ''}; "
        f"verified: {summary.frozen_verified} tensors "
        f"and buffers are bit for bit as loaded (SHA-256, in best.pt and last.pt){exempt}"
        f"{adapted}"
    )


def render_dry_run(result: DryRun) -> str:
    """What a run would do, and the resolved config it would do it with."""
    staged = len(result.stages) > 1
    some, every, first = (
        (", in some stage", " in every stage", " for the first") if staged else ("", "", "")
    )
    facts = [
        ("Model", f"{result.model}, weights {result.weights}, on {result.device}"),
        (
            "Trains",
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
            f"{plural(result.batches_per_epoch, 'step')} an epoch, "
            f"{plural(result.num_val, 'validation image')}, {len(result.class_names)} classes: "
            f"{_few(result.class_names)}",
        ),
        *_weights(result),
        *planned_facts(result.stages),
        ("Output", result.run_dir),
    ]
    config = "\n".join(f"    {line}" for line in yaml_text.dump(result.config).splitlines())
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


def render_freeze_report(
    report: FreezeReport | StagedFreezeReport, *, verbose: bool = False
) -> str:
    """What is frozen, by which pattern, and what that saves; stage by stage."""
    if isinstance(report, FreezeReport):
        return _freezing(report, verbose=verbose)
    total = len(report.stages)
    return "\n\n".join(
        f"Stage {number} of {total}, {_epochs(epochs)}\n{_freezing(stage, verbose=verbose)}"
        for number, (stage, epochs) in enumerate(zip(report.stages, report.epochs, strict=True), 1)
    )


def _epochs(number: int | str) -> str:
    return plural(number, "epoch") if isinstance(number, int) else f"{number} epochs"


def _freezing(report: FreezeReport, *, verbose: bool) -> str:
    totals = report.totals
    parts = [
        f"{report.model} for {report.num_classes} classes: {count(totals.frozen)} of "
        f"{count(totals.parameters)} parameters frozen ({totals.frozen / totals.parameters:.1%}), "
        f"{totals.trainable + report.adapters.parameters:,} train",
        _patterns(report),
        render_module_tree(report.parameters),
        render_groups(report.groups, verbose=verbose),
        table(
            ("", ""),
            [*_adapter_facts(report), *_norm_facts(report.norm_layers), *_saving_facts(report)],
        ),
    ]
    if report.warnings:
        parts.append("\n".join(f"  warning: {warning}" for warning in report.warnings))
    if verbose:
        parts.append(_every_parameter(report))
    return "\n\n".join(parts)


def _patterns(report: FreezeReport) -> str:
    if not report.patterns:
        return "  no patterns: everything trains"
    rows = [
        (
            row.pattern,
            "freezes" if row.freezes else "thaws",
            f"{row.tensors:,}",
            count(row.parameters),
            f"{row.share:.1%}",
        )
        for row in report.patterns
    ]
    return table(("pattern", "", "tensors", "parameters", "share"), rows, right=(2, 3, 4))


def _adapter_facts(report: FreezeReport) -> list[tuple[str, str]]:
    adapters = report.adapters
    if not adapters.weights:
        return []
    beside = plural(adapters.weights, "frozen weight")
    what = f"{count(adapters.parameters)} parameters train beside {beside}"
    return [("Adapters", f"{what}, and are added to them in what is saved")]


def _norm_facts(norms: tuple[NormRow, ...]) -> list[tuple[str, str]]:
    kept = sum(norm.statistics == "kept" for norm in norms)
    updated = sum(norm.statistics == "updated" for norm in norms)
    without = sum(norm.statistics == "none" for norm in norms)
    words = [
        f"{kept} in eval mode, statistics kept" if kept else "",
        f"{updated} in train mode, statistics updated" if updated else "",
        f"{without} without statistics" if without else "",
    ]
    return [("Norm layers", "; ".join(word for word in words if word) or "none")]


def _saving_facts(report: FreezeReport) -> list[tuple[str, str]]:
    boundary, memory, work = report.backward_boundary, report.memory, report.operations
    if boundary.last_without_backward is None:
        where = "none: the first layer trains"
    else:
        where = (
            f"no backward in {boundary.last_without_backward} or before it; "
            f"it ends at {boundary.first_with_backward}"
        )
    saved = 1 - work.backward / work.backward_if_all_trained
    return [
        ("Backward", where),
        ("Cut", _cut(report.cut)),
        (
            "Memory",
            f"gradients {mib(memory.gradient_bytes)} (saved {mib(memory.gradient_bytes_saved)}), "
            f"{memory.optimizer} state {mib(memory.optimizer_bytes)} "
            f"(saved {mib(memory.optimizer_bytes_saved)})",
        ),
        (
            "Multiply-adds",
            f"forward {count(work.forward)} an image at {work.input_size} px, "
            f"{work.forward_frozen / work.forward:.1%} of it frozen",
        ),
        (
            "",
            f"backward {count(work.backward)} instead of "
            f"{count(work.backward_if_all_trained)} ({saved:.1%} saved)",
        ),
    ]


def _cut(cut: Cut) -> str:
    if cut.after is None:
        return "none: nothing can be computed once; the whole network runs on every image"
    shapes = " and ".join("x".join(map(str, shape)) for shape in cut.crossing[:3])
    more = f" and {len(cut.crossing) - 3} more" if len(cut.crossing) > 3 else ""
    cache = f"; {mib(cut.cache_bytes)} for this data" if cut.cache_bytes is not None else ""
    return (
        f"behind {cut.after}: {cut.forward_once:.1%} of the forward work is done once; "
        f"{shapes}{more} crosses, {mib(cut.bytes_per_image)} an image in {cut.precision}{cache}"
    )


def _every_parameter(report: FreezeReport) -> str:
    rows = [
        (
            row.name,
            "x".join(map(str, row.shape)) or "scalar",
            f"{row.numel:,}",
            "frozen" if row.frozen else "trains",
            "(new head)" if row.head else row.pattern or "(no pattern)",
        )
        for row in report.parameters
    ]
    return table(("parameter", "shape", "count", "", "decided by"), rows, right=(2,))


def render_models(result: ModelList) -> str:
    """A line a builder."""
    rows = []
    for model in result.models:
        weights = ", ".join(
            f"{row.name}{'' if row.top1 is None else f' {row.top1:.1%}'}"
            f"{'' if row.input_size == model.input_size else f' at {row.input_size} px'}"
            for row in model.weights
        )
        rows.append(
            (model.name, count(model.parameters), model.head, f"{model.input_size} px", weights)
        )
    listing = table(
        ("name", "parameters", "head", "input", "weights and their ImageNet top-1"),
        rows,
        right=(1, 3),
    )
    return f"{listing}\n\n  {plural(len(rows), 'builder')}; use one as model.name"


def render_cache(result: CacheList) -> str:
    """A line a store."""
    total = mib(sum(row.num_bytes for row in result.stores))
    what = plural(len(result.stores), "store")
    if result.removed:
        return f"  removed {what}, {total}, from {result.folder}"
    if not result.stores:
        return f"  no features in {result.folder}"
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(row.used_at)),
            mib(row.num_bytes),
            row.views,
            row.form,
            row.root,
        )
        for row in result.stores
    ]
    listing = table(("last used", "size", "views", "form", "images"), rows, right=(1,))
    return f"{listing}\n\n  {what}, {total}, in {result.folder}"
