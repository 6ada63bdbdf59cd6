"""Text output of ``freeze-report``."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.core.text import count, mib, plural
from finetune.report.layout import Document, Fields, Paragraph, Part, Table, joined, styled
from finetune.report.module_tree import render_module_tree
from finetune.report.param_groups import render_groups
from finetune.results.freeze import Cut, FreezeReport, NormRow, StagedFreezeReport


def render_freeze_report(report: FreezeReport | StagedFreezeReport) -> Document:
    """Render the frozen parameters, their patterns and the savings, for each stage."""
    if isinstance(report, FreezeReport):
        return Document(_freezing(report))
    total = len(report.stages)
    groups: list[Sequence[Part]] = []
    for number, (stage, epochs) in enumerate(zip(report.stages, report.epochs, strict=True), 1):
        title = Paragraph(styled(f"Stage {number} of {total}, {_epochs(epochs)}", "result"), 0)
        first, *others = _freezing(stage)
        groups += [[title, *first], *others]
    return Document(groups)


def _epochs(number: int | str) -> str:
    return plural(number, "epoch") if isinstance(number, int) else f"{number} epochs"


def _freezing(report: FreezeReport) -> list[Sequence[Part]]:
    totals = report.totals
    trained = totals.trainable + report.adapters.parameters
    facts = [*_adapter_facts(report), *_norm_facts(report.norm_layers), *_saving_facts(report)]
    warnings = [
        Paragraph(joined([styled("warning:", "warning"), warning], " "))
        for warning in report.warnings
    ]
    return [
        [
            Paragraph(
                f"{report.model} for {report.num_classes} classes: {count(totals.frozen)} of "
                f"{count(totals.parameters)} parameters frozen "
                f"({totals.frozen / totals.parameters:.1%}), {trained:,} trainable",
                indent=0,
            )
        ],
        [_patterns(report)],
        [render_module_tree(report.parameters)],
        [render_groups(report.groups)],
        [Fields(facts)],
        *([warnings] if warnings else []),
        [_every_parameter(report)],
    ]


def _patterns(report: FreezeReport) -> Part:
    if not report.patterns:
        return Paragraph("no patterns: everything is trained")
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
    header = ("pattern", "", "tensors", "parameters", "share")
    return Table(header, rows, right=(2, 3, 4), names=(0,))


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


def _every_parameter(report: FreezeReport) -> Table:
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
    header = ("parameter", "shape", "count", "", "decided by")
    return Table(header, rows, right=(2,), names=(0, 4), detail=True)
