"""Measure the limits of answers: photos marked as unlike, false alarms, and prediction sets.

    python benchmarks/limits.py RUN ... --unlike FOLDER ... [--seeds 20] [--output limits.json]

For each RUN the limits are fitted on its training photos and on half of its validation photos,
drawn for each seed; false alarms and coverage are counted on the other half. Each FOLDER holds
photos unlike the training photos of the runs, and is left out where it is the data of the run.
Beside the distance of `finetune predict` stand others: a Mahalanobis distance with a full
covariance, shrunk after Ledoit and Wolf, of the embeddings as they are or normalised; the distance
to the fifth nearest training photo; the highest probability; and the energy. Beside its prediction
sets stand adaptive ones (APS). The markdown tables go to standard output.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor
from torch.nn import functional as F

from finetune.checkpoints.checkpoint import load_checkpoint
from finetune.checkpoints.limits import Limits
from finetune.checkpoints.run_dir import checkpoint_of
from finetune.commands.predict import image_files
from finetune.core.reporter import SilentReporter
from finetune.data.sources.open import find_train_val
from finetune.inference.limits import (
    Distance,
    fit_limits,
    least_images,
    prediction_sets,
    set_threshold,
    spread_over_classes,
)
from finetune.inference.predictor import Predictor, open_predictor

COVERAGES = (0.8, 0.9, 0.95)
OURS = "finetune"
Score = Callable[[Tensor, Tensor], Tensor]
"""Unlikeness of photos from their embeddings and logits, larger for photos more unlike."""


def embedded(predictor: Predictor, paths: list[str]) -> tuple[Tensor, Tensor, list[int]]:
    """Embeddings, logits and positions of the photos that can be read."""
    blocks = list(predictor.embeddings(paths))
    at = [position for block in blocks for position in block.positions]
    return torch.cat([b.vectors for b in blocks]), torch.cat([b.logits for b in blocks]), at


def mahalanobis(rows: Tensor, labels: Tensor, *, normalise: bool) -> Score:
    """Distance with a full covariance, shrunk after Ledoit and Wolf."""

    def prepared(some: Tensor) -> np.ndarray:
        found: np.ndarray = (F.normalize(some, dim=1) if normalise else some).double().numpy()
        return found

    known, which = prepared(rows), labels.numpy()
    means = np.stack([known[which == at].mean(0) for at in np.unique(which)])
    within = known - means[np.unique(which, return_inverse=True)[1]]
    unit = within.std()  # scikit-learn's shrinkage is exact for values around 1
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(within / unit).covariance_)
    root = torch.from_numpy(np.linalg.cholesky(inverse) / unit)
    centres = torch.from_numpy(means) @ root

    def score(embeddings: Tensor, _: Tensor) -> Tensor:
        return torch.cdist(torch.from_numpy(prepared(embeddings)) @ root, centres).amin(dim=1)

    return score


def neighbours(rows: Tensor) -> Score:
    """Distance to the fifth nearest training photo (Sun et al. 2022)."""
    known = F.normalize(rows, dim=1)
    return lambda found, _: -(F.normalize(found, dim=1) @ known.T).topk(5, dim=1).values[:, -1]


def scores_of(rows: Tensor, labels: Tensor) -> dict[str, Score]:
    """The scores beside ours."""
    return {
        "Mahalanobis, full": mahalanobis(rows, labels, normalise=False),
        "Mahalanobis, full, normalised": mahalanobis(rows, labels, normalise=True),
        "fifth neighbour": neighbours(rows),
        "highest probability": lambda _, logits: -logits.softmax(dim=1).amax(dim=1),
        "energy": lambda _, logits: -logits.logsumexp(dim=1),
    }


def limit_of(scores: Tensor, rate: float) -> float:
    """The conformal limit of scores."""
    rank = int(np.ceil(round((len(scores) + 1) * (1 - rate), 9)))
    return float(scores.sort().values[rank - 1]) if rank <= len(scores) else float("inf")


def adaptive(shares: Tensor) -> Tensor:
    """Scores of APS (Romano et al. 2020) without its random part: the sum up to each class."""
    order = shares.argsort(dim=1, descending=True)
    sums = shares.gather(1, order).cumsum(dim=1)
    return torch.empty_like(shares).scatter_(1, order, sums)


def sets_of(
    shares: Tensor, labels: Tensor, limits: Limits, test: Tensor, half: Tensor
) -> dict[str, Any]:
    """Coverage and mean size on the test half, of our sets and of adaptive ones."""
    found = {}
    for coverage in COVERAGES:
        if len(half) < least_images(coverage):
            continue
        ours = prediction_sets(shares[test], set_threshold(limits, coverage))
        aps = adaptive(shares)
        limit = limit_of(aps[half].gather(1, labels[half, None])[:, 0], 1 - coverage)
        theirs = aps[test] <= limit + 1e-6
        theirs |= shares[test] == shares[test].amax(dim=1, keepdim=True)
        found[f"{coverage:g}"] = {
            name: (
                float(sets.gather(1, labels[test, None]).float().mean()),
                float(sets.sum(dim=1).float().mean()),
            )
            for name, sets in (("least ambiguous", ours), ("adaptive", theirs))
        }
    return found


def measure(run: str, folders: list[str], seeds: int) -> dict[str, Any]:
    """All figures of one run."""
    path = checkpoint_of(run)
    _, metadata = load_checkpoint(path)
    config = metadata.config
    data = find_train_val(config.data, seed=config.seed, class_names=metadata.class_names)
    predictor = open_predictor(run, keeps=True)
    some = data.train.subset(spread_over_classes(data.train.labels, len(metadata.class_names)))
    start = time.perf_counter()
    rows, _, at = embedded(predictor, list(map(str, some.paths)))
    labels = torch.tensor(some.subset(at).labels)
    embeddings, logits, at = embedded(predictor, list(map(str, data.val.paths)))
    of_val = torch.tensor(data.val.subset(at).labels)
    embed_s = time.perf_counter() - start
    shares = logits.softmax(dim=1)
    start = time.perf_counter()
    limits = fit_limits(rows, labels, embeddings, shares, of_val)
    fit_s = time.perf_counter() - start
    own = Path(config.data.root).resolve()
    others = {}
    for folder in folders:
        if own not in (Path(folder).resolve(), *Path(folder).resolve().parents):
            files = list(image_files([folder], SilentReporter()))
            others[Path(folder).name] = embedded(predictor, files[:: max(1, len(files) // 500)])
    asked = {"false alarms": (embeddings, logits), **{k: v[:2] for k, v in others.items()}}
    scores = {
        name: {what: score(*found) for what, found in asked.items()}
        for name, score in scores_of(rows, labels).items()
    }
    flagged: dict[str, dict[str, list[float]]] = {}
    sets: list[dict[str, Any]] = []
    for seed in range(seeds):
        order = torch.randperm(len(of_val), generator=torch.Generator().manual_seed(seed))
        half, test = order[: len(order) // 2], order[len(order) // 2 :]
        halved = fit_limits(rows, labels, embeddings[half], shares[half], of_val[half])
        distance = Distance(halved)
        ours = {what: distance(found) for what, (found, _) in asked.items()}
        for name, found in {OURS: ours, **scores}.items():
            calibrated = found["false alarms"][half]
            limit = 1.0 if name == OURS else limit_of(calibrated, halved.record.rate)
            for what, values in found.items():
                counted = values[test] if what == "false alarms" else values
                counts = flagged.setdefault(name, {}).setdefault(what, [])
                counts.append(float((counted > limit).float().mean()))
        sets.append(sets_of(shares, of_val, halved, test, half))
    return {
        "run": run,
        "training_images": limits.record.training_images,
        "validation_images": limits.record.images,
        "unlike_images": {name: len(found[2]) for name, found in others.items()},
        "kib": sum(tensor.nbytes for tensor in limits.tensors.values()) / 1024,
        "embed_s": embed_s,
        "fit_s": fit_s,
        "top1": float((logits.argmax(1) == of_val).float().mean()),
        "flagged": {
            name: {what: (float(np.mean(v)), float(np.std(v))) for what, v in counts.items()}
            for name, counts in flagged.items()
        },
        "sets": {
            coverage: {
                name: [float(np.mean([one[coverage][name][at] for one in sets])) for at in (0, 1)]
                for name in ("least ambiguous", "adaptive")
            }
            for coverage in sets[0]
        },
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """Tables of the marks and of the sets."""
    lines = []
    for result in results:
        names = list(result["flagged"][OURS])
        lines += [
            f"`{Path(result['run']).name}`: {result['training_images']:,} training photos, "
            f"{result['validation_images']:,} validation photos, {result['kib']:.0f} KiB\n",
            f"| distance | {' | '.join(names)} |",
            f"|---|{'---|' * len(names)}",
        ]
        for name, counts in result["flagged"].items():
            cells = [f"{mean:.1%}" for mean, _ in counts.values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "| run | top-1 | coverage asked | covered | mean size | APS covered | APS mean size |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for result in results:
        for coverage, found in result["sets"].items():
            ours, theirs = found["least ambiguous"], found["adaptive"]
            lines.append(
                f"| {Path(result['run']).name} | {result['top1']:.1%} | {float(coverage):.0%} | "
                f"{ours[0]:.1%} | {ours[1]:.2f} | {theirs[0]:.1%} | {theirs[1]:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--unlike", nargs="+", default=[])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    results = [measure(run, arguments.unlike, arguments.seeds) for run in arguments.runs]
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
