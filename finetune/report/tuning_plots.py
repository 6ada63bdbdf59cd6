"""Plots of ``tune``, ``lr-find``, ``freeze-report --probe`` and ``learning-curve``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from finetune.core.errors import ConfigError, OutputError
from finetune.core.files import exists, is_folder, unwritable
from finetune.report.plots import load_matplotlib, save
from finetune.results.freeze import DepthReport
from finetune.results.learning_curve import LearningCurve
from finetune.results.train import MONITORED
from finetune.results.tuning import LrRange, Trial, TuneResult

RATES_BY, DEPTHS_BY = "finetune lr-find", "finetune freeze-report"
CURVE_BY = "finetune learning-curve"
"""Commands in the metadata of the pictures, which only they replace."""
_ENOUGH_TO_LEAVE_OUT = 20


def check_picture(path: Path, maker: str) -> None:
    """Raise if a plot cannot be written to ``path``; called before any work.

    Args:
        maker: Command whose earlier plots may be replaced.

    Raises:
        ConfigError: the path does not end in .png, or matplotlib is not installed.
        OutputError: the folder does not exist, or the file exists and is not a plot of ``maker``.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(
            "the plot is a PNG file",
            kind="config.plot_format",
            key="--output",
            path=path,
            to_do="use a name that ends in .png",
        )
    load_matplotlib(path)
    if not is_folder(path.parent):
        raise unwritable(path, f"there is no folder {path.parent}")
    if exists(path) and not _is_by(maker, path):
        raise OutputError(
            f"exists already and was not written by {maker.removeprefix('finetune ')}",
            kind="output.exists",
            path=path,
            to_do="choose another file with --output",
        )


