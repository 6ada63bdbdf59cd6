"""Text output of the caveats of an accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.report.layout import Field, Fields, labelled, styled
from finetune.results.caveats import Caveat, in_order
from finetune.results.evaluation import Comparison


def caveat_fields(caveats: Sequence[Caveat]) -> list[Field]:
    """Return the fields that stand below an accuracy."""
    return labelled("Caveats", [styled(caveat.text, "warning") for caveat in caveats])


def caveats_by_run(comparison: Comparison) -> Fields | None:
    """Return the caveats of the runs, each with the runs that it holds for, or None."""
    runs: dict[Caveat, list[str]] = {}
    for run in comparison.runs:
        for caveat in run.caveats:
            runs.setdefault(caveat, []).append(run.run)
    if not runs:
        return None
    every = len(comparison.runs)
    texts = []
    for caveat in in_order(runs):
        names = runs[caveat]
        where = "" if len(names) == every else f"{', '.join(names)}: "
        texts.append(styled(f"{where}{caveat.text}", "warning"))
    return Fields(labelled("Caveats", texts))
