"""Every recipe on three sets of photos: accuracy, what trains, processor time relative to `full`.

    python benchmarks/recipes.py --json recipes.json [--seeds 0 1 2] [--sets ants_bees flowers5]

MobileNetV2, `finetune`'s command line with every rate left to `auto`, each run from an empty cache,
all recipes of a set for the same number of epochs; the tuned probe is `finetune tune` with its
defaults, beside scikit-learn's logistic regression on the same features, with the C that does best
on the same folds. The first seed has the plain loop of docs/benchmarks.md beside it, with the same
photos, epochs and learning rates, computed in bfloat16, so that it ends.

What is stated is the last epoch on photos that took no part in any choice: ants_bees its val split,
flowers5 a fifth, held out by the seed, cifar100 its test split (at 96 px; a fifth of its train
split, held out by the seed, is what `tune` chooses by). Processor time says what a run costs even
beside other work. Runs that the JSON file holds already are not repeated. `recipe_table.py` writes
the tables into docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from logistic import logistic_regression
from measure import commit, describe_machine, run_process, versions

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
RECIPES = ("linear_probe", "last_block", "norm_only", "head_then_all", "full")
TUNED, PLAIN = "tuned_probe", "plain"


@dataclass(frozen=True)
class PhotoSet:
    """Photos, and how long they are trained on.

    Attributes:
        size: Pixels a side that the network sees.
        scored: The split whose figure is stated.
        beside: Recipes with a plain loop beside them: it takes many times as long.
    """

    size: int
    epochs: int
    scored: str
    beside: tuple[str, ...]


SETS = {
    "ants_bees": PhotoSet(224, 10, "val", ("linear_probe", "last_block", "norm_only", "full")),
    "flowers5": PhotoSet(224, 4, "val", ("linear_probe", "full")),
    "cifar100": PhotoSet(96, 3, "test", ("linear_probe", "full")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="*", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, required=True, help="file for every raw figure")
    options = parser.parse_args()
    document: dict[str, Any] = {"runs": {}}
    if options.json.exists():
        document = json.loads(options.json.read_text())
    document |= {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(REPOSITORY),
        "machine": describe_machine(),
        "versions": versions(sys.executable, ("torch", "torchvision", "scikit-learn")),
    }
    for key, run in _runs(options.sets, options.seeds):
        if key not in document["runs"]:
            with tempfile.TemporaryDirectory() as name:
                found = run(Path(name))
            document["runs"][key] = found
            options.json.write_text(json.dumps(document, indent=1) + "\n")
            print(f"{key}: {found['top1']:.2%}, {found['cpu_s']:.0f} s of processor", flush=True)


def _runs(
    sets: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, Callable[[Path], dict[str, Any]]]]:
    """All of a seed before the next: a first table stands early; the plain loops last."""
    runs: list[tuple[str, Callable[[Path], dict[str, Any]]]] = []
    for seed in seeds:
        for data in sets:
            for word in RECIPES:
                runs.append((f"{data}/{word}/{seed}", _trained(data, word, seed)))
            runs.append((f"{data}/{TUNED}/{seed}", _tuned(data, seed)))
    for data in sets if seeds else ():
        for word in SETS[data].beside:
            runs.append((f"{data}/{PLAIN} {word}/{seeds[0]}", _plain(data, word, seeds[0])))
    return runs


def _config(data: str, seed: int, folder: Path, **sections: object) -> Path:
    """A config whose every file goes below a folder; JSON is YAML."""
    size = SETS[data].size
    path = folder / "config.yaml"
    model: dict[str, object] = {"name": "mobilenet_v2", "weights": str(WEIGHTS)}
    if size != 224:
        model["preprocessing"] = {"resize": size, "crop": size}
    config = {
        "model": model,
        "data": {"root": str(SHARED / "data" / data)},
        "output_dir": str(folder / "run"),
        "seed": seed,
    }
    path.write_text(json.dumps(config | sections))
    return path


def _finetune(folder: Path, *words: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a command of this checkout says, and what it took."""
    process = run_process(
        [sys.executable, "-m", "finetune", *words, "--json"],
        folder=REPOSITORY,
        environment={"XDG_CACHE_HOME": str(folder / "cache")},
    )
    return json.loads(process.stdout), asdict(process.took)


