"""``finetune tune``: hyperparameter search on cached features, then training with the best."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from finetune.checkpoints import run_dir
from finetune.commands.evaluate import EvalOptions, compute
from finetune.commands.train import train
from finetune.config.base import AUTO, seconds_of
from finetune.config.load import to_yaml
from finetune.config.schema import Config, ModelConfig
from finetune.core.cores import available_cores
from finetune.core.device import select_device
from finetune.core.errors import ConfigError, ModelError, OutputError, ResultError
from finetune.core.files import exists, is_folder, write_text
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.checks.preflight import dropping_unreadable
from finetune.data.sources.open import find_split, find_train_val, open_source
from finetune.models.build import resolve_model
from finetune.models.pretrained import fetch_entry
from finetune.recipes.backbones import Machine, short_list
from finetune.report.json_text import to_json
from finetune.report.ladder import seconds
from finetune.report.tuning import settings_in_words, winner_in_words
from finetune.report.tuning_plots import draw_trials
from finetune.results.features import total
from finetune.results.tuning import (
    BackboneRow,
    TestScore,
    Trial,
    TuneResult,
    equal_to_best,
    in_order,
    without_selection_bias,
)
from finetune.tuning.search import SearchOptions, SearchResult, metric_of, search
from finetune.tuning.search_space import with_backbones, with_settings

_BACKBONES_S = 600.0
"""Predicted time of the feature passes that ``--backbones auto`` may add without a budget."""
BEST, RESULT, PLOT = "best.yaml", "tune.json", "tune.png"


def tune(
    config: Config,
    *,
    backbones: Sequence[Config] | Literal["auto"] = (),
    options: SearchOptions | None = None,
    final: bool = True,
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> TuneResult:
    """Search the space in the config's section ``tune``, and train with the best settings.

    Args:
        backbones: Variants of the config, one per backbone; all are searched and the best is used.
            auto: those of `affordable_backbones`.
        final: Whether to train on all training images into ``output_dir`` after the search.
        output: Output folder of the search; default: ``output_dir``-tune.
        overwrite: Whether to replace an earlier search and an existing run in ``output_dir``.

    Raises:
        FinetuneError: any of its subclasses.
    """
    start = time.perf_counter()
    reporter = reporter or SilentReporter()
    folder = output if output is not None else Path(f"{Path(config.output_dir)}-tune")
    _check_free(folder, Path(config.output_dir), overwrite=overwrite)
    if final:
        run_dir.check_usable(Path(config.output_dir), overwrite=overwrite)
    has_test = final and _has_test(config, reporter)
    if backbones == AUTO:
        backbones = affordable_backbones(config, reporter)
    found = []
    for one in backbones or [config]:

        def search_once(_: int, one: Config = one) -> SearchResult:
            return search(one, options or SearchOptions(), reporter)

        skip = config.data.on_unreadable
        found.append(dropping_unreadable(search_once, on_unreadable=skip, reporter=reporter))
    metric = metric_of(config)
    best, result = result_of(found, metric, folder, final=final)
    if result.winner.loss is None:
        raise ResultError(
            "every trial diverged: its loss was not a finite number",
            kind="result.all_diverged",
            source="tune",
            to_do="search lower learning rates, as with --set 'tune.lr={min: 0.0001, max: 0.01}'",
        )
    chosen = with_settings(best.config, result.winner.settings)
    result = _write(result, chosen, folder, reporter)
    reporter.say(f"best: {winner_in_words(result)}")
    if final:
        reporter.say(
            f"training these settings on all {result.num_train:,} images into {chosen.output_dir}"
        )
        summary = train(chosen, overwrite=overwrite, reporter=reporter)
        if not result.num_folds:
            summary = summary.also_chose("the settings")
            write_text(Path(summary.run_dir) / run_dir.SUMMARY, to_json(summary))
        score = _test_score(chosen, reporter) if has_test else None
        result = replace(
            result,
            train=summary,
            test=score,
            reported=_reported(result, tested=score is not None),
            next=summary.next,
        )
    result = replace(result, elapsed_s=time.perf_counter() - start)
    write_text(folder / RESULT, to_json(result) + "\n")
    return result


def affordable_backbones(config: Config, reporter: Reporter) -> list[Config]:
    """Return one config per backbone of ``--backbones auto``; downloads their weights.

    The config's own backbone and up to three others of other families, whose feature passes are
    predicted to take no longer than ``train.budget``, or `_BACKBONES_S` without one.
    """
    data = find_train_val(config.data, seed=config.seed, reporter=reporter)
    rows = 2 * len(data.train) + len(data.val)
    budget = config.train.budget
    allowed_s = _BACKBONES_S if budget is None else seconds_of(budget)
    machine = Machine(select_device(config.runtime.device).type, available_cores())
    own = config.model.name
    found = [own]
    given = config.model.preprocessing
    crop = None if isinstance(given, str) else given.crop
    for one in short_list(machine, rows, allowed_s, crop=crop, besides=[own]):
        try:
            fetch_entry(resolve_model(ModelConfig(name=one.name)))
        except ModelError as error:
            if error.kind != "model.download_failed":
                raise
            reporter.warn(f"left out: {error.what}")
        else:
            found.append(one.name)
            pass_s = one.pass_s(machine, rows, crop)
            reporter.say(
                f"{one.name}: {one.top1:.1f} % on ImageNet; its features are predicted to take "
                f"{seconds(pass_s)}"
            )
    if len(found) == 1:
        reporter.warn(f"no other backbone is left: {found[0]} is compared with nothing")
    return with_backbones(config, ",".join(found))


def _check_free(folder: Path, run: Path, *, overwrite: bool) -> None:
    """Raise if the search cannot be written to ``folder``; called before any work."""
    if folder.resolve().is_relative_to(run.resolve()):
        raise OutputError(
            f"is inside output_dir, {run}, which may contain only a run",
            kind="output.inside_run",
            key="--output",
            path=folder,
            to_do="choose another folder with --output DIR",
        )
    if exists(folder) and not is_folder(folder):
        raise OutputError(
            "is a file, not a folder",
            kind="output.not_a_folder",
            path=folder,
            to_do="choose another folder with --output DIR",
        )
    there = [name for name in (BEST, RESULT, PLOT) if exists(folder / name)]
    if there and not overwrite:
        raise OutputError(
            f"already contains a search ({', '.join(there)})",
            kind="output.exists",
            path=folder,
            to_do=f"train its result with `{_train_by(folder)}`, add --overwrite to replace it, or "
            "choose another folder with --output DIR",
        )


def _train_by(folder: Path) -> str:
    return f"finetune train --config {shlex.quote(str(folder / BEST))}"


def _has_test(config: Config, reporter: Reporter) -> bool:
    """Whether there is a test split; raises before any work if it could not be scored."""
    if "test" not in open_source(config.data, reporter).splits:
        return False
    data = find_train_val(config.data, seed=config.seed, reporter=reporter)
    names = data.train.class_names
    find_split(config.data, "test", class_names=names, seed=config.seed, root=None)
    return True


def result_of(
    found: Sequence[SearchResult], metric: str, folder: Path, *, final: bool
) -> tuple[SearchResult, TuneResult]:
    """Return the best backbone's search and the search result, without writing or training."""
    trials = in_order([trial for searched in found for trial in searched.trials], metric)
    # A backbone's best trial may differ between the ranking of all trials and that of its own:
    # which trials are statistically tied depends on the best trial.
    ranked = sorted(found, key=lambda searched: _first(searched.trials, trials))
    best = ranked[0]
    equal = len(equal_to_best(trials, metric))
    # The second round was drawn around the best trial of all folds: it would be biased.
    unbiased, default = (
        without_selection_bias([trial for trial in best.trials if trial.number < number], metric)
        for number in (best.num_first, best.num_default)
    )
    defaults = [trial for trial in best.trials if trial.number < best.num_default]
    keeps = len(found) == 1 and _is_worse(unbiased, default, metric)
    if keeps:
        taken = in_order(defaults, metric)[0]
        trials = [taken, *(trial for trial in trials if trial is not taken)]
    rows = [
        BackboneRow(
            model=searched.config.model.name,
            weights=searched.config.model.weights,
            parameters=searched.parameters,
            input_size=searched.input_size,
            best=trials[_first(searched.trials, trials)],
            elapsed_s=searched.elapsed_s,
        )
        for searched in ranked
    ]
    folds = best.num_folds
    return best, TuneResult(
        model=best.config.model.name,
        weights=best.config.model.weights,
        searched="head" if best.only_head else "live part",
        metric=metric,
        num_folds=folds,
        num_train=best.num_train,
        num_val=best.num_val,
        num_classes=best.num_classes,
        trials=tuple(trials),
        equal=equal,
        backbones=tuple(rows) if len(rows) > 1 else (),
        best=str(folder / BEST),
        files=(),
        search_s=sum(searched.search_s for searched in found),
        elapsed_s=0.0,
        features=total(searched.features for searched in found),
        logistic=best.logistic,
        unbiased=unbiased,
        unbiased_default=default,
        keeps_default=keeps,
        train=None,
        test=None,
        chosen_on=f"{folds}-fold cross-validation on {best.num_train:,} training images"
        if folds
        else f"the {best.num_val:,} validation images",
        reported="no model has been trained with these settings yet"
        if final
        else "nothing was trained (--no-train)",
        next=(_train_by(folder),),
    )


