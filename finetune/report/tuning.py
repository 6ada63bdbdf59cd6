"""Text output of ``tune`` and ``lr-find``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune.core.text import count, plural
from finetune.report.caveats import caveat_fields
from finetune.report.layout import (
    Bar,
    Document,
    Field,
    Fields,
    Paragraph,
    Part,
    Table,
    document,
    joined,
    labelled,
    styled,
)
from finetune.report.train import accuracy, next_facts
from finetune.results.evaluation import Interval
from finetune.results.train import MONITORED
from finetune.results.tuning import LrRange, RangePoint, Trial, TuneResult

_MOST_TRIALS = 10
_LEAST_BAR = 1 / 24
_MOST_LINES = 16
_SHORT = {"top1": "top-1", "balanced_accuracy": "balanced", "macro_f1": "macro F1"}


def settings_in_words(trial: Trial) -> str:
    """Describe a trial's settings on one line."""
    one = trial.settings
    smoothing = f", label smoothing {one.label_smoothing:g}" if one.label_smoothing else ""
    return (
        f"{one.optimizer}, lr {one.lr:g}, weight decay {one.weight_decay:g}{smoothing}, batches of "
        f"{one.batch_size}, {plural(one.epochs, 'epoch')}"
    )


def winner_in_words(result: TuneResult) -> str:
    """Describe the best trial's settings, and its backbone if several were searched."""
    settings = settings_in_words(result.winner)
    return f"{result.winner.model}: {settings}" if result.backbones else settings


def render_tune(result: TuneResult) -> Document:
    """Render the final model's metrics, the best trials and their statistical ties."""
    return document(
        Fields(_figures(result)) if result.train is not None else None,
        _backbones(result) if result.backbones else None,
        _trials(result),
        Fields(_facts(result)),
    )


def _backbones(result: TuneResult) -> Table:
    share = _shown_share(result)
    rows = [
        (
            row.model,
            count(row.parameters),
            f"{row.input_size} px",
            _share(getattr(row.best, share), _spread(row.best, result)),
            _number(row.best.loss),
            f"{row.elapsed_s:.1f} s",
        )
        for row in result.backbones
    ]
    header = ("backbone with its best head", "parameters", "input", _SHORT[share], "loss", "took")
    return Table(header, rows, right=(1, 2, 3, 4, 5), names=(0,))


def _trials(result: TuneResult) -> list[Part]:
    """Render the best trials of the winning backbone, always with the config's own settings."""
    winner = result.winner
    mine = [t for t in result.trials if (t.model, t.weights) == (winner.model, winner.weights)]
    shown = mine[:_MOST_TRIALS]
    shown += [trial for trial in mine[_MOST_TRIALS:] if trial.number == 0]
    share = _shown_share(result)
    rows = [
        (
            "config" if trial.number == 0 else str(trial.number),
            _share(getattr(trial, share), _spread(trial, result)),
            _number(trial.loss),
            trial.settings.optimizer,
            f"{trial.settings.lr:g}",
            f"{trial.settings.weight_decay:g}",
            f"{trial.settings.label_smoothing:g}",
            str(trial.settings.batch_size),
            str(trial.settings.epochs),
        )
        for trial in shown
    ]
    settings = ("optim", "lr", "decay", "smooth", "batch", "epochs")
    header = ("trial", _SHORT[share], "loss", *settings)
    listed = Table(header, rows, right=(1, 2, 4, 5, 6, 7, 8))
    diverged = sum(trial.loss is None for trial in mine)
    left_out = len(mine) - len(rows)
    alike = sum(trial in mine for trial in result.trials[: result.equal])
    lines = []
    if 1 < alike < len(mine) and not result.keeps_default:
        lines.append(
            f"the first {alike:,} are within one standard error of the best and ranked by loss"
        )
    if left_out:
        lines.append(f"… and {left_out:,} more in tune.json")
    if diverged:
        lines.append(f"{plural(diverged, 'trial')} diverged")
    title = [Paragraph(f"Trials of {winner.model}", indent=0)] if result.backbones else []
    return [*title, listed, *([Paragraph(styled("; ".join(lines), "dim"))] if lines else [])]


def _shown_share(result: TuneResult) -> str:
    return "top1" if result.metric == "loss" else result.metric


def _spread(trial: Trial, result: TuneResult) -> float | None:
    """Spread of the displayed share; None if trials are ranked by loss."""
    return None if result.metric == "loss" else trial.spread


