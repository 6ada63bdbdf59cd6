"""How each contender is called, and what it says put into one form."""

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
"""In each round, beside as many bare imports: both are short, and the difference is shorter."""

_OFF_EPOCHS = 3


@dataclass(frozen=True)
class Setting:
    """What all contenders of one call share."""

    data: Path
    weights: Path
    peers_python: str | None


@dataclass(frozen=True)
class Run:
    """One process that trained.

    Attributes:
        epochs: ``train_s``, ``eval_s`` and ``top1`` of each.
        form: Precision and memory format that `finetune` chose by timing; empty for the others.
    """

    contender: str
    augmentation: str
    epochs: list[dict[str, float]]
    took: Took
    form: str = ""


@dataclass(frozen=True)
class EvaluationRun:
    """Images per second, as ``finetune eval`` says it, or from the epochs of a training run.

    Attributes:
        took: None for those epochs, whose process also trained.
    """

    contender: str
    images_per_s: float
    num_images: int
    top1: float
    took: Took | None


@dataclass
class Measured:
    """What one contender's turn brought."""

    runs: list[Run] = field(default_factory=list)
    evaluations: list[EvaluationRun] = field(default_factory=list)
    imports_s: list[float] = field(default_factory=list)

    def add(self, other: Measured) -> None:
        """Take another turn's figures in."""
        self.runs += other.runs
        self.evaluations += other.evaluations
        self.imports_s += other.imports_s

    def as_json(self) -> dict[str, object]:
        """Every raw figure."""
        return asdict(self)


def measure_plain(setting: Setting, case: Case, epochs: int) -> Measured:
    """The loop as people write it, with the interpreter and packages that `finetune` has."""
    options = ["--model", case.model, "--augment", case.augment, "--train", *case.globs]
    return _program(PLAIN, sys.executable, "plain_loop.py", setting, case, epochs, options)


def measure_peer(setting: Setting, case: Case, epochs: int, peer: Peer) -> Measured:
    """A library's program, in the environment that holds those libraries."""
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
    with tempfile.TemporaryDirectory() as folder:  # some libraries write where they are started
        process = run_process([*command, *options], folder=Path(folder))
    said = json.loads(process.stdout)
    return Measured([Run(contender, said["augmentation"], said["epochs"], process.took)])


def measure_finetune(setting: Setting, case: Case, epochs: int) -> Measured:
    """A first run with an empty cache, and what the case asks for behind it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold = _train(setting, case, epochs, COLD, folder, "cache", "cold")
        measured = Measured([cold])
        if case.warm:
            measured.add(_warm(setting, case, epochs, folder))
            measured.add(_evaluations(setting, case, folder))
        return measured


def _warm(setting: Setting, case: Case, epochs: int, folder: Path) -> Measured:
    """Later runs, each with a seed and a learning rate of its own, in turn with bare imports."""
    found = Measured()
    for number in range(1, WARM_RUNS + 1):
        found.imports_s.append(import_seconds(sys.executable, REPOSITORY))
        sets = (f"seed={number}", f"optimizer.lr={float(case.lr) * (1 + number)}")
        run = _train(setting, case, epochs, WARM, folder, "cache", f"warm-{number}", *sets)
        found.runs.append(run)
    return found


def _evaluations(setting: Setting, case: Case, folder: Path) -> Measured:
    """Evaluation with every feature computed, in three ways.

    ``finetune eval`` counts decoding and features, but in a process that has just begun: on the
    first run's checkpoint it keeps them, on that of a run which keeps none it computes them batch
    by batch. The epochs after the first of that run are what stands beside the plain loop's.
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
    """In the repository, so that this checkout runs and none that happens to be installed."""
    return run_process(command, folder=REPOSITORY, environment={"XDG_CACHE_HOME": str(cache)})
