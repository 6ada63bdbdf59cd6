"""Compare the choice of `finetune next` with a random one: accuracy after labelling.

    python benchmarks/next_photos.py --json next.json [--seeds 0 1 2 3 4]

Each seed draws 475 labelled training photos of ../shared/data/cifar100 (or of the folder that
FINETUNE_SHARED names); the others are the pool. A head on MobileNetV2's features of the labelled
photos chooses 100, 300 or 1,000 photos of the pool at once; a head of both is judged on the test
photos. Seeds that are already in the JSON file are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from learning_curve import features_of
from measure import origin
from tables import markdown
from torch import Tensor

from finetune.inference.next_photos import choose_photos, margins
from finetune.tuning.learning_curve import PENALTY
from finetune.tuning.logistic_regression import Standardisation, fit_path

_LABELLED = 475
_COUNTS = (100, 300, 1_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--json", type=Path, required=True, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision")) | {"runs": []}
    if options.json.exists():
        document = json.loads(options.json.read_text())
    features, labels, paths = features_of("cifar100", options.json.parent)
    is_test = torch.tensor(["/test/" in path for path in paths])
    for seed in options.seeds:
        if any(run["seed"] == seed for run in document["runs"]):
            continue
        document["runs"].append({"seed": seed, **_compare(features, labels, is_test, seed)})
        options.json.write_text(json.dumps(document, indent=1) + "\n")
        print(document["runs"][-1], file=sys.stderr)
    print(_table(document["runs"]))


def _compare(features: Tensor, labels: Tensor, is_test: Tensor, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    train = (~is_test).nonzero()[:, 0]
    train = train[torch.randperm(len(train), generator=generator)]
    labelled, pool = train[:_LABELLED], train[_LABELLED:]
    num_classes = int(labels.max()) + 1

    def logits(known: Tensor, of: Tensor) -> Tensor:
        standardised = Standardisation.of(features[known])
        [head] = fit_path(
            standardised(features[known]),
            labels[known],
            num_classes=num_classes,
            penalties=(PENALTY,),
        )
        found: Tensor = head(standardised(features[of]))
        return found

    def accuracy(known: Tensor) -> float:
        test = is_test.nonzero()[:, 0]
        return float((logits(known, test).argmax(dim=1) == labels[test]).float().mean())

    unsure = 1 - margins(logits(labelled, pool).softmax(dim=1))
    most_unsure = unsure.argsort(descending=True)
    found: dict[str, Any] = {"before": accuracy(labelled)}
    for count in _COUNTS:
        chosen = choose_photos(
            features[pool], unsure, features[labelled], count=count, seed=seed
        ).positions
        for name, positions in (
            ("random", torch.arange(count)),
            ("most uncertain", most_unsure[:count]),
            ("next", torch.tensor(chosen)),
        ):
            found[f"{name} {count}"] = accuracy(torch.cat([labelled, pool[positions]]))
    return found


def _table(runs: list[dict[str, Any]]) -> str:
    def mean(key: str) -> float:
        return 100 * statistics.fmean(run[key] for run in runs)

    rows = []
    for count in _COUNTS:
        gains = [100 * (run[f"next {count}"] - run[f"random {count}"]) for run in runs]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        rows.append(
            [
                f"{count:,}",
                *(
                    f"{mean(f'{name} {count}'):.1f}"
                    for name in ("random", "most uncertain", "next")
                ),
                f"{statistics.fmean(gains):+.1f} ± {error:.1f}",
            ]
        )
    header = ["photos labelled", "random, %", "most uncertain, %", "`next`, %", "`next` - random"]
    return f"Before: {mean('before'):.1f} %\n\n{markdown(header, rows)}"


if __name__ == "__main__":
    main()
