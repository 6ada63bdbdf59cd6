"""Compare projections of `finetune learning-curve` with the accuracy of twice the photos.

    python benchmarks/learning_curve.py --json curve.json [--draws 10] [--sets flowers5 ants_bees]

The photo sets are those in ../shared, or the folder that FINETUNE_SHARED names. Each draw divides
all photos of a set at random into validation photos (30 %), and two halves of as many training
photos (of cifar100 at most 3,325 each, 35 a class). The learning curve is measured on the first
half, and its projection compared with the accuracy of the head of both halves. The features are
those of `finetune embed` with MobileNetV2's ImageNet weights, computed once, and kept beside the
JSON file. Draws that are already in the JSON file are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import origin
from tables import markdown
from torch import Tensor

from finetune.core.reporter import SilentReporter
from finetune.tuning.learning_curve import PENALTY, fit_curve, measure_errors, nested_order
from finetune.tuning.logistic_regression import Standardisation, fit_path

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
SETS = ("ants_bees", "flowers5", "cifar100")
_MOST = {"cifar100": 6_650}
"""Maximum number of training photos of both halves."""
_VALIDATION = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision")) | {"runs": []}
    if options.json.exists():
        document = json.loads(options.json.read_text())
    done = {(run["set"], run["draw"]) for run in document["runs"]}
    for title in options.sets:
        features, labels, _ = features_of(title, options.json.parent)
        for draw in range(options.draws):
            if (title, draw) in done:
                continue
            run = {"set": title, "draw": draw, **_compare(title, features, labels, draw)}
            document["runs"].append(run)
            options.json.write_text(json.dumps(document, indent=1) + "\n")
            print(run, file=sys.stderr)
    print(_table(document["runs"]))


def features_of(title: str, folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Return the features ``(N, D)``, class indices ``(N,)`` and paths of all photos of a set."""
    path = folder / f"{title}.npz"
    if not path.exists():
        with tempfile.TemporaryDirectory() as name:
            config = Path(name) / "config.yaml"
            config.write_text(
                f"model: {{name: mobilenet_v2, weights: {WEIGHTS}}}\n"
                f"data: {{root: {SHARED / 'data' / title}}}\n"
                f"freeze: {{patterns: ['*']}}\noutput_dir: {name}/run\n"
            )
            command = [sys.executable, "-m", "finetune", "embed", "--config", str(config)]
            command += [str(SHARED / "data" / title), "--output", str(path)]
            cache = os.environ | {"XDG_CACHE_HOME": name}
            subprocess.run(command, cwd=REPOSITORY, check=True, env=cache)
    with np.load(path, allow_pickle=False) as file:
        known = file["label"] != ""
        labels = np.unique(file["label"][known], return_inverse=True)[1]
        features = torch.from_numpy(file["embedding"][known])
        return features, torch.from_numpy(labels), file["path"][known].tolist()


def _compare(title: str, features: Tensor, labels: Tensor, draw: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(draw)
    order = torch.randperm(len(labels), generator=generator)
    count = round(_VALIDATION * len(labels))
    val, train = order[:count], order[count:][: _MOST.get(title)]
    # Stratified, so that the halves have the same mixture of classes.
    train = train[nested_order(labels[train], (), seed=draw)]
    half = train[: len(train) // 2]
    num_classes = int(labels.max()) + 1
    start = time.perf_counter()
    errors = measure_errors(
        features[half],
        labels[half],
        features[val],
        labels[val],
        num_classes=num_classes,
        groups=(),
        val_groups=(),
        seed=draw,
        reporter=SilentReporter(),
    )
    fit = fit_curve(errors, seed=draw)
    elapsed_s = time.perf_counter() - start
    standardised = Standardisation.of(features[train])
    [head] = fit_path(
        standardised(features[train]),
        labels[train],
        num_classes=num_classes,
        penalties=(PENALTY,),
    )
    right = head(standardised(features[val])).argmax(dim=1) == labels[val]
    error = 1 - float(right.float().mean())
    gain = fit.points[-1].value - error
    by_class = [
        _inside(projected, 1 - float(right[labels[val] == label].float().mean()))
        for label, _, projected, _ in fit.classes
    ]
    return {
        "num_train": len(half),
        "num_val": len(val),
        "now": 1 - fit.points[-1].value,
        "projected": 1 - fit.projected.value,
        "low": 1 - fit.projected.high,
        "high": 1 - fit.projected.low,
        "measured": 1 - error,
        "inside": _inside(fit.projected, error),
        "gain": [fit.gain.value, fit.gain.low, fit.gain.high],
        "measured_gain": gain,
        "gain_inside": _inside(fit.gain, gain),
        "classes_inside": sum(by_class) / len(by_class),
        "elapsed_s": elapsed_s,
    }


def _inside(estimate: Any, value: float) -> bool:
    return bool(estimate.low - 1e-6 <= value <= estimate.high + 1e-6)


def _table(runs: list[dict[str, Any]]) -> str:
    rows = []
    for title in dict.fromkeys(run["set"] for run in runs):
        own = [run for run in runs if run["set"] == title]

        def mean(key: str, of: list[dict[str, Any]] = own) -> float:
            return 100 * statistics.fmean(run[key] for run in of)

        differences = [run["projected"] - run["measured"] for run in own]
        error = 100 * (sum(value**2 for value in differences) / len(own)) ** 0.5
        half = sum(run["gain"][2] - run["gain"][1] for run in own) / len(own) / 2
        rows.append(
            [
                title,
                f"{own[0]['num_train']:,}",
                f"{own[0]['num_val']:,}",
                f"{mean('now'):.1f}",
                f"{mean('projected'):.1f} ± {(mean('high') - mean('low')) / 2:.1f}",
                f"{mean('measured'):.1f}",
                f"{error:.1f}",
                f"{sum(run['inside'] for run in own)} of {len(own)}",
                f"{sum(run['gain_inside'] for run in own)} of {len(own)} (± {100 * half:.1f})",
            ]
        )
    header = [
        "photo set",
        "training photos",
        "validation photos",
        "accuracy, %",
        "projection to twice, %",
        "measured, %",
        "difference (root mean square)",
        "inside the interval",
        "gain inside its interval",
    ]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