def _share(value: float | None, spread: float | None) -> str:
    if value is None:
        return "diverged"
    return f"{value:.1%}" if spread is None else f"{value:.1%} ± {100 * spread:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _figures(result: TuneResult) -> list[Field]:
    """Return the lines of the accuracy on the test split, or else on the validation split."""
    assert result.train is not None
    val, last, test = result.train.val, result.train.last, result.test
    assert val is not None  # tune refuses data without validation
    assert last is not None
    facts = []
    if test is not None:
        interval = Interval(test.top1_low, test.top1_high)
        facts += [
            Field("Accuracy", accuracy(test.top1, interval, test.num_images, "test images")),
            *caveat_fields(test.caveats),
            Field("", f"balanced {test.balanced_accuracy:.2%}, loss {test.loss:.4f}", detail=True),
        ]
    facts.append(
        Field(
            "Validation" if test is not None else "Accuracy",
            joined(
                [
                    styled(f"{last.top1:.2%}", "result" if test is None else ""),
                    f" in the last epoch, {val.top1:.2%} in the best",
                ],
                "",
            ),
        )
    )
    facts += caveat_fields(result.train.caveats) if test is None else []
    more = f"balanced {last.balanced_accuracy:.2%}, loss {last.loss:.4f} in the last epoch"
    return [*facts, Field("", more, detail=True), Field("", result.reported)]


def _facts(result: TuneResult) -> list[Field]:
    spread = "; ± is the spread over folds" if result.num_folds else ""
    facts = [
        Field("Searched", _searched(result)),
        Field("Chosen on", f"{result.chosen_on}, by {MONITORED[result.metric]}{spread}"),
        Field("Best", winner_in_words(result)),
    ]
    if result.keeps_default:
        facts.append(Field("", "a default setting, since the search is not expected to be better"))
    elif result.equal > 1:
        facts.append(
            Field(
                "",
                f"the lowest loss of the {result.equal:,} trials whose {MONITORED[result.metric]} "
                "is within one standard error of the best",
            )
        )
    if result.unbiased is not None and result.unbiased_default is not None:
        searched, default = (
            _number(value) if result.metric == "loss" else f"{value:.1%}"
            for value in (result.unbiased, result.unbiased_default)
        )
        facts.append(
            Field(
                "Unbiased",
                f"{MONITORED[result.metric]} {searched} if each fold is scored by the trial that "
                f"is best on the others; {default} with the default settings only",
            )
        )
    if result.logistic is not None:
        facts.append(
            Field(
                "Baseline",
                f"logistic regression on the same folds: top-1 {result.logistic.top1:.1%}, with "
                "the best of several L2 penalties",
            )
        )
    if result.train is None:
        facts.append(Field("", result.reported))
    facts += labelled("Written", result.files)
    if result.train is not None:
        facts.append(Field("Saved", result.train.run_dir))
    return [*facts, *next_facts(result.next)]


def _searched(result: TuneResult) -> str:
    backbones = f" on {len(result.backbones)} backbones" if result.backbones else ""
    how = "heads, trained together" if result.searched == "head" else "trials, one after another"
    return (
        f"{len(result.trials):,} {how}{backbones}, in {result.search_s:.1f} s; in total "
        f"{result.elapsed_s:.1f} s"
    )


def render_lr_range(result: LrRange) -> Document:
    """Render the smoothed loss curve in a few lines, and the suggested learning rate."""
    points = _thinned(result.points)
    low = min(point.smoothed for point in points)
    high = max(point.smoothed for point in points)
    rows = [
        (
            f"{point.lr:.2g}",
            f"{point.smoothed:.4f}",
            Bar(max((point.smoothed - low) / ((high - low) or 1), _LEAST_BAR)),
        )
        for point in points
    ]
    curve = Table(("lr", "loss, smoothed", ""), rows, right=(0, 1))
    facts = [Field("Suggested", _suggested(result)), Field("", result.rule)]
    if result.diverged_at is not None:
        facts.append(Field("Diverged", f"at lr {result.diverged_at:.2g}, which ended the test"))
    facts.append(
        Field(
            "Tested",
            f"{result.model}: {result.trainable_parameters:,} parameters by {result.optimizer} on "
            f"batches of {result.batch_size} from {result.num_train:,} images, "
            f"{len(result.points)} steps in {result.elapsed_s:.1f} s; weights were restored",
        )
    )
    if result.plot is not None:
        facts.append(Field("Written", result.plot))
    return document(Fields(facts), curve)


def _suggested(result: LrRange) -> str:
    if result.lr is None:
        return "none: the loss never decreased; try other --min-lr and --max-lr"
    return (
        f"--set optimizer.name={result.optimizer} --set optimizer.lr={result.lr:.2g} "
        f"(the config has {result.configured_lr:g})"
    )


def _thinned(points: Sequence[RangePoint]) -> Sequence[RangePoint]:
    return points[:: max(math.ceil(len(points) / _MOST_LINES), 1)]
