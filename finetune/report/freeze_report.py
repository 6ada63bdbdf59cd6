"""Text output of ``freeze-report``."""

from __future__ import annotations

from finetune.core.text import count, mib, plural
from finetune.report.module_tree import render_module_tree
from finetune.report.param_groups import render_groups
from finetune.report.tables import table
from finetune.results.freeze import Cut, FreezeReport, NormRow, StagedFreezeReport


def render_freeze_report(
    report: FreezeReport | StagedFreezeReport, *, verbose: bool = False
) -> str:
    """Render the frozen parameters, their patterns and the savings, for each stage.

    Args:
        report: Freeze report of a stage or of all stages.
        verbose: Whether to list every parameter.
    """
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
        f"{totals.trainable + report.adapters.parameters:,} trainable",
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
        return "  no patterns: everything is trained"
    rows = [
        (
            row.pattern,
            "freezes" if row.freezes else "unfreezes",
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
    what = f"{count(adapters.parameters)} parameters are trained in addition to {beside}"
    return [("Adapters", f"{what}, and merged into them in checkpoints")]


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
        where = "none: the first layer is trained"
    else:
        where = (
            f"none up to {boundary.last_without_backward}; ends at {boundary.first_with_backward}"
        )
    saved = 1 - work.backward / work.backward_if_all_trained
    return [
        ("Backward", where),
        ("Split", _cut(report.cut)),
        (
            "Memory",
            f"gradients {mib(memory.gradient_bytes)} (saved {mib(memory.gradient_bytes_saved)}), "
            f"{memory.optimizer} state {mib(memory.optimizer_bytes)} "
            f"(saved {mib(memory.optimizer_bytes_saved)})",
        ),
        (
            "Multiply-adds",
            f"forward {count(work.forward)} per image at {work.input_size} px, "
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
        return "none: no features can be cached; the whole network runs on every image"
    shapes = " and ".join("x".join(map(str, shape)) for shape in cut.crossing[:3])
    more = f" and {len(cut.crossing) - 3} more" if len(cut.crossing) > 3 else ""
    cache = f"; {mib(cut.cache_bytes)} for this data" if cut.cache_bytes is not None else ""
    return (
        f"after {cut.after}: {cut.forward_once:.1%} of forward MACs run once per image; features "
        f"{shapes}{more}, {mib(cut.bytes_per_image)} per image in {cut.precision}{cache}"
    )


def _every_parameter(report: FreezeReport) -> str:
    rows = [
        (
            row.name,
            "x".join(map(str, row.shape)) or "scalar",
            f"{row.numel:,}",
            "frozen" if row.frozen else "trainable",
            "(new head)" if row.head else row.pattern or "(no pattern)",
        )
        for row in report.parameters
    ]
    return table(("parameter", "shape", "count", "", "decided by"), rows, right=(2,))
