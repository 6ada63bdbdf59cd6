"""``finetune train`` with ``recipe: auto``: the best model that a budget of time allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.checkpoints import run_dir
from finetune.checkpoints.run_lock import RunLock
from finetune.commands.dry_run import dry_run
from finetune.commands.train import next_commands, train
from finetune.config.base import seconds_of
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core.errors import ConfigError, Interrupted, ResultError
from finetune.core.files import write_text
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.sources.open import find_train_val
from finetune.freezing.flops import module_multiply_adds
from finetune.freezing.plan import make_plan
from finetune.inference.confidence_intervals import wilson
from finetune.models.blocks import units_of
from finetune.recipes.ladder import (
    EVERYTHING,
    PART,
    PROBE,
    Cost,
    Step,
    could_fit,
    extrapolated,
    last_part,
    last_step,
    next_steps,
    probe_of,
    rung_of,
)
from finetune.recipes.named import Anatomy
from finetune.report.json_text import to_json
from finetune.results.train import LadderSummary, PredictedGain, Rung, Scores, TrainSummary

SUMMARY = "ladder.json"
_SETUP_S = 3.0
"""Seconds that the setup of both stages of a run takes, beside training and features."""
_SHORTEST_S = 5.0
"""Remaining seconds below which nothing else is tried."""


def train_within(
    config: Config, *, overwrite: bool = False, reporter: Reporter | None = None
) -> LadderSummary:
    """Train the best model that ``train.budget`` allows, in ``output_dir``.

    Every rung is a run of its own in ``OUTPUT_DIR-ladder``; the best one so far by the validation
    images is always in ``output_dir``.

    Args:
        config: Config with ``recipe: auto``.
        overwrite: Whether to replace an existing run in ``output_dir``, and earlier rungs.

    Raises:
        FinetuneError: any of its subclasses.
        Interrupted: a signal asked to stop; the best model so far is kept.
    """
    folder = Path(config.output_dir)
    with RunLock(folder) as run_lock:
        run_dir.check_usable(folder, overwrite=overwrite)
        ladder = _Ladder(config, overwrite, run_lock, reporter or SilentReporter())
        try:
            note = ladder.climb()
        except Interrupted as error:
            raise ladder.interrupted(error) from None
        return ladder.summary(note)


@dataclass
class _Ladder:
    """Runs of a ladder so far; ``start`` is on this process's clock."""

    config: Config
    overwrite: bool
    run_lock: RunLock
    reporter: Reporter
    start: float = field(default_factory=time.perf_counter)
    rungs: list[Rung] = field(default_factory=list)
    trained: dict[int, TrainSummary] = field(default_factory=dict)

    @property
    def budget_s(self) -> float:
        assert self.config.train.budget is not None
        return seconds_of(self.config.train.budget)

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.start

    @property
    def left_s(self) -> float:
        return self.budget_s - self.elapsed_s

    @property
    def best(self) -> Rung | None:
        """Best rung so far by ``train.monitor``, then by loss, the earlier among ties."""
        return max(self.rungs, key=lambda rung: self._rank(rung.val), default=None)

    def climb(self) -> str:
        """Train rung after rung while there is time, and return why the ladder ended."""
        self._refuse_without_validation()
        probe = self._train(PROBE, probe_of(self.config))
        assert probe is not None  # an error of the first rung is the command's error
        if self.left_s < _SHORTEST_S:
            return "the head alone took the budget"
        patterns, share = self._candidates(probe)
        self.reporter.say("timing what more could be trained")
        costs = {PART: self._predicted(patterns[PART], probe)}
        # Everything takes at least as long as its share of the work says: not timed in vain.
        if could_fit(Cost(0.0, costs[PART].epoch_s / share), self.left_s):
            costs[EVERYTHING] = self._predicted(patterns[EVERYTHING], probe)
        steps = next_steps(costs, self.left_s)
        if not steps:
            least = min(cost.of(2) for cost in costs.values())
            return (
                f"{max(self.left_s, 0):.0f} s are left, and training more than the head takes "
                f"about {least:.0f} s or more"
            )
        tried: dict[str, TrainSummary] = {}
        for step in steps:
            done = self._rung(step, patterns, probe)
            if done is not None:
                tried[step.name] = done
        if len(steps) == 1:
            return "the rest of the budget is too short for another run"
        longer = 0
        # The better one first; the other one if that leaves enough time, as with few photos.
        for name in sorted(tried, key=lambda name: self._rank(_val(tried[name])), reverse=True):
            short = tried[name]
            epochs = short.stages[-1].epochs
            step_after = last_step(name, _measured(short), self.left_s, already=epochs)
            if step_after is not None:
                self._rung(step_after, patterns, probe)
                longer += 1
        if not longer:
            return "the rest of the budget is too short for a longer run"
        return "the rest of the budget is too short for another run"

    def summary(self, note: str) -> LadderSummary:
        """Summarise the ladder, and write the summary beside the rungs."""
        best = self.best
        assert best is not None
        folder = self.config.output_dir
        config_file = Path(folder) / run_dir.CONFIG
        chosen = replace(
            self.trained[best.number],
            run_dir=folder,
            rerun=run_dir.rerun_command(config_file, folder),
            next=next_commands(folder, has_val=True),
        )
        write_text(Path(folder) / run_dir.SUMMARY, to_json(chosen))
        result = LadderSummary(
            budget_s=self.budget_s,
            elapsed_s=self.elapsed_s,
            run_dir=folder,
            monitor=self.config.train.monitor,
            num_val=chosen.num_val,
            rungs=tuple(self.rungs),
            chosen=best.number,
            doubled=self._doubled(),
            note=note,
            train=chosen,
            rerun=chosen.rerun,
            next=chosen.next,
        )
        write_text(self._folder / SUMMARY, to_json(result) + "\n")
        return result

    @property
    def _folder(self) -> Path:
        return Path(f"{Path(self.config.output_dir)}-ladder")

    def _refuse_without_validation(self) -> None:
        data = find_train_val(self.config.data, seed=self.config.seed, reporter=SilentReporter())
        if not len(data.val):
            raise ConfigError(
                "is 0, but recipe auto compares runs on held-out images",
                kind="config.no_validation",
                key="data.val_fraction",
                to_do="set a fraction above 0, or choose another recipe",
            )

    def _candidates(self, probe: TrainSummary) -> tuple[dict[str, tuple[str, ...]], float]:
        """Return the freeze patterns of the candidates, and the smaller one's share of the work."""
        plan = make_plan(load_config(Path(probe.run_dir) / run_dir.CONFIG), len(probe.class_names))
        blocks = units_of(Anatomy.of(plan.skeleton, plan.spec).parameters, plan.spec.family.block)
        macs = module_multiply_adds(plan.skeleton, crop=plan.spec.preprocessing.crop)
        patterns, share = last_part(blocks, macs)
        return {PART: patterns, EVERYTHING: ()}, share

    def _predicted(self, patterns: Sequence[str], probe: TrainSummary) -> Cost:
        """Predict the duration of a rung, by timing one batch of each part of its work."""
        config = rung_of(self.config, patterns, probe, epochs=2)
        planned = dry_run(config, overwrite=True, reporter=SilentReporter())
        head, rest = (stage.predicted for stage in planned.stages)
        head_s = head.epoch_with_cache_s or head.epoch_without_cache_s
        fixed_s = _SETUP_S + probe.epochs * head_s + (rest.fill_s or 0.0)
        epoch_s = rest.epoch_with_cache_s
        return Cost(fixed_s, rest.epoch_without_cache_s if epoch_s is None else epoch_s)

    def _rung(
        self, step: Step, patterns: dict[str, tuple[str, ...]], probe: TrainSummary
    ) -> TrainSummary | None:
        config = rung_of(self.config, patterns[step.name], probe, step.epochs)
        return self._train(step.name, config)

    def _train(self, what: str, config: Config) -> TrainSummary | None:
        """Train a rung and publish it if it is the best; None if it diverged after the first."""
        number = len(self.rungs) + 1
        folder = self._folder / f"{number}-{what}"
        self.reporter.say(f"rung {number}, {what}: {max(self.left_s, 0):.0f} s are left")
        try:
            done = train(
                config.with_values({"output_dir": str(folder)}),
                overwrite=self.overwrite,
                reporter=self.reporter,
            )
        except ResultError as error:
            if not self.rungs:
                raise
            self.reporter.warn(f"rung {number}, {what}: {error}")
            return None
        except Interrupted:
            self._keep_interrupted(folder, what)
            raise
        self._add(folder, what, _val(done), done.num_val, epochs=done.epochs)
        self.trained[number] = done
        return done

    def _add(self, folder: Path, what: str, val: Scores, num_val: int, *, epochs: int) -> None:
        before, number = self.best, len(self.rungs) + 1
        interval = wilson(round(val.top1 * num_val), num_val)
        assert interval is not None
        is_best = before is None or self._rank(val) > self._rank(before.val)
        rung = Rung(
            number=number,
            what=what,
            run_dir=str(folder),
            epochs=epochs,
            val=val,
            low=interval.low,
            high=interval.high,
            ended_s=self.elapsed_s,
            is_best=is_best,
        )
        if is_best:
            self._publish(folder)
        self.rungs.append(rung)
        kept = "the best so far" if is_best else f"rung {before.number if before else 0} is kept"
        self.reporter.say(
            f"rung {number}, {what}: val top-1 {val.top1:.2%} after {self.elapsed_s:.0f} s; {kept}"
        )

    def _publish(self, run: Path) -> None:
        folder = Path(self.config.output_dir)
        run_dir.publish(run, folder)
        self.run_lock.take()  # publish() may have created the folder
        config = load_config(folder / run_dir.CONFIG)
        text = to_yaml(config.with_values({"output_dir": self.config.output_dir}))
        write_text(folder / run_dir.CONFIG, text)

    def _keep_interrupted(self, folder: Path, what: str) -> None:
        """Keep the best epoch of an interrupted run, if it is the best so far."""
        records = run_dir.records_of(folder / run_dir.BEST)
        if not records:
            return
        names = "top1", "loss", "balanced_accuracy", "macro_f1"
        vals = [Scores(**{name: record["val"][name] for name in names}) for record in records]
        best = max(vals, key=self._rank)
        num_val = records[0]["val"]["num_images"]
        self._add(folder, what, best, num_val, epochs=len(records))

    def interrupted(self, error: Interrupted) -> Interrupted:
        """Return the error with the place of the best model so far, if there is one."""
        best = self.best
        if best is None:
            return error
        return Interrupted(
            f"{error}. The best model so far, rung {best.number} ({best.what}, val top-1 "
            f"{best.val.top1:.2%}), is in {self.config.output_dir}",
            exit_code=error.exit_code,
        )

    def _rank(self, val: Scores) -> tuple[float, float]:
        monitor = self.config.train.monitor
        return (-val.loss if monitor == "loss" else float(getattr(val, monitor))), -val.loss

    def _doubled(self) -> PredictedGain | None:
        points = [(rung.ended_s, 1 - rung.val.top1) for rung in self.rungs if rung.is_best]
        error = extrapolated(points, 2 * self.budget_s)
        return None if error is None else PredictedGain(2 * self.budget_s, 1 - error)


def _val(summary: TrainSummary) -> Scores:
    """Return the metrics of the best epoch of a run's last stage."""
    val = summary.stages[-1].val
    assert val is not None  # validation images are required
    return val


def _measured(summary: TrainSummary) -> Cost:
    """Return the duration of a longer run, from that of a short one."""
    stage = summary.stages[-1]
    records = run_dir.records_of(Path(summary.run_dir) / run_dir.BEST)
    took = [it["elapsed_s"] + it["eval_s"] for it in records if it["stage"] == stage.number]
    epoch_s = sum(took) / len(took)
    return Cost(max(summary.elapsed_s - sum(took), 0.0), epoch_s)
