"""Text output of ``train``."""

from __future__ import annotations

from rich.text import Text

from finetune.checkpoints import run_dir
from finetune.core.text import plural
from finetune.report.caveats import caveat_fields
from finetune.report.layout import Command, Document, Field, Fields, document, joined, styled
from finetune.report.stages import trained_facts
from finetune.results.evaluation import Interval
from finetune.results.train import MONITORED, ParameterCounts, Scores, TrainSummary


def render_train(summary: TrainSummary) -> Document:
    """Render the accuracy, what was trained, the frozen weights, the folder and what comes next."""
    facts = [
        *_figures(summary),
        *_stopped(summary),
        *run_facts(summary),
        *_resumed(summary),
        *trained_facts(summary.stages),
        *saved_facts(summary),
    ]
    return document(Fields(facts))


def run_facts(summary: TrainSummary) -> list[Field]:
    """Return the lines about what a run trained and left frozen."""
    return [
        Field("Trained", _trained(summary)),
        Field("", _detailed(summary), detail=True),
        Field("Frozen", _frozen(summary)),
        *_verified(summary),
    ]


def saved_facts(summary: TrainSummary) -> list[Field]:
    """Return the lines about the folder of a run, and the next commands."""
    files = f"{run_dir.BEST}, {run_dir.LAST}, {run_dir.METRICS}, {run_dir.CONFIG}, {run_dir.LOG}, …"
    return [
        Field("Saved", summary.run_dir),
        Field("", files, detail=True),
        *next_facts(summary.next),
        Field("Rerun", Command(summary.rerun), detail=True),
    ]


def next_facts(commands: tuple[str, ...]) -> list[Field]:
    """Return the lines of the next commands: two of them, and the others as details."""
    return [
        Field("Next" if at == 0 else "", Command(command), detail=at > 1)
        for at, command in enumerate(commands)
    ]


def accuracy(top1: float, interval: Interval | None, number: int, of: str) -> Text:
    """Return an accuracy in bold with its interval and the counts behind it."""
    correct = round(top1 * number)
    figure = styled(f"{top1:.2%}", "result")
    between = f" [{interval.low:.1%}, {interval.high:.1%}]" if interval else ""
    return joined([figure, f"{between} ({correct:,} of {number:,} {of} right)"], "")


def weights_trained(counts: ParameterCounts, head: str) -> str:
    """Describe what trains in a few words, with the number of weights."""
    every = counts.trainable_parameters + counts.frozen_parameters
    if not counts.frozen_parameters:
        return f"all {every:,} weights"
    share = f"{counts.trainable_parameters:,} of {every:,} weights"
    if counts.trainable_tensors <= 2:  # a weight and a bias
        return f"the new last layer ({share})"
    return f"{share}, the new last layer {head} among them"


def _figures(summary: TrainSummary) -> list[Field]:
    val, last = summary.val, summary.last
    if val is None or last is None:
        why = (
            "not measured: there are no validation images (data.val_fraction 0); best.pt "
            "contains the last epoch"
        )
        return [Field("Accuracy", why)]
    return [
        Field("Accuracy", accuracy(val.top1, summary.top1_interval, summary.num_val, "val images")),
        Field("", f"epoch {summary.best_epoch} of {summary.epochs}, {_best(summary, val)}"),
        *caveat_fields(summary.caveats),
        Field("Balanced", f"{val.balanced_accuracy:.2%}, the mean recall of the classes"),
        Field("Loss", f"{val.loss:.4f}", detail=True),
        Field(
            "Last",
            f"accuracy {last.top1:.2%}, balanced {last.balanced_accuracy:.2%}, loss "
            f"{last.loss:.4f} in the last epoch",
            detail=True,
        ),
    ]


def _stopped(summary: TrainSummary) -> list[Field]:
    if summary.stopped is None:
        return []
    return [Field("Stopped", f"after epoch {summary.last_epoch}: {summary.stopped}")]


def _best(summary: TrainSummary, val: Scores) -> str:
    if summary.monitor == "top1":
        return "the best"
    figure = f" ({val.macro_f1:.2%})" if summary.monitor == "macro_f1" else ""
    return f"the best by {MONITORED[summary.monitor]}{figure}"


def _resumed(summary: TrainSummary) -> list[Field]:
    if not summary.resumed_at:
        return []
    last = f"at {summary.resumed_at[-1]}"
    if last == f"at the start of epoch {summary.last_epoch + 1}":  # nothing was left to do
        last = "after the last epoch"
    times = len(summary.resumed_at)
    return [Field("Resumed", f"once, {last}" if times == 1 else f"{times} times, lastly {last}")]


def _trained(summary: TrainSummary) -> str:
    stages = f"{len(summary.stages)} stages, " if len(summary.stages) > 1 else ""
    return (
        f"{weights_trained(summary, summary.head)} of {summary.model}, on "
        f"{plural(summary.num_train, 'image')} of {plural(len(summary.class_names), 'class')}, in "
        f"{stages}{summary.elapsed_s:.1f} s"
    )


def _detailed(summary: TrainSummary) -> str:
    memory = f"; {summary.peak_memory_mib:,} MiB of memory" if summary.peak_memory_mib else ""
    if summary.peak_gpu_memory_mib:
        memory += f"; {summary.peak_gpu_memory_mib:,} MiB on the GPU"
    return (
        f"{plural(summary.trainable_tensors, 'tensor')}, the new head {summary.head} among them"
        f"{memory}"
    )


def _frozen(summary: TrainSummary) -> str:
    in_stages = len(summary.stages) > 1
    if not summary.frozen_parameters:
        return f"nothing: all weights were trained{' in some stage' if in_stages else ''}"
    adapted = ""
    if summary.adapted:
        adapted = f"; adapters were merged into the other {plural(summary.adapted, 'weight')}"
    exempt = f"; {len(summary.exempt)} norm statistics updated" if summary.exempt else ""
    return f"weights unchanged: checked{' in every stage' if in_stages else ''}{exempt}{adapted}"


def _verified(summary: TrainSummary) -> list[Field]:
    if not summary.frozen_parameters:
        return []
    verified = (
        f"{plural(summary.frozen_parameters, 'weight')} in "
        f"{plural(summary.frozen_tensors, 'tensor')}; {summary.frozen_verified} tensors and "
        "buffers have the SHA-256 of when they were loaded, in best.pt and last.pt"
    )
    return [Field("", verified, detail=True)]
