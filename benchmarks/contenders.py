"""Runs of each contender, with their output in a common format."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import yaml
from cases import COLD, EVAL_COMMAND, EVAL_COMPUTED, EVAL_EPOCHS, PLAIN, WARM, Case, Peer
from measure import Process, Took, import_seconds, run_process

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
WARM_RUNS = 3
"""Number of warm runs per round, alternating with as many bare imports, because both are short."""

_OFF_EPOCHS = 3


@dataclass(frozen=True)
class Setting:
    """Settings shared by all contenders of one measurement."""

    data: Path
    weights: Path
    peers_python: str | None


@dataclass(frozen=True)
class Run:
    """One training process.

    Attributes:
        epochs: Values of ``train_s``, ``eval_s`` and ``top1`` for each epoch.
        form: Precision and memory format that `finetune` selected; empty for other contenders.
    """

    contender: str
    augmentation: str
    epochs: list[dict[str, float]]
    took: Took
    form: str = ""


@dataclass(frozen=True)
class EvaluationRun:
    """Evaluation speed reported by ``finetune eval``, or from the epochs of a training run.

    Attributes:
        took: Cost of the process; None for a training run, whose process did more.
    """

    contender: str
    images_per_s: float
    num_images: int
    top1: float
    took: Took | None


@dataclass
class Measured:
    """Results of one contender's turns."""

    runs: list[Run] = field(default_factory=list)
    evaluations: list[EvaluationRun] = field(default_factory=list)
    imports_s: list[float] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Add the results of another turn."""
        self.runs += other.runs
        self.evaluations += other.evaluations
        self.imports_s += other.imports_s

    def as_json(self) -> dict[str, object]:
        """Return all measurements."""
        return asdict(self)


def measure_plain(setting: Setting, case: Case, epochs: int) -> Measured:
    """Run the plain training loop with the interpreter and packages of `finetune`."""
    options = ["--model", case.model, "--augment", case.augment, "--train", *case.globs]
    return _program(PLAIN, sys.executable, "plain_loop.py", setting, case, epochs, options)


def measure_peer(setting: Setting, case: Case, epochs: int, peer: Peer) -> Measured:
    """Run a library's program with the interpreter that has those libraries."""
    assert setting.peers_python
    options = list(peer.options)
    return _program(peer.name, setting.peers_python, peer.program, setting, case, epochs, options)


def _program(
    contender: str,
    python: str,
    program: str,
    setting: Setting,
    case: Case,
    epochs: int,
    options: list[str],
) -> Measured:
    command: list[str | Path] = [python, BENCHMARKS / "peers" / program]
    command += ["--data", setting.data, "--epochs", str(epochs), "--lr", case.lr]
    if case.pretrained:
        command += ["--weights", setting.weights]
    with tempfile.TemporaryDirectory() as folder:  # some libraries write to the working directory
        process = run_process([*command, *options], folder=Path(folder))
    said = json.loads(process.stdout)
    return Measured([Run(contender, said["augmentation"], said["epochs"], process.took)])


def measure_finetune(setting: Setting, case: Case, epochs: int) -> Measured:
    """Run `finetune` with an empty cache, then the warm runs and evaluations of the case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold = _train(setting, case, epochs, COLD, folder, "cache", "cold")
        measured = Measured([cold])
        if case.warm:
            measured.add(_warm(setting, case, epochs, folder))
            measured.add(_evaluations(setting, case, folder))
        return measured


def _warm(setting: Setting, case: Case, epochs: int, folder: Path) -> Measured:
    """Run later trainings with different seeds and learning rates, alternating with imports."""
    found = Measured()
    for number in range(1, WARM_RUNS + 1):
        found.imports_s.append(import_seconds(sys.executable, REPOSITORY))
        sets = (f"seed={number}", f"optimizer.lr={float(case.lr) * (1 + number)}")
        run = _train(setting, case, epochs, WARM, folder, "cache", f"warm-{number}", *sets)
        found.runs.append(run)
    return found


def _evaluations(setting: Setting, case: Case, folder: Path) -> Measured:
    """Measure evaluation with all features computed, in three ways.

    ``finetune eval`` includes decoding and feature computation in a new process. For the checkpoint
    of the first run it caches the features; for that of a run without a cache it computes them per
    batch. The epochs after the first of the latter run are compared with those of the plain loop.
    """
    off = _train(setting, case, _OFF_EPOCHS, "", folder, "cache-off", "off", "features.cache=off")
    command = _evaluate(EVAL_COMMAND, folder, "cold", "cache-of-eval")
    computed = _evaluate(EVAL_COMPUTED, folder, "off", "cache-off")
    eval_s = median(epoch["eval_s"] for epoch in off.epochs[1:])
    speed, top1 = computed.num_images / eval_s, off.epochs[-1]["top1"]
    in_epochs = EvaluationRun(EVAL_EPOCHS, speed, computed.num_images, top1, None)
    return Measured(evaluations=[in_epochs, command, computed])


def _train(
    setting: Setting,
    case: Case,
    epochs: int,
    contender: str,
    folder: Path,
    cache: str,
    name: str,
    *sets: str,
) -> Run:
    output = folder / name
    weights = str(setting.weights) if case.pretrained else "none"
    told = {
        "model.name": case.model,
        "model.weights": weights,
        "data.root": str(setting.data),
        "freeze.patterns": json.dumps(case.patterns),
        "train.epochs": str(epochs),
        "optimizer.lr": case.lr,
        "output_dir": str(output),
    }
    command = [sys.executable, "-m", "finetune", "train", "--json"]
    command += ["--config", "configs/mobilenet_v2_linear_probe.yaml"]
    for text in (*(f"{key}={value}" for key, value in told.items()), *case.sets, *sets):
        command += ["--set", text]
    process = _finetune(command, folder / cache)
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    resolved = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
    runtime = resolved["runtime"]
    return Run(
        contender,
        resolved["augment"]["policy"],
        [
            {"train_s": r["elapsed_s"], "eval_s": r["eval_s"], "top1": r["val"]["top1"]}
            for r in records
        ],
        process.took,
        f"{runtime['precision']}, {runtime['memory_format']}",
    )


def _evaluate(contender: str, folder: Path, name: str, cache: str) -> EvaluationRun:
    command = [sys.executable, "-m", "finetune", "eval", "--json"]
    command += ["--checkpoint", str(folder / name / "best.pt")]
    process = _finetune(command, folder / cache)
    said = json.loads(process.stdout)
    return EvaluationRun(
        contender, said["images_per_s"], said["num_images"], said["top1"], process.took
    )


def _finetune(command: list[str], cache: Path) -> Process:
    """Run a command in the repository, so that this checkout is used and not an installed one."""
    return run_process(command, folder=REPOSITORY, environment={"XDG_CACHE_HOME": str(cache)})
