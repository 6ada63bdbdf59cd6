"""Measure what `finetune init` and `train --budget` reach in a given time.

    python benchmarks/ladder.py --json ladder.json [--budgets 30s 3m 15m] [--sets flowers5 cifar100]

Each run uses MobileNetV2, the config that `init` writes, and an empty cache, so that features are
computed and compute formats are timed within the budget. A rung of the ladder is chosen on
validation photos that `train` holds out; the chosen model is judged on others: a fifth of flowers5
drawn by the seed, the test split of cifar100, and the val split of ants_bees. Runs that are already
in the JSON file are not repeated. The last line of each set compares what twice a budget was
predicted to reach with what the next budget reached.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import origin
from recipes import SHARED, WEIGHTS, run_finetune
from tables import markdown

SETS = ("ants_bees", "flowers5", "cifar100")
_JUDGED = 5
"""One of this many photos of flowers5 is judged."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", choices=SETS, default=["flowers5", "cifar100"])
    parser.add_argument("--budgets", nargs="*", default=["30s", "3m", "15m"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True, help="output file of all measurements")
    options = parser.parse_args()
    document: dict[str, Any] = {"runs": []}
    if options.json.exists():
        document = json.loads(options.json.read_text())
    document |= origin(("torch", "torchvision"))
    done = {(run["set"], run["budget"], run["seed"]) for run in document["runs"]}
    for data in options.sets:
        for budget in options.budgets:
            if (data, budget, options.seed) in done:
                continue
            with tempfile.TemporaryDirectory() as name:
                run = _run(data, budget, options.seed, Path(name))
            document["runs"].append(run)
            options.json.write_text(json.dumps(document, indent=1) + "\n")
            print(f"{data}, {budget}: {run['judged']:.2%}", file=sys.stderr, flush=True)
    print(_table(document["runs"]))


def _run(data: str, budget: str, seed: int, folder: Path) -> dict[str, Any]:
    photos = folder / "photos"
    _link(data, seed, photos)
    config = folder / "config.yaml"
    output = f"output_dir={folder / 'run'}"
    run_finetune(folder, "init", photos, "--weights", WEIGHTS, "--output", config)
    trained, took = run_finetune(
        folder,
        "train",
        "--config",
        config,
        "--set",
        output,
        "--budget",
        budget,
        "--set",
        f"seed={seed}",
    )
    judged, _ = run_finetune(folder, "eval", folder / "run", "--split", "test")
    first = trained["rungs"][0]
    probe, _ = run_finetune(folder, "eval", first["run_dir"], "--split", "test")
    return {
        "set": data,
        "budget": budget,
        "seed": seed,
        "judged": judged["top1"],
        "interval": judged["intervals"]["top1"],
        "judged_probe": probe["top1"],
        "num_judged": judged["num_images"],
        "rungs": trained["rungs"],
        "chosen": trained["chosen"],
        "doubled": trained["doubled"],
        "note": trained["note"],
        "elapsed_s": trained["elapsed_s"],
        **took,
    }


def _link(data: str, seed: int, photos: Path) -> None:
    """Link the photos of a set into the folders train and test."""
    root = (SHARED / "data" / data).resolve()
    if data == "flowers5":
        draws = random.Random(seed)
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            paths = sorted(folder.iterdir())
            draws.shuffle(paths)
            for number, path in enumerate(paths):
                split = "test" if number % _JUDGED == 0 else "train"
                (photos / split / folder.name).mkdir(parents=True, exist_ok=True)
                (photos / split / folder.name / path.name).symlink_to(path)
        return
    judged = "val" if data == "ants_bees" else "test"
    photos.mkdir()
    (photos / "train").symlink_to(root / "train")
    (photos / "test").symlink_to(root / judged)


def _table(runs: list[dict[str, Any]]) -> str:
    """Return a Markdown table of all runs."""
    header = [
        *("photo set", "budget", "used, s", "rungs: val top-1, %", "kept"),
        *("judged, %", "the head alone, %", "twice the budget: val top-1 predicted, %"),
    ]
    rows = []
    for run in runs:
        rungs = ", ".join(
            f"{rung['what']} {100 * rung['val']['top1']:.1f} at {rung['ended_s']:.0f} s"
            for rung in run["rungs"]
        )
        half = 100 * (run["interval"]["high"] - run["interval"]["low"]) / 2
        doubled = run["doubled"]
        rows.append(
            [
                run["set"],
                run["budget"],
                f"{run['elapsed_s']:.0f}",
                rungs,
                run["rungs"][run["chosen"] - 1]["what"],
                f"{100 * run['judged']:.1f} ± {half:.1f}",
                f"{100 * run['judged_probe']:.1f}",
                f"{100 * doubled['top1']:.1f}" if doubled else "-",
            ]
        )
    return markdown(header, rows)


if __name__ == "__main__":
    main()
