"""Measure this project beside the plain transfer-learning loop, in one run, on real photos.

    python benchmarks/compare.py [--shared ../shared] [--epochs 25] [--case head]

Same photos, weights, epochs and batch size; whole processes, imports included, one after the other.
Accuracy and augmentation stand beside every time. The table says ratios: seconds on a shared
machine mean little. `finetune` starts each case with an empty cache; the second run of `head` finds
it warm, with another seed and learning rate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CASES = {"head": [], "last_block": ["features.18.*"], "everything": ["*"]}
LEARNING_RATES = {"head": "0.01", "last_block": "0.005", "everything": "0.002"}


@dataclass(frozen=True)
class Measured:
    """One process.

    Attributes:
        epoch_s: Of the epochs after the first, training and evaluation.
    """

    name: str
    augmentation: str
    whole_s: float
    epoch_s: float
    best: float
    last: float
    peak_mib: float


def run(command: list[str], **environment: str) -> tuple[str, float, float]:
    """Standard output, seconds, and the peak memory of the largest process in MiB."""
    start = time.perf_counter()
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env=os.environ | environment,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return done.stdout, seconds, peak


def plain(shared: Path, case: str, epochs: int) -> Measured:
    command = [
        *(sys.executable, "benchmarks/plain_loop.py", "--epochs", str(epochs)),
        *("--data", str(shared / "data/ants_bees")),
        *("--weights", str(shared / "weights/mobilenet_v2_imagenet.pth")),
        *("--lr", LEARNING_RATES[case]),
        *("--train", *CASES[case]),
    ]
    output, seconds, peak = run(command)
    records = json.loads(output)
    rest = records[1:] or records
    return Measured(
        "plain loop",
        "crop_flip",
        seconds,
        sum(r["train_s"] + r["eval_s"] for r in rest) / len(rest),
        max(r["top1"] for r in records),
        records[-1]["top1"],
        peak,
    )


def ours(shared: Path, case: str, epochs: int, cache: str, label: str, *sets: str) -> Measured:
    config = {"head": "linear_probe", "last_block": "last_block", "everything": "everything"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "finetune", "train", "--json"),
            *("--config", f"configs/mobilenet_v2_{config[case]}.yaml"),
            *("--set", f"data.root={shared / 'data/ants_bees'}"),
            *("--set", f"model.weights={shared / 'weights/mobilenet_v2_imagenet.pth'}"),
            *("--set", f"train.epochs={epochs}", "--set", f"output_dir={folder}/run"),
            *(part for text in sets for part in ("--set", text)),
        ]
        output, seconds, peak = run(command, XDG_CACHE_HOME=cache)
        summary = json.loads(output)
        lines = Path(folder, "run", "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        policy = Path(folder, "run", "config.yaml").read_text().split("policy: ")[1].split()[0]
    rest = records[1:] or records
    epoch_s = sum(r["elapsed_s"] + r["eval_s"] for r in rest) / len(rest)
    best, last = summary["val"]["top1"], summary["last"]["top1"]
    return Measured(label, policy, seconds, epoch_s, best, last, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=REPOSITORY.parent / "shared")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--case", choices=CASES, action="append")
    arguments = parser.parse_args()
    shared = arguments.shared.resolve()
    for case in arguments.case or CASES:
        with tempfile.TemporaryDirectory() as cache:
            rows = [ours(shared, case, arguments.epochs, cache, "finetune, empty cache")]
            if case == "head":
                sets = ("optimizer.lr=0.02", "seed=1")
                label = "finetune, warm cache"
                rows.append(ours(shared, case, arguments.epochs, cache, label, *sets))
            # Last: the peak of all children so far is theirs only if it is the highest.
            rows.append(plain(shared, case, arguments.epochs))
        show(case, arguments.epochs, rows)


def show(case: str, epochs: int, rows: list[Measured]) -> None:
    reference = rows[-1]
    print(f"\n{case}, {epochs} epochs")
    print("| | augmentation | best | last | whole process | an epoch after the first | peak |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.name} | {row.augmentation} | {row.best:.1%} | {row.last:.1%} "
            f"| {row.whole_s:.1f} s, ratio {reference.whole_s / row.whole_s:.1f} "
            f"| {row.epoch_s:.2f} s, ratio {reference.epoch_s / row.epoch_s:.1f} "
            f"| {row.peak_mib:,.0f} MiB |"
        )


if __name__ == "__main__":
    main()