def _is_by(maker: str, path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return bool(image.info.get("Software") == maker)
    except Exception:  # not a readable PNG, hence not a plot
        return False


def draw_trials(result: TuneResult, path: Path) -> None:
    """Plot all trials by rank, with their spread over the folds, and by learning rate.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    figure = load_matplotlib(path)(figsize=(10, 4.4), layout="constrained")
    ranked, rates = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    trials = [trial for trial in result.trials if trial.loss is not None]
    ranks = {id(trial): rank for rank, trial in enumerate(trials, start=1)}
    for number, (name, some) in enumerate(_series(result, trials).items()):
        heights = [_height(trial, result.metric) for trial in some]
        scale = 1 if result.metric == "loss" else 100
        spreads = [scale * (trial.spread or 0.0) for trial in some]
        color = f"C{number % 10}"
        ranked.errorbar(
            [ranks[id(trial)] for trial in some],
            heights,
            yerr=spreads if result.num_folds else None,
            fmt="o",
            markersize=4,
            elinewidth=0.8,
            color=color,
            label=name,
        )
        rates.plot([trial.settings.lr for trial in some], heights, "o", markersize=4, color=color)
    best = result.winner
    for axes in (ranked, rates):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    searched = best.model, best.weights
    own = [one for one in trials if one.number == 0 and (one.model, one.weights) == searched]
    marked = [(best, "o", 11, "chosen")]
    marked += [(trial, "D", 7, "the config's own settings") for trial in own]
    for trial, marker, size, label in marked:
        for axes, x in ((ranked, ranks[id(trial)]), (rates, trial.settings.lr)):
            axes.plot(
                [x],
                [_height(trial, result.metric)],
                marker,
                markersize=size,
                markerfacecolor="none",
                color="black",
                label=label if axes is ranked else "_",
            )
    folds = f"mean and standard deviation of {result.num_folds} folds"
    where = folds if result.num_folds else f"on {result.num_val:,} validation images"
    if result.equal > 1 and not result.keeps_default:
        ranked.axvspan(
            0.5,
            result.equal + 0.5,
            color="black",
            alpha=0.06,
            linewidth=0,
            label="within one standard error: ordered by loss",
        )
    ranked.set(
        title=f"{len(trials):,} trials, the best first: {where}",
        xlabel="rank",
        xlim=(0.5, len(trials) + 0.5),
        ylabel=MONITORED[result.metric] + (", %" if result.metric != "loss" else ""),
    )
    rates.set(title="by learning rate", xlabel="learning rate", xscale="log")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    _show_the_better_part(ranked, trials, result)
    save(figure, path)


def _series(result: TuneResult, trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Group trials by backbone if there are several, otherwise by optimizer."""
    series: dict[str, list[Trial]] = {}
    for trial in trials:
        name = trial.model if result.backbones else trial.settings.optimizer
        series.setdefault(name, []).append(trial)
    return dict(sorted(series.items()))


def _height(trial: Trial, metric: str) -> float:
    value: float = getattr(trial, metric)
    return value if metric == "loss" else 100 * value


def _show_the_better_part(axes: Any, trials: Sequence[Trial], result: TuneResult) -> None:
    """Limit the y axis so that poor trials do not compress the others.

    Of twenty or more trials, the worst tenth may fall outside.
    """
    heights = sorted(_height(trial, result.metric) for trial in trials)
    tenth = len(heights) // 10 if len(heights) >= _ENOUGH_TO_LEAVE_OUT else 0
    low, high = heights[0], heights[-1]
    if result.metric == "loss":
        high = heights[-1 - tenth]
    else:
        low = heights[tenth]
    spreads = [trial.spread or 0.0 for trial in trials[: max(len(trials) // 2, 1)]]
    margin = max(0.08 * (high - low), max(spreads) * (1 if result.metric == "loss" else 100), 1e-3)
    top = high + margin
    axes.set_ylim(low - margin, top if result.metric == "loss" else min(top, 101))


def draw_lr_range(result: LrRange, path: Path) -> None:
    """Plot the loss of each step, the smoothed loss and the suggested learning rate.

    Raises:
        ConfigError, OutputError: same as `draw_trials`.
    """
    figure = load_matplotlib(path)(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.subplots()
    rates = [point.lr for point in result.points]
    losses = [point.loss for point in result.points]
    smoothed = [point.smoothed for point in result.points]
    axes.plot(rates, losses, ".", color="C0", alpha=0.35, label="a step's loss")
    axes.plot(rates, smoothed, color="C0", label="smoothed")
    if result.lr is not None:
        axes.axvline(result.lr, color="C1", label=f"suggested: {result.lr:.2g}")
    axes.axvline(
        result.configured_lr,
        color="gray",
        linestyle=":",
        label=f"in the config: {result.configured_lr:g}",
    )
    top = max(smoothed[0], *smoothed[: max(len(smoothed) // 2, 1)])
    low = min(smoothed)
    axes.set_ylim(low - 0.15 * (top - low) - 1e-3, top + 0.6 * (top - low) + 1e-3)
    axes.set(
        title=f"{result.model}, {result.optimizer}, batches of {result.batch_size}",
        xlabel="learning rate",
        ylabel="training loss",
        xscale="log",
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(figure, path, maker=RATES_BY)


def draw_depths(result: DepthReport, path: Path) -> None:
    """Plot the accuracy of a linear probe after each block, with its confidence interval.

    Raises:
        ConfigError, OutputError: same as `draw_trials`.
    """
    rows = result.rows
    figure = load_matplotlib(path)(figsize=(max(7.0, 0.34 * len(rows)), 4.6), layout="constrained")
    axes = figure.subplots()
    places = list(range(len(rows)))
    heights = [100 * row.top1 for row in rows]
    below = [100 * (row.top1 - row.low) for row in rows]
    above = [100 * (row.high - row.top1) for row in rows]
    axes.errorbar(
        places, heights, yerr=(below, above), fmt="o-", markersize=4, elinewidth=0.8, color="C0"
    )
    end = next(at for at, row in enumerate(rows) if row.block == result.earliest)
    axes.axvspan(-0.5, end + 0.5, color="C0", alpha=0.08, linewidth=0)
    axes.axvline(
        end + 0.5,
        color="C1",
        label=f"within one standard error of the best after {result.earliest}",
    )
    step = -(-len(rows) // 40)
    axes.set_xticks(places[::step], [row.block for row in rows][::step], rotation=60, ha="right")
    axes.set(
        title=f"{result.model}: linear probe on the pooled output of each block",
        xlabel="block, input to output",
        xlim=(-0.5, len(rows) - 0.5),
        ylabel=f"top-1 on {result.num_val:,} validation images, %",
    )
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center")
    save(figure, path, maker=DEPTHS_BY)


def draw_learning_curve(result: LearningCurve, path: Path) -> None:
    """Plot the accuracy by the number of training photos, the fitted law and its projection.

    Raises:
        ConfigError, OutputError: same as `draw_trials`.
    """
    figure = load_matplotlib(path)(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    sizes = [point.num_photos for point in result.points]
    ends = sizes[0], result.projected.num_photos
    steps = [ends[0] * (ends[1] / ends[0]) ** (at / 100) for at in range(101)]
    axes.plot(
        steps,
        [100 * (1 - result.law.error_at(size)) for size in steps],
        color="C0",
        linewidth=1,
        label="fitted power law of the error",
    )
    for values, color, marker, label in (
        ([(p.num_photos, p.top1, p.low, p.high) for p in result.points], "C0", "o", "measured"),
        (
            [(ends[1], result.projected.top1, result.projected.low, result.projected.high)],
            "C1",
            "D",
            "projected, twice the photos",
        ),
    ):
        places, heights, lows, highs = (list(some) for some in zip(*values, strict=True))
        axes.errorbar(
            places,
            [100 * height for height in heights],
            yerr=(
                [100 * max(height - low, 0) for height, low in zip(heights, lows, strict=True)],
                [100 * max(high - height, 0) for height, high in zip(heights, highs, strict=True)],
            ),
            fmt=marker,
            markersize=5,
            elinewidth=0.8,
            color=color,
            label=f"{label}, 95 % interval",
        )
    draws = [(p.num_photos, share) for p in result.points[:-1] for share in p.draws]
    axes.plot(
        [size for size, _ in draws],
        [100 * share for _, share in draws],
        ".",
        color="C0",
        alpha=0.35,
        label=f"{result.num_draws} draws of each size",
    )
    axes.set_xscale("log")
    shown = [*sizes[::2], sizes[-1], ends[1]] if len(sizes) % 2 == 0 else [*sizes[::2], ends[1]]
    axes.set_xticks(shown, [f"{size:,}" for size in shown])
    axes.minorticks_off()
    axes.set(
        title=f"{result.model}: head on frozen features",
        xlabel="training photos",
        ylabel=f"top-1 on {result.num_val:,} validation images, %",
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=2)
    save(figure, path, maker=CURVE_BY)
