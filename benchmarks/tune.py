"""`finetune tune` beside one ordinary run, and its probe beside scikit-learn's logistic regression.

    python benchmarks/tune.py [--rounds 3] [--sets ants_bees flowers5 cifar100] [--json tune.json]

Time: whole processes in turn on ants_bees, MobileNetV2's head, empty cache: `train` for 25 epochs,
and `tune` with 64 trials, which ends with a training of its own. Accuracy: the tuned probe of each
set, and logistic regression on the very features of its training images, with the C that does best
on the same folds (or the same validation images), fitted again on all of them. Both are scored on
the test split where there is one, else on the validation images, which took no part in choosing by
folds: the last epoch's figure, since the best epoch is chosen by them.

Photos and weights are those of docs/benchmarks.md, in ../shared or where FINETUNE_SHARED says, and
beside them data/flowers5 (no split: a seeded fifth is held out) and data/cifar100 (train, test),
which is seen at 128 px.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import warnings
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from measure import commit, describe_machine, run_process, versions

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
EPOCHS, TRIALS = 25, 64
SETS = {"ants_bees": 224, "flowers5": 224, "cifar100": 128}
STRENGTHS = [10.0**exponent for exponent in range(-4, 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the timing; 0 leaves it out")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--json", type=Path, help="file for every raw figure")
    options = parser.parse_args()
    document: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(REPOSITORY),
        "machine": describe_machine(),
        "versions": versions(sys.executable, ("torch", "torchvision", "scikit-learn")),
        "rounds": [],
        "accuracy": {},
    }
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            document["rounds"].append(_round(Path(name) / f"round{number}"))
            _save(document, options.json)
        for data in options.sets:
            document["accuracy"][data] = _accuracy(data, Path(name) / data)
            _save(document, options.json)
    if document["rounds"]:
        ratios = [one["ratio"] for one in document["rounds"]]
        print(f"tune takes {statistics.median(ratios):.2f} times one run ({len(ratios)} rounds)")


def _save(document: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n")


def _command(verb: str, data: str, folder: Path) -> list[str]:
    """A command of this checkout on a set; every file of its goes below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    size = SETS[data]
    preprocessing = "auto" if size == 224 else f"{{resize: {size}, crop: {size}}}"
    config.write_text(
        f"model: {{name: mobilenet_v2, weights: {SHARED}/weights/mobilenet_v2_imagenet.pth, "
        f"preprocessing: {preprocessing}}}\n"
        f"data: {{root: {SHARED}/data/{data}}}\n"
        f"train: {{epochs: {EPOCHS}}}\n"
        f"output_dir: {folder / 'run'}\n"
    )
    return [sys.executable, "-m", "finetune", verb, "--config", str(config), "--json"]


def _round(folder: Path) -> dict[str, Any]:
    """Both from an empty cache."""
    took = {}
    for verb, options in (("train", []), ("tune", ["--trials", str(TRIALS)])):
        own = folder / verb
        process = run_process(
            [*_command(verb, "ants_bees", own), *options],
            folder=REPOSITORY,
            environment={"XDG_CACHE_HOME": str(own / "cache")},
        )
        took[verb] = asdict(process.took)
    ratio = took["tune"]["wall_s"] / took["train"]["wall_s"]
    cpu = took["tune"]["cpu_s"] / took["train"]["cpu_s"]
    print(
        f"train {took['train']['wall_s']:.1f} s, tune {took['tune']['wall_s']:.1f} s: "
        f"{ratio:.2f} times (processor time {cpu:.2f} times)",
        flush=True,
    )
    return took | {"ratio": ratio, "cpu_ratio": cpu}


def _accuracy(data: str, folder: Path) -> dict[str, Any]:
    cache = folder / "cache"
    process = run_process(
        _command("tune", data, folder),
        folder=REPOSITORY,
        environment={"XDG_CACHE_HOME": str(cache)},
    )
    tuned = json.loads(process.stdout)
    os.environ["XDG_CACHE_HOME"] = str(cache)  # the same features, not computed again
    found = {
        "chosen_on": tuned["chosen_on"],
        "tuned": tuned["test"]["top1"] if tuned["test"] else tuned["train"]["last"]["top1"],
        "tuned_when_chosen": tuned["trials"][0]["top1"],
        "settings": tuned["trials"][0]["settings"],
        "search_s": tuned["search_s"],
        "took": asdict(process.took),
        **_logistic(folder / "config.yaml", tuned["num_folds"]),
    }
    print(
        f"{data}: tuned probe {found['tuned']:.2%} ({tuned['search_s']:.0f} s of search), logistic "
        f"regression {found['logistic']:.2%} with C {found['strength']:g}, on "
        f"{found['num_scored']:,} {found['scored_on']} images",
        flush=True,
    )
    return found


def _logistic(config_file: Path, num_folds: int) -> dict[str, Any]:
    """scikit-learn on stored features, without augmentation, with the best of several C."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from finetune.commands.preparation import prepare, source_of
    from finetune.config_file import load_config
    from finetune.data.folds import make_folds
    from finetune.data.holdout import keys_of
    from finetune.data.images import Images
    from finetune.data.sources import find_split, open_source
    from finetune.data.views import Views
    from finetune.engine import make_source
    from finetune.features import CachedFeatures
    from finetune.progress import Silent

    warnings.simplefilter("ignore")  # where a weak C has not converged after so many steps
    config = load_config(config_file)
    prepared = prepare(config, Silent())

    def plain(source: Any, images: Images) -> tuple[Any, Any]:
        assert isinstance(source, CachedFeatures)
        part = source.part(range(len(images)), batch_size=1024, training=False)
        rows = [features.flatten(1).numpy() for features, _ in part.epoch()]
        return np.concatenate(rows), np.array(images.labels)

    train = prepared.data.train
    features, labels = plain(source_of(prepared, Silent(), training=True), train)
    val = plain(source_of(prepared, Silent(), training=False), prepared.data.val)
    scored, scored_on = val, "validation"
    if "test" in open_source(config.data).splits:
        test = find_split(
            config.data, "test", class_names=train.class_names, seed=config.seed, root=None
        )
        source = make_source(
            prepared.engine,
            prepared.config,
            test,
            views=Views.of("none"),
            workers=prepared.config.data.workers,
            shuffle=False,
            what="test",
            progress=Silent(),
        )
        scored, scored_on = plain(source, test), "test"
    rounds = [((features, labels), val)]
    if num_folds:
        names = keys_of(train.paths, prepared.data.base)
        folds = make_folds(train.labels, names, train.groups, num_folds, seed=config.seed)
        rounds = [
            tuple((features[list(at)], labels[list(at)]) for at in (fold.train, fold.held_out))
            for fold in folds
        ]

    def fitted(strength: float, known: tuple[Any, Any]) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(*known)

    chosen_by = {
        strength: statistics.fmean(
            float(fitted(strength, known).score(*judge)) for known, judge in rounds
        )
        for strength in STRENGTHS
    }
    strength = max(chosen_by, key=lambda one: chosen_by[one])
    return {
        "strength": strength,
        "logistic_when_chosen": chosen_by[strength],
        "logistic": float(fitted(strength, (features, labels)).score(*scored)),
        "scored_on": scored_on,
        "num_scored": len(scored[1]),
    }


if __name__ == "__main__":
    main()
