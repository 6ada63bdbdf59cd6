"""``finetune train`` with ``recipe: auto``: the best model that a budget of time allows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune.checkpoints import run_dir
from finetune.checkpoints.finetuned_source import find_source_run
from finetune.checkpoints.run_lock import RunLock
from finetune.commands.dry_run import dry_run
from finetune.commands.train import next_commands, train
from finetune.config.base import seconds_of
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core import signals
from finetune.core.errors import Interrupted, OutputError, ResultError
from finetune.core.files import write_text
from finetune.core.reporter import ForwardingReporter, Reporter, SilentReporter
from finetune.data.sources.open import find_train_val
from finetune.freezing.flops import module_multiply_adds
from finetune.freezing.plan import make_plan
from finetune.inference.confidence_intervals import wilson
from finetune.models.blocks import units_of
from finetune.models.build import is_path
from finetune.recipes.ladder import (
    EVERYTHING,
    MOST_EPOCHS,
    PART,
    PROBE,
    SPENT,
    Cost,
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
from finetune.results.train import (
    LadderSummary,
    PredictedGain,
    Rung,
    Scores,
    StageSummary,
    TrainSummary,
)
from finetune.training.setup import ladder_without_validation

SUMMARY = "ladder.json"
_SETUP_S = 3.0
"""Seconds that the setup of both stages of a run takes, beside training and features."""
_WORTH_TIMING_S = 120.0
"""Remaining seconds below which everything is not timed, which takes up to twenty."""
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
        _check_usable(folder, overwrite=overwrite)
        shown = _SaidOnce(reporter or SilentReporter())
        ladder = _Ladder(config, overwrite, run_lock, shown)
        ladder.check()
        try:
            return ladder.summary(ladder.climb())
        except Interrupted:
            if ladder.best is None:
                raise
            raise ladder.interrupted() from None


class _SaidOnce(ForwardingReporter):
    """`Reporter` that shows a line once: the runs of a ladder have the same data and network."""

    def __init__(self, shown: Reporter) -> None:
        super().__init__(shown)
        self._said: set[str] = set()

    def say(self, text: str, *, good: bool = False) -> None:
        if text in self._said:
            self._shown.detail(text)
            return
        self._said.add(text)
        self._shown.say(text, good=good)

    def warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._shown.warn(text)


@dataclass
class _Ladder:
    """Runs of a ladder so far.

    Attributes:
        start: Start of the command on this process's clock.
        tried: Number of rungs, those that diverged included.
        trained: Summaries of the finished runs by number.
        failed: Names of the rungs that diverged.
    """

    config: Config
    overwrite: bool
    run_lock: RunLock
    reporter: Reporter
    start: float = field(default_factory=time.perf_counter)
    tried: int = 0
    rungs: list[Rung] = field(default_factory=list)
    trained: dict[int, TrainSummary] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

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

    def check(self) -> None:
        """Raise before any work if the ladder cannot be trained in its folders."""
        weights = self.config.model.weights
        source = find_source_run(weights) if is_path(weights) else None
        folders = Path(self.config.output_dir).resolve(), self._folder.resolve()
        if source is not None and {*source.path.resolve().parents} & {*folders}:
            raise OutputError(
                f"{source.path}, from which model.weights initializes this run, would be replaced",
                kind="output.is_the_source",
                key="output_dir",
                path=self.config.output_dir,
                to_do="choose another folder with --set output_dir=FOLDER",
            )
        for folder in self._earlier_rungs():
            _check_usable(folder, overwrite=self.overwrite)
            with RunLock(folder):  # raises if another process trains there
                pass
        data = find_train_val(self.config.data, seed=self.config.seed, reporter=SilentReporter())
        if not len(data.val):
            raise ladder_without_validation()

    def climb(self) -> str:
        """Train rung after rung while there is time, and return why the ladder ended."""
        probe = self._train(PROBE, probe_of(self.config))
        assert probe is not None  # an error of the first rung is the command's error
        if self.left_s < _SHORTEST_S:
            return "the head alone took the budget"
        if _is_perfect(_val(probe), self.config.train.monitor):
            return "every validation image is right, so that nothing better could be measured"
        patterns, costs = self._candidates(probe)
        steps = next_steps(costs, self.left_s)
        if not steps:
            least = min(cost.of(2) for cost in costs.values())
            return (
                f"{SPENT * max(self.left_s, 0):.0f} s can be planned, with a tenth in reserve; "
                f"training more than the head would take at least {least:.0f} s"
            )
        done: dict[str, TrainSummary] = {}
        for step in steps:
            summary = self._train(
                step.name, rung_of(self.config, patterns[step.name], probe, step.epochs)
            )
            if summary is not None:
                done[step.name] = summary
        if len(steps) > 1:
            self._train_longer(done, patterns, probe)
        if not done:
            return "training more than the head did not converge"
        if all(summary.stages[-1].stopped for summary in done.values()):
            return "early stopping ended the last runs"
        if all(_epochs(summary.stages[-1]) >= MOST_EPOCHS for summary in done.values()):
            return f"more than {MOST_EPOCHS} epochs are not tried"
        if len(steps) == 1:
            return "the time after the head sufficed for one run"
        return "the rest of the budget is too short for another run"

    def _train_longer(
        self,
        done: dict[str, TrainSummary],
        patterns: dict[str, tuple[str, ...]],
        probe: TrainSummary,
    ) -> None:
        """Train the better one of the short runs for longer, then the other if there is time."""
        for name in sorted(done, key=lambda name: self._rank(_val(done[name])), reverse=True):
            stage = done[name].stages[-1]
            cost = _measured(done[name])
            step = last_step(name, cost, self.left_s, already=_epochs(stage))
            if step is None or stage.stopped is not None:
                continue
            longer = self._train(name, rung_of(self.config, patterns[name], probe, step.epochs))
            done[name] = longer or done[name]

    def summary(self, note: str) -> LadderSummary:
        """Summarise the ladder so far, and write the summary beside the rungs."""
        best = self.best
        assert best is not None
        chosen = self._chosen(best)
        failed = "".join(f"; {name} did not converge" for name in self.failed)
        result = LadderSummary(
            budget_s=self.budget_s,
            elapsed_s=self.elapsed_s,
            run_dir=self.config.output_dir,
            monitor=self.config.train.monitor,
            num_val=chosen.num_val,
            rungs=tuple(self.rungs),
            chosen=best.number,
            doubled=self._doubled(),
            note=f"{note}{failed}",
            train=chosen,
            rerun=chosen.rerun,
            next=chosen.next,
        )
        write_text(self._folder / SUMMARY, to_json(result) + "\n")
        return result

    @property
    def _folder(self) -> Path:
        return Path(f"{Path(self.config.output_dir)}-ladder")

    def _earlier_rungs(self) -> list[Path]:
        """Return the folders of the rungs of an earlier ladder in the same place."""
        own = {Path(rung.run_dir) for rung in self.rungs}
        found = self._folder.glob(f"[0-9]-*/{run_dir.MARKER}")
        return sorted(path.parent for path in found if path.parent not in own)

    def _candidates(
        self, probe: TrainSummary
    ) -> tuple[dict[str, tuple[str, ...]], dict[str, Cost]]:
        """Return the freeze patterns and the predicted durations of the candidates.

        What cannot fit is not timed, which takes many seconds.
        """
        config = load_config(Path(probe.run_dir) / run_dir.CONFIG)
        plan = make_plan(config, len(probe.class_names))
        blocks = units_of(Anatomy.of(plan.skeleton, plan.spec).parameters, plan.spec.family.block)
        macs = module_multiply_adds(plan.skeleton, crop=plan.spec.preprocessing.crop)
        part, share = last_part(blocks, macs)
        # A photo takes at least its share of what its features took, with no backward pass.
        feature_s = _feature_s(probe)
        if feature_s is not None:
            least = Cost(_SETUP_S, share * feature_s * probe.num_train)
            if not could_fit(least, self.left_s):
                return {PART: part}, {PART: least}
        self.reporter.say("timing what more could be trained")
        self.reporter.status("timing what more could be trained")
        cost, is_cached = self._predicted(part, probe)
        patterns, costs = {PART: part}, {PART: cost}
        # An epoch of everything takes longer than one of the part, by the share of the work if the
        # part's features are cached.
        least = Cost(0.0, cost.epoch_s / (share if is_cached else 1.0))
        if self.left_s >= _WORTH_TIMING_S and could_fit(least, self.left_s):
            patterns[EVERYTHING] = ()
            costs[EVERYTHING], _ = self._predicted((), probe)
        return patterns, costs

    def _predicted(self, patterns: Sequence[str], probe: TrainSummary) -> tuple[Cost, bool]:
        """Predict the duration of a rung, by timing one batch of each part of its work.

        Returns:
            The duration, and whether the features of the second stage are cached.
        """
        config = rung_of(self.config, patterns, probe, epochs=2)
        planned = dry_run(config, overwrite=True, reporter=SilentReporter())
        head, rest = (stage.predicted for stage in planned.stages)
        head_s = head.epoch_with_cache_s or head.epoch_without_cache_s
        fixed_s = _SETUP_S + probe.epochs * head_s + (rest.fill_s or 0.0)
        if planned.config["stages"][0]["features"]["cache"] == "memory":
            fixed_s += head.fill_s or 0.0  # computed again by every run
        epoch_s = rest.epoch_with_cache_s
        if epoch_s is None:
            return Cost(fixed_s, rest.epoch_without_cache_s), False
        return Cost(fixed_s, epoch_s), True

    def _train(self, what: str, config: Config) -> TrainSummary | None:
        """Train a rung and publish it if it is the best; None if it diverged after the first."""
        self.tried += 1
        name = f"rung {self.tried}, {what}"
        folder = self._folder / f"{self.tried}-{what}"
        if folder in self._earlier_rungs():
            _remove(folder)  # so that an interrupt finds nothing old there
        self.reporter.say(f"{name}: {max(self.left_s, 0):.0f} s are left")
        try:
            done = train(
                config.with_values({"output_dir": str(folder)}),
                overwrite=self.overwrite,
                reporter=self.reporter,
            )
        except ResultError as error:
            if not self.rungs or error.kind != "result.not_finite":
                raise
            self.reporter.warn(f"{name}: {error}")
            self.failed.append(name)
            return None
        except Interrupted:
            self._keep_interrupted(folder, what)
            raise
        self._add(folder, what, _val(done), done.num_val, epochs=done.last_epoch, done=done)
        return done

    def _add(
        self,
        folder: Path,
        what: str,
        val: Scores,
        num_val: int,
        *,
        epochs: int,
        done: TrainSummary | None = None,
    ) -> None:
        """Add a rung, and publish its run if it is the best so far."""
        before = self.best
        interval = wilson(round(val.top1 * num_val), num_val)
        assert interval is not None
        is_best = before is None or self._rank(val) > self._rank(before.val)
        rung = Rung(
            number=self.tried,
            what=what,
            run_dir=str(folder),
            epochs=epochs,
            val=val,
            low=interval.low,
            high=interval.high,
            ended_s=self.elapsed_s,
            is_best=is_best,
        )
        with signals.patiently():
            if is_best:
                self._publish(folder)
            self.rungs.append(rung)
            if done is not None:
                self.trained[rung.number] = self._published(done)
            best = self.best
            assert best is not None
            if best.number in self.trained:
                write_text(
                    Path(self.config.output_dir) / run_dir.SUMMARY,
                    to_json(self._chosen(best)),
                )
                self.summary("the ladder was not finished")
            else:  # an interrupted run has no summary
                (self._folder / SUMMARY).unlink(missing_ok=True)
        kept = "the best so far" if is_best else f"rung {before.number if before else 0} is kept"
        self.reporter.say(
            f"rung {rung.number}, {what}: val top-1 {val.top1:.2%} after {self.elapsed_s:.0f} s; "
            f"{kept}"
        )

    def _publish(self, run: Path) -> None:
        folder = Path(self.config.output_dir)
        config = load_config(run / run_dir.CONFIG)
        text = to_yaml(config.with_values({"output_dir": self.config.output_dir}))
        run_dir.publish(run, folder, config=text)
        self.run_lock.take()  # publish() may have created the folder
        if not self.rungs:
            for earlier in self._earlier_rungs():
                if earlier != run:
                    _remove(earlier)
            (self._folder / SUMMARY).unlink(missing_ok=True)

    def _chosen(self, best: Rung) -> TrainSummary:
        """Return the summary of the best run, with the choice among runs as a caveat."""
        chosen = self.trained[best.number]
        if len(self.rungs) == 1:
            return chosen
        return chosen.also_chose("the run")

    def _published(self, done: TrainSummary) -> TrainSummary:
        """Return the summary of a run as it reads in ``output_dir``."""
        folder = self.config.output_dir
        return replace(
            done,
            run_dir=folder,
            rerun=run_dir.rerun_command(Path(folder) / run_dir.CONFIG, folder),
            next=next_commands(folder, has_val=True),
        )

    def _keep_interrupted(self, folder: Path, what: str) -> None:
        """Keep the best epoch of an interrupted run, if it is the best so far."""
        records = run_dir.records_of(folder / run_dir.BEST)
        if not records:
            return
        names = "top1", "loss", "balanced_accuracy", "macro_f1"
        vals = [Scores(**{name: record["val"][name] for name in names}) for record in records]
        num_val = records[0]["val"]["num_images"]
        self._add(folder, what, max(vals, key=self._rank), num_val, epochs=len(records))

    def interrupted(self) -> Interrupted:
        """Return the error that ends an interrupted ladder and says where the best model is."""
        best = self.best
        assert best is not None
        return signals.interrupted(
            f" in rung {self.tried}. The best model so far is in {self.config.output_dir}: rung "
            f"{best.number} ({best.what}), val top-1 {best.val.top1:.2%}. With --overwrite, the "
            "same command starts over with the cached features"
        )

    def _rank(self, val: Scores) -> tuple[float, float]:
        monitor = self.config.train.monitor
        return (-val.loss if monitor == "loss" else float(getattr(val, monitor))), -val.loss

    def _doubled(self) -> PredictedGain | None:
        points = [(rung.ended_s, 1 - rung.val.top1) for rung in self.rungs if rung.is_best]
        error = extrapolated(points, 2 * self.budget_s)
        return None if error is None else PredictedGain(2 * self.budget_s, 1 - error)


def _check_usable(folder: Path, *, overwrite: bool) -> None:
    """Check that a directory can be used, as `run_dir.check_usable`; a ladder is not resumed."""
    try:
        run_dir.check_usable(folder, overwrite=overwrite)
    except OutputError as error:
        if error.kind != "output.exists":
            raise
        raise error.at(
            to_do="add --overwrite to replace it, or choose another folder with "
            "--set output_dir=FOLDER"
        ) from error


def _remove(folder: Path) -> None:
    """Remove a rung of an earlier ladder, unless another process trains in it."""
    with RunLock(folder):
        run_dir.remove(folder)


def _val(summary: TrainSummary) -> Scores:
    """Return the metrics of the best epoch of a run's last stage."""
    val = summary.stages[-1].val
    assert val is not None  # validation images are required
    return val


def _is_perfect(val: Scores, monitor: str) -> bool:
    """Return whether no other run could be better by the monitored metric."""
    return monitor != "loss" and val.top1 == 1.0


def _feature_s(summary: TrainSummary) -> float | None:
    """Return the seconds that a row of features took; None where none was computed."""
    counts = summary.features
    return counts.seconds / counts.computed if counts is not None and counts.computed else None


def _epochs(stage: StageSummary) -> int:
    """Return the number of epochs that a stage trained."""
    return stage.last_epoch - stage.first_epoch + 1


def _measured(summary: TrainSummary) -> Cost:
    """Return the duration of a longer run, from that of a short one."""
    stage = summary.stages[-1]
    records = run_dir.records_of(Path(summary.run_dir) / run_dir.BEST)
    took = [it["elapsed_s"] + it["eval_s"] for it in records if it["stage"] == stage.number]
    epoch_s = sum(took) / len(took)
    return Cost(max(summary.elapsed_s - sum(took), 0.0), epoch_s)
