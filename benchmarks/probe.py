"""Compare `recipe: linear_probe` with all defaults with scikit-learn's logistic regression.

    python benchmarks/probe.py --json probe.json [--seeds 0 1 2] [--sets flowers5 ants_bees]
    python benchmarks/probe.py --json tune.json --tune

The photo sets are parts of those in ../shared, or the folder that FINETUNE_SHARED names: 10 classes
of cifar100 with 20, 50 or 150 images each, flowers5 with 10, 50, 200 or four fifths of the photos
of a class, and half of or all of ants_bees. Each seed draws other classes and photos. Both heads
are trained on MobileNetV2's features and judged on photos that neither has seen: `train` by its
last epoch, and `LogisticRegressionCV` (10 values of C, 5 folds) on features without augmentation.
With ``--tune``, the model that `finetune tune` trains takes the place of the latter.
Runs that are already in the JSON file are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logistic import features_of
from measure import origin
from sklearn.linear_model import LogisticRegressionCV

from finetune.config.load import load_config
from finetune.core.reporter import SilentReporter
from finetune.training.prepare_stage import feature_batches_of, prepare_single_stage

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
Photos = dict[str, list[Path]]
"""Photos of each class."""
_MOST_JUDGED = 200
"""Maximum number of photos of a class of flowers5 that heads are judged on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", help="first letters of the sets' names")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="compare with `finetune tune`")
    parser.add_argument("--json", type=Path, required=True, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision", "scikit-learn")) | {"runs": []}
    if options.json.exists():
        document = json.loads(options.json.read_text())
    done = {(run["set"], run["seed"]) for run in document["runs"]}
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name
        for seed in options.seeds:
            for title, train, judged in _sets(seed):
                wanted = not options.sets or title.startswith(tuple(options.sets))
                if not wanted or (title, seed) in done:
                    continue
                root = Path(name) / f"{title} {seed}".replace(" ", "-")
                _copy(root / "train", train)
                _copy(root / "val", judged)
                run = {"set": title, "seed": seed, **_compare(root, tune=options.tune)}
                shutil.rmtree(root)
                document["runs"].append(run)
                options.json.write_text(json.dumps(document, indent=1) + "\n")
                print(run, file=sys.stderr)
    print(_table(document["runs"]))


def _sets(seed: int) -> Iterator[tuple[str, Photos, Photos]]:
    """Yield the name of each set, its training photos and the photos that heads are judged on."""
    draws = random.Random(seed)
    cifar = SHARED / "data/cifar100"
    known = _photos(cifar / "train")
    chosen = draws.sample(sorted(known), 10)
    judged = {name: photos for name, photos in _photos(cifar / "test").items() if name in chosen}
    for count in (20, 50, 150):
        train = {name: draws.sample(known[name], count) for name in chosen}
        yield f"cifar100, 10 classes of {count}", train, judged
    flowers = _photos(SHARED / "data/flowers5")
    for photos in flowers.values():
        draws.shuffle(photos)
    last = {name: photos[-_MOST_JUDGED:] for name, photos in flowers.items()}
    for count in (10, 50, 200):
        some = {name: photos[:count] for name, photos in flowers.items()}
        yield f"flowers5, {count} of a class", some, last
    most = {name: photos[: len(photos) * 4 // 5] for name, photos in flowers.items()}
    rest = {name: photos[len(photos) * 4 // 5 :] for name, photos in flowers.items()}
    yield "flowers5, four fifths", most, rest
    insects = _photos(SHARED / "data/ants_bees/train")
    for photos in insects.values():
        draws.shuffle(photos)
    half = {name: photos[: len(photos) // 2] for name, photos in insects.items()}
    yield "ants_bees, half", half, _photos(SHARED / "data/ants_bees/val")
    yield "ants_bees", insects, _photos(SHARED / "data/ants_bees/val")


def _photos(folder: Path) -> Photos:
    kinds = {".jpg", ".jpeg", ".png"}
    return {
        one.name: sorted(path for path in one.iterdir() if path.suffix.lower() in kinds)
        for one in sorted(folder.iterdir())
        if one.is_dir()
    }


def _copy(folder: Path, photos: Photos) -> None:
    for name, paths in photos.items():
        (folder / name).mkdir(parents=True)
        for path in paths:
            shutil.copy2(path, folder / name / path.name)


def _compare(root: Path, *, tune: bool) -> dict[str, Any]:
    config = root.with_suffix(".yaml")
    output = f"output_dir={root / 'run'}"
    known_by = "features.known_by=content"  # the seeds and sets share photos
    changes = [output, known_by, "recipe=linear_probe", "train.budget=null"]
    _finetune("init", str(root), "--weights", str(WEIGHTS), "--output", str(config), "--overwrite")
    asked = [word for change in changes for word in ("--set", change)]
    summary = json.loads(_finetune("train", "--config", str(config), *asked, "--json"))
    other = _tuned if tune else _logistic
    return {
        "num_train": summary["num_train"],
        "num_judged": summary["num_val"],
        "train": summary["last"]["top1"],
        "found_rates": summary["found_rates"],
        **other(config, changes),
    }


def _tuned(config: Path, changes: list[str]) -> dict[str, Any]:
    asked = [word for change in changes for word in ("--set", change)]
    output = str(config.with_suffix(".tune"))
    said = json.loads(
        _finetune(
            *("tune", "--config", str(config), *asked),
            *("--overwrite", "--output", output, "--json"),
        )
    )
    kept = ("unbiased", "unbiased_default", "keeps_default", "search_s")
    return {
        **{key: said[key] for key in kept},
        "other": said["train"]["last"]["top1"],
        "settings": said["trials"][0]["settings"],
        "baseline": said["logistic"],
    }


def _logistic(config: Path, changes: list[str]) -> dict[str, Any]:
    setup = prepare_single_stage(
        load_config(config, changes), SilentReporter(), what="the comparison"
    )
    train, judged = (
        features_of(feature_batches_of(setup, SilentReporter(), training=training), images)
        for training, images in ((True, setup.data.train), (False, setup.data.val))
    )
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fits that did not converge within max_iter
        judge = LogisticRegressionCV(Cs=10, cv=5, max_iter=1000).fit(*train)
    return {
        "other": float(judge.score(*judged)),
        "logistic_s": time.perf_counter() - start,
    }


def _finetune(*arguments: str) -> str:
    command = [sys.executable, "-m", "finetune", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    return done.stdout


def _table(runs: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the means over the seeds, and of all sets together."""
    other = "LogisticRegressionCV" if "logistic_s" in runs[0] else "`tune`"
    lines = [
        "| photo set | training photos | judged on | `train` by default, % | "
        f"{other}, % | difference, points |",
        "|---|---|---|---|---|---|",
    ]
    differences = []
    for title in dict.fromkeys(run["set"] for run in runs):
        own = [run for run in runs if run["set"] == title]
        number = sum(run["num_judged"] for run in own)
        ours, theirs = (_mean(run[key] for run in own) for key in ("train", "other"))
        differences.append(ours - theirs)
        # As if the two heads erred independently, which is wider than their true interval.
        spread = 1.96 * math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / number)
        lines.append(
            f"| {title} | {own[0]['num_train']:,} | {len(own)} times {own[0]['num_judged']:,} | "
            f"{100 * ours:.1f} | {100 * theirs:.1f} | "
            f"{100 * (ours - theirs):+.1f} ± {100 * spread:.1f} |"
        )
    lines.append(f"| all sets | | | | | {100 * _mean(differences):+.2f} |")
    return "\n".join(lines)


def _mean(values: Any) -> float:
    known = list(values)
    return float(sum(known) / len(known))


if __name__ == "__main__":
    main()
