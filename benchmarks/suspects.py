"""Measure `finetune suspects` on planted errors: flipped labels and copies of training photos.

    python benchmarks/suspects.py --data DIR --weights mobilenet_v2.pth --output suspects.json

Features are computed once for each set and kept. cleanlab ranks the same probabilities, if it is
installed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from sklearn.metrics import average_precision_score
from tables import markdown

from finetune.config.schema import Config
from finetune.core.memory import peak_memory_mib
from finetune.core.reporter import SilentReporter
from finetune.data.checks.inspect_dataset import inspect_dataset
from finetune.data.checks.near_duplicates import near_pairs
from finetune.data.splits.folds import make_folds
from finetune.tuning.confident_learning import judge_labels, neighbour_shares
from finetune.tuning.frozen_features import frozen_features
from finetune.tuning.neighbours import are_leaks, directions, nearest, unlike_all, unlike_class
from finetune.tuning.out_of_fold import fitted_head

SHARES = (0.02, 0.05, 0.1)
SEEDS = (0, 1, 2)
KINDS = ("crop", "brightness", "mirror", "jpeg30")
EVERY = {"ants_bees": 1, "flowers5": 1, "cifar100": 5}
"""Classes that labels are judged of: every fifth of CIFAR-100."""
FOREIGN = 3
"""Number of photos of another set that are added at a time."""
PLANTED = 40
"""Number of training photos of which copies are planted, for each seed."""
QUIET = SilentReporter()
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Photos:
    """Features, labels and paths of the photos of a set; ``val`` begins after ``num_train``."""

    features: torch.Tensor
    labels: Labels
    paths: list[str]
    num_train: int

    @property
    def kinds(self) -> NDArray[np.str_]:
        """Kind of planted copy of each photo, empty for a photo of the set."""
        return np.array([Path(p).name.split("+")[1] if "+" in p else "" for p in self.paths])

    def own(self, every: int) -> Photos:
        """Return the photos of the set, without copies, of every n-th class."""
        keep = np.flatnonzero((self.kinds == "") & (self.labels % every == 0))
        return Photos(
            self.features[torch.from_numpy(keep)],
            self.labels[keep] // every,
            [self.paths[at] for at in keep.tolist()],
            int((keep < self.num_train).sum()),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(EVERY))
    parser.add_argument("--work", type=Path, default=Path("suspects-work"))
    parser.add_argument("--scale", type=int, help="Measure this many synthetic rows instead.")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    if given.scale:
        record: dict[str, Any] = {"scale": scale(given.scale)}
    else:
        record = {"labels": {}, "leaks": {}, "outliers": {}, "gains": {}}
        for name in given.sets:
            photos = kept_photos(name, given.data, given.weights, given.work)
            record["leaks"][name] = leaks(photos)
            others = [other for other in EVERY if other != name]
            record["outliers"][name] = {
                other: outliers(
                    photos.own(1), kept_photos(other, given.data, given.weights, given.work).own(1)
                )
                for other in others
            }
            print(name, json.dumps(record["outliers"][name]), flush=True)
            record["gains"][name] = [*gains(photos.own(EVERY[name]))]
            record["labels"][name] = []
            for run in labels(photos.own(EVERY[name])):
                record["labels"][name].append(run)
                given.output.write_text(json.dumps(record, indent=1))
            print(name, json.dumps(record["leaks"][name]), flush=True)
            print(label_table({name: record["labels"][name]}), flush=True)
    given.output.write_text(json.dumps(record, indent=1))
    if given.scale:
        print(json.dumps(record))
    else:
        print(f"{label_table(record['labels'])}\n\n{leak_table(record['leaks'])}")


def kept_photos(name: str, data: Path, weights: Path, work: Path) -> Photos:
    """Return the photos of a set with planted copies; features are computed once."""
    kept = work / f"{name}.npz"
    if not kept.exists():
        root = plant_copies(data / name, work / name)
        config = Config.model_validate(
            {
                "format": 1,
                "model": {"name": "mobilenet_v2", "weights": str(weights)},
                "recipe": "linear_probe",
                "data": {"root": str(root)},
                "output_dir": str(work / f"run-{name}"),
            }
        )
        found = frozen_features(config, QUIET)
        parts = (found.data.train, found.data.val)
        np.savez(
            kept,
            features=torch.cat([found.train, found.val]).numpy(),
            labels=np.array([label for part in parts for label in part.labels]),
            paths=np.array([str(path) for part in parts for path in part.paths]),
            num_train=len(found.train),
        )
    with np.load(kept) as read:
        return Photos(
            torch.from_numpy(read["features"]),
            read["labels"].astype(np.int64),
            read["paths"].tolist(),
            int(read["num_train"]),
        )


def plant_copies(source: Path, root: Path) -> Path:
    """Link the photos of a set into train and val, and write changed training photos into val."""
    shutil.rmtree(root, ignore_errors=True)
    is_split = (source / "train").is_dir()
    for folder in sorted((source / "train" if is_split else source).iterdir()):
        photos = _photos(folder)
        if source.name == "cifar100":
            train, val = photos[:40], _photos(source / "test" / folder.name)[:20]
        elif is_split:
            train, val = photos, _photos(source / "val" / folder.name)
        else:
            train, val = [p for at, p in enumerate(photos) if at % 5], photos[::5]
        for split, chosen in (("train", train), ("val", val)):
            place = root / split / folder.name
            place.mkdir(parents=True)
            for photo in chosen:
                (place / photo.name).symlink_to(photo.resolve())
    every = sorted((root / "train").rglob("*.*"))
    for seed in SEEDS:
        rng = random.Random(seed)
        for photo in rng.sample(every, PLANTED):
            for kind in KINDS:
                with Image.open(photo) as image:
                    changed = _changed(image.convert("RGB"), kind, rng)
                name = f"planted+{kind}+{seed}+{photo.stem}"
                suffix = ".png" if photo.suffix == ".png" and kind != "jpeg30" else ".jpg"
                quality = 30 if kind == "jpeg30" else 92  # PNG has none
                changed.save(root / "val" / photo.parent.name / (name + suffix), quality=quality)
    return root


def _photos(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))


def _changed(image: Image.Image, kind: str, rng: random.Random) -> Image.Image:
    if kind == "crop":
        share = rng.uniform(0.75, 0.9)
        width, height = (int(share * side) for side in image.size)
        left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))
    if kind == "brightness":
        return ImageEnhance.Brightness(image).enhance(rng.choice((0.6, 1.5)))
    if kind == "mirror":
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def leaks(photos: Photos) -> dict[str, Any]:
    """Return the share of the planted copies found by features, by hash and by either."""
    first = photos.num_train
    rows = directions(photos.features)
    near = nearest(rows[first:], rows[:first], reporter=QUIET)
    by_features = are_leaks(near)
    inspections = inspect_dataset(photos.paths, workers=2, fresh=False, reporter=QUIET).inspections
    hashed = np.flatnonzero(inspections.has_phash)
    by_hash = np.zeros(len(photos.paths) - first, dtype=bool)
    for one, other in hashed[near_pairs(inspections.phash[hashed]).pairs].tolist():
        if one < first <= other:
            by_hash[other - first] = True
    kinds = photos.kinds[first:]

    def found(kind: str, number: Callable[[NDArray[np.bool_]], float]) -> dict[str, float]:
        at = kinds == kind
        ways = {
            "features": by_features,
            "hash": by_hash,
            "both": by_features & by_hash,
            "either": by_features | by_hash,
        }
        return {way: number(which[at]) for way, which in ways.items()}

    planted = {kind: found(kind, lambda which: float(which.mean())) for kind in KINDS}
    own = found("", lambda which: int(which.sum()))
    return {"planted": planted, "own": own, "num_own": int((kinds == "").sum())}


def outliers(photos: Photos, foreign: Photos) -> dict[str, float]:
    """Return the share of photos of another set that are outliers, and the share of the set's own.

    Three foreign photos are added at a time, under random classes, twenty times.
    """
    shares = defaultdict(list)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        at = torch.from_numpy(rng.choice(len(foreign.paths), FOREIGN, replace=False))
        rows = directions(torch.cat([photos.features, foreign.features[at]]))
        given = np.concatenate([photos.labels, rng.choice(photos.labels, FOREIGN)])
        of_all = unlike_all(nearest(rows, rows, reporter=QUIET, but_self=True)).are_outliers
        of_class = unlike_class(rows, torch.from_numpy(given)).are_outliers
        for name, which in (("all", of_all), ("class", of_class)):
            shares[f"foreign unlike {name}"].append(float(which[-FOREIGN:].mean()))
            shares[f"own unlike {name}"].append(float(which[:-FOREIGN].mean()))
    return {name: statistics.fmean(values) for name, values in shares.items()}


def labels(photos: Photos) -> Iterator[dict[str, Any]]:
    """Yield the average precision and the recall of each ranking, for each planting."""
    num_classes = int(photos.labels.max()) + 1
    similar = most_similar(photos, num_classes)
    rows = directions(photos.features)
    near = nearest(rows, rows, reporter=QUIET, but_self=True).at.numpy()
    names = [Path(path).name for path in photos.paths]
    for seed in SEEDS:
        for share in SHARES:
            for how in ("random", "similar")[: 1 if num_classes == 2 else 2]:
                given, planted = flipped(photos.labels, share, how, similar, seed)
                folds = make_folds(given.tolist(), names, (), 5, seed=seed)
                shares = neighbour_shares(near, given, photos.paths, num_classes)
                start = time.perf_counter()
                judged = judge_labels(photos.features, given, folds, shares, reporter=QUIET)
                took = time.perf_counter() - start
                scores = {
                    "suspects": judged.quality.score,
                    "loss of a training run": loss_in_training(photos.features, given, seed),
                    **dict(cleanlab(given, judged.probabilities)),
                }
                is_listed = judged.quality.is_suspected
                yield (
                    {
                        "share": share,
                        "how": how,
                        "seed": seed,
                        "num_planted": int(planted.sum()),
                        "num_photos": len(given),
                        "num_listed": int(is_listed.sum()),
                        "precision_listed": float(planted[is_listed].mean()),
                        "recall_listed": float(is_listed[planted].mean()),
                        "suggested_right": float(
                            (judged.quality.suggested == photos.labels)[is_listed & planted].mean()
                        ),
                        "took_s": took,
                        "rankings": {
                            name: {
                                "ap": float(average_precision_score(planted, score)),
                                "recall": recall(planted, score),
                            }
                            for name, score in scores.items()
                        },
                    }
                )


def gains(photos: Photos) -> Iterator[dict[str, Any]]:
    """Yield the accuracy of a head before and after the suspected labels are corrected.

    A fifth of the photos, with correct labels, judges heads that are fitted to the others, of whose
    labels a tenth is changed. Of the labels that are listed, all are set to the correct class, as
    by a person who looks at each, or to the suggested one.
    """
    num_classes = int(photos.labels.max()) + 1
    similar = most_similar(photos, num_classes)
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(photos.labels))
        held = np.sort(order[: len(order) // 5])
        known = np.setdiff1d(order, held)
        features, truth = photos.features[torch.from_numpy(known)], photos.labels[known]
        rows = directions(features)
        near = nearest(rows, rows, reporter=QUIET, but_self=True).at.numpy()
        names = [photos.paths[at] for at in known.tolist()]
        for how in ("random", "similar")[: 1 if num_classes == 2 else 2]:
            given, planted = flipped(truth, 0.1, how, similar, seed)
            folds = make_folds(given.tolist(), names, (), 5, seed=seed)
            shares = neighbour_shares(near, given, names, num_classes)
            judged = judge_labels(features, given, folds, shares, reporter=QUIET)
            listed = judged.quality.is_suspected
            labels = {
                "correct": truth,
                "flipped": given,
                "looked_at": np.where(listed, truth, given),
                "as_suggested": np.where(listed, judged.quality.suggested, given),
            }
            yield {
                "how": how,
                "seed": seed,
                "num_listed": int(listed.sum()),
                "num_planted": int(planted.sum()),
                **{name: _accuracy(photos, known, held, one) for name, one in labels.items()},
            }


def _accuracy(photos: Photos, known: Labels, held: Labels, labels: Labels) -> float:
    """Return the accuracy on the held-out photos of a head that is fitted to these labels."""
    standardised, head = fitted_head(
        photos.features[torch.from_numpy(known)],
        torch.from_numpy(labels),
        num_classes=int(photos.labels.max()) + 1,
        penalty=0.1,
    )
    predicted = head(standardised(photos.features[torch.from_numpy(held)])).argmax(dim=1)
    return float((predicted.numpy() == photos.labels[held]).mean())


def most_similar(photos: Photos, num_classes: int) -> Labels:
    """Return the class whose mean feature is nearest to that of each class."""
    means = torch.stack(
        [photos.features[torch.from_numpy(photos.labels == c)].mean(0) for c in range(num_classes)]
    )
    rows = F.normalize(means - means.mean(dim=0), dim=1)
    found: Labels = nearest(rows, rows, reporter=QUIET, but_self=True).at[:, 0].numpy()
    return found


def flipped(
    labels: Labels, share: float, how: str, similar: Labels, seed: int
) -> tuple[Labels, NDArray[np.bool_]]:
    """Return labels of which a share is changed, and which ones are."""
    rng = np.random.default_rng(seed)
    count = round(share * len(labels))
    at = rng.choice(len(labels), count, replace=False)
    given = labels.copy()
    num_classes = len(similar)
    others = (labels[at] + rng.integers(1, num_classes, count)) % num_classes
    given[at] = similar[labels[at]] if how == "similar" else others
    return given, np.isin(np.arange(len(labels)), at)


def loss_in_training(features: torch.Tensor, labels: Labels, seed: int) -> NDArray[np.float64]:
    """Return the loss of each image after a usual training of the head on all images.

    As in the case "head" of the other benchmarks: 25 epochs of SGD, learning rate 0.01.
    """
    torch.manual_seed(seed)
    given = torch.from_numpy(labels)
    head = torch.nn.Linear(features.shape[1], int(labels.max()) + 1)
    steps = 25 * (len(labels) // 32)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(25):
        for batch in torch.randperm(len(labels))[: len(labels) // 32 * 32].reshape(-1, 32):
            optimizer.zero_grad()
            loss = F.cross_entropy(head(features[batch]), given[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found: NDArray[np.float64] = (
            F.cross_entropy(head(features), given, reduction="none").double().numpy()
        )
    return found


def cleanlab(
    labels: Labels, probabilities: NDArray[np.float64]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield cleanlab's rankings of these probabilities; none if it is not installed."""
    try:
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return
    for method in ("self_confidence", "normalized_margin"):
        yield (
            f"cleanlab, {method}",
            1 - get_label_quality_scores(labels, probabilities, method=method),
        )