def _is_worse(one: float | None, other: float | None, metric: str) -> bool:
    """Return whether a metric is worse than another; False if either is unknown."""
    if one is None or other is None:
        return False
    return one > other if metric == "loss" else one < other


def _first(own: Sequence[Trial], ranked: Sequence[Trial]) -> int:
    """Return the index in ``ranked`` of the best of ``own``."""
    members = {id(trial) for trial in own}
    return next(at for at, trial in enumerate(ranked) if id(trial) in members)


def _write(result: TuneResult, chosen: Config, folder: Path, reporter: Reporter) -> TuneResult:
    """Write the best config, the plot if matplotlib is installed, and the results so far."""
    run_dir.make_output(folder)
    said = (
        f"# Written by `finetune tune`: trial {result.winner.number} of {len(result.trials):,}, "
        f"{settings_in_words(result.winner)}.\n# Chosen on {result.chosen_on}.\n"
    )
    write_text(folder / BEST, said + to_yaml(chosen))
    names = [BEST, RESULT]
    try:
        draw_trials(result, folder / PLOT)
        names.append(PLOT)
    except ConfigError as error:
        reporter.warn(f"no {PLOT}: {error}")
    result = replace(result, files=tuple(str(folder / name) for name in names))
    write_text(folder / RESULT, to_json(result) + "\n")
    return result


def _test_score(config: Config, reporter: Reporter) -> TestScore:
    checkpoint = Path(config.output_dir) / run_dir.BEST
    result = compute(checkpoint, EvalOptions(split="test"), reporter=reporter).result
    return TestScore(
        num_images=result.num_images,
        top1=result.top1,
        top1_low=result.intervals["top1"].low,
        top1_high=result.intervals["top1"].high,
        balanced_accuracy=result.balanced_accuracy,
        loss=result.loss,
        caveats=result.caveats,
    )


def _reported(result: TuneResult, *, tested: bool) -> str:
    """Describe how unbiased the final model's metrics are."""
    if tested:
        return "the test split was not used for any choice"
    if result.num_folds:
        return (
            "the validation split was used to choose the best epoch, not the settings: the metrics "
            "of the last epoch are unbiased"
        )
    return (
        f"the validation split was used to choose among {len(result.trials):,} trials, and there "
        "is no test split: expect lower metrics on new photos"
    )