def _trained(data: str, word: str, seed: int) -> Callable[[Path], dict[str, Any]]:
    def run(folder: Path) -> dict[str, Any]:
        config = _config(
            data,
            seed,
            folder,
            recipe=word,
            train={"epochs": SETS[data].epochs},
            optimizer={"lr": "auto", "weight_decay": "auto"},
            schedule={"warmup_epochs": "auto"},
        )
        said, took = _finetune(folder, "train", "--config", config)
        return {
            "top1": _scored(data, folder, said),
            "trains": said["trainable_parameters"],
            **took,
        }

    return run


def _tuned(data: str, seed: int) -> Callable[[Path], dict[str, Any]]:
    def run(folder: Path) -> dict[str, Any]:
        config = _config(data, seed, folder)
        said, took = _finetune(folder, "tune", "--config", config)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # the same features, kept
        return {
            "top1": _scored(data, folder, said["train"]),
            "trains": said["train"]["trainable_parameters"],
            "when_chosen": said["trials"][0]["top1"],
            "chosen_on": said["chosen_on"],
            "settings": said["trials"][0]["settings"],
            "search_s": said["search_s"],
            "logistic": logistic_regression(config, said["num_folds"], SETS[data].scored),
            **took,
        }

    return run


def _scored(data: str, folder: Path, trained: dict[str, Any]) -> float:
    """Of the last epoch: the best one was chosen by the very photos that are stated."""
    split = SETS[data].scored
    if split == "val":
        return float(trained["last"]["top1"])
    said, _ = _finetune(folder, "eval", "--checkpoint", folder / "run/last.pt", "--split", split)
    return float(said["top1"])


def _plain(data: str, word: str, seed: int) -> Callable[[Path], dict[str, Any]]:
    """The same photos as class folders, the same rates, and the globs that the recipe thaws."""

    def run(folder: Path) -> dict[str, Any]:
        from finetune.commands.settling import settle
        from finetune.config_file import load_config
        from finetune.data.sources import find_split
        from finetune.progress import Silent

        config = load_config(
            _config(
                data,
                seed,
                folder,
                recipe=word,
                train={"epochs": SETS[data].epochs},
                optimizer={"lr": "auto"},
            )
        )
        settled = settle(config, Silent())
        stage, plan = settled.stages[0], settled.plans[0]
        images = {"train": settled.data.train, "val": settled.data.val}
        if SETS[data].scored != "val":
            names = settled.data.train.class_names
            images["val"] = find_split(
                config.data, SETS[data].scored, class_names=names, seed=seed, root=None
            )
        for split, found in images.items():
            for number, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
                link = folder / "photos" / split / found.class_names[label]
                link.mkdir(parents=True, exist_ok=True)
                (link / f"{number}{path.suffix}").symlink_to(path.resolve())
        thawed = [name for name, _ in plan.skeleton.named_parameters() if name not in plan.held]
        command: list[str | Path] = [sys.executable, BENCHMARKS / "peers/plain_loop.py"]
        command += ["--data", folder / "photos", "--weights", WEIGHTS, "--bfloat16"]
        command += ["--epochs", str(SETS[data].epochs), "--lr", str(stage.optimizer.lr)]
        command += ["--size", str(SETS[data].size), "--seed", str(seed)]
        process = run_process([*command, "--train", *thawed], folder=folder)
        said = json.loads(process.stdout)
        return {
            "top1": said["epochs"][-1]["top1"],
            "trains": sum(p.numel() for p in plan.skeleton.parameters() if p.requires_grad),
            **asdict(process.took),
        }

    return run


if __name__ == "__main__":
    main()