def recall(planted: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Return the share of planted errors among as many of the highest scores."""
    first = np.argsort(-score, kind="stable")[: planted.sum()]
    return float(planted[first].mean())


def scale(count: int) -> dict[str, Any]:
    """Return the time of each part, and the peak memory, on synthetic rows of ten classes."""
    generator = torch.Generator().manual_seed(0)
    given = torch.arange(count) % 10
    features = torch.randn(10, 1280, generator=generator)[given] * 0.2
    features += torch.randn(count, 1280, generator=generator)
    features.clamp_min_(0)
    labels = given.numpy()
    names = [str(at) for at in range(count)]
    took: dict[str, Any] = {"count": count, "threads": torch.get_num_threads()}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start, busy = time.perf_counter(), time.process_time()
        found = call()
        took[name] = {
            "wall_s": time.perf_counter() - start,
            "cpu_s": time.process_time() - busy,
            "peak_mib": peak_memory_mib(),
        }
        print(name, took[name], flush=True)
        return found

    took["before_mib"] = peak_memory_mib()
    rows = timed("directions", lambda: directions(features))
    first = count * 4 // 5
    timed("leaks", lambda: nearest(rows[first:], rows[:first], reporter=QUIET))
    timed("outliers of classes", lambda: unlike_class(rows, given))
    near = timed("neighbours", lambda: nearest(rows, rows, reporter=QUIET, but_self=True))
    timed("outliers", lambda: unlike_all(near))
    folds = make_folds(labels.tolist(), names, (), 5, seed=0)
    shares = neighbour_shares(near.at.numpy(), labels, names, 10)
    timed("labels", lambda: judge_labels(features, labels, folds, shares, reporter=QUIET))
    return took


def label_table(record: dict[str, list[dict[str, Any]]]) -> str:
    """Return a table of the mean average precision and recall of each ranking."""
    cells: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for name, runs in record.items():
        for run in runs:
            for ranking, figures in run["rankings"].items():
                cells[ranking][f"{name}, {run['how']} {run['share']:.0%}"].append(figures)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    rows = [
        [
            column,
            *(
                f"{statistics.fmean(one['ap'] for one in cells[ranking][column]):.3f} / "
                f"{statistics.fmean(one['recall'] for one in cells[ranking][column]):.1%}"
                for ranking in cells
            ),
        ]
        for column in columns
    ]
    return markdown(["planted", *cells], rows)


def leak_table(record: dict[str, dict[str, Any]]) -> str:
    """Return a table of the share of planted copies that are found."""
    rows = [
        [name, kind, *(f"{figures[way]:.0%}" for way in ("features", "hash", "both", "either"))]
        for name, found in record.items()
        for kind, figures in found["planted"].items()
    ]
    return markdown(["photos", "copy", "features", "hash", "both", "either"], rows)


if __name__ == "__main__":
    main()
