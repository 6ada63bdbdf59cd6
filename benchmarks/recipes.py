"""Measure accuracy, trainable parameters and CPU time of every recipe on three photo sets.

    python benchmarks/recipes.py --json recipes.json [--seeds 0 1 2] [--sets ants_bees flowers5]

Each run uses MobileNetV2, the command line of `finetune` with all rates set to `auto`, and an empty
cache; all recipes of a photo set train for the same number of epochs. The tuned probe is
`finetune tune` with its defaults, compared with scikit-learn's logistic regression on the same
features, with C selected on the same folds. For the first seed, the plain loop of
docs/benchmarks.md is run with the same photos, epochs and learning rates, in bfloat16 to save time.

The reported accuracy is that of the last epoch on photos that were not used in any selection: the
val split of ants_bees, a fifth of flowers5 held out by the seed, and the test split of cifar100 (at
96 px; `tune` selects on a fifth of its train split, held out by the seed). CPU time is meaningful
even if other programs are running. Runs that are already in the JSON file are not repeated.
`recipe_table.py` writes the tables into docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logistic import logistic_regression
from measure import origin, run_process

BENCHMARKS = Path(__file__).resolve().parent
REPOSITORY = BENCHMARKS.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
RECIPES = ("linear_probe", "last_block", "bias_only", "norm_only", "head_then_all", "full")
TUNED, PLAIN = "tuned_probe", "plain"


@dataclass(frozen=True)
class PhotoSet:
    """A photo set and its training settings.

    Attributes:
        size: Side of the network's input, in pixels.
        epochs: Number of training epochs.
        scored: Split whose accuracy is reported.
        beside: Recipes that the plain loop, which is much slower, is run for too.
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
    parser.add_argument("--json", type=Path, required=True, help="output file of all measurements")
    options = parser.parse_args()
    document: dict[str, Any] = {"runs": {}}
    if options.json.exists():
        document = json.loads(options.json.read_text())
    document |= origin(("torch", "torchvision", "scikit-learn"))
    for key, run in _runs(options.sets, options.seeds):
        if key not in document["runs"]:
            with tempfile.TemporaryDirectory() as name:
                found = run(Path(name))
            document["runs"][key] = found
            options.json.write_text(json.dumps(document, indent=1) + "\n")
            print(
                f"{key}: {found['top1']:.2%}, {found['cpu_s']:.0f} s of processor time", flush=True
            )


def _runs(
    sets: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, Callable[[Path], dict[str, Any]]]]:
    """List the runs, seed by seed so that a first table is available early; plain loops last."""
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
    """Write a config (as JSON, which is valid YAML) whose outputs are below a folder."""
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


def run_finetune(folder: Path, *words: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a command of this checkout, and return its JSON output and its cost."""
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
        said, took = run_finetune(folder, "train", "--config", config)
        return {
            "top1": _scored(data, folder, said),
            "trains": said["trainable_parameters"],
            **took,
        }

    return run


def _tuned(data: str, seed: int) -> Callable[[Path], dict[str, Any]]:
    def run(folder: Path) -> dict[str, Any]:
        config = _config(data, seed, folder)
        said, took = run_finetune(folder, "tune", "--config", config)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # reuses the features of `tune`
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
    """Return top-1 of the last epoch; the best epoch was selected on the scored photos."""
    split = SETS[data].scored
    if split == "val":
        return float(trained["last"]["top1"])
    said, _ = run_finetune(folder, "eval", "--checkpoint", folder / "run/last.pt", "--split", split)
    return float(said["top1"])


def _plain(data: str, word: str, seed: int) -> Callable[[Path], dict[str, Any]]:
    """Run the plain loop with the same photos, learning rate and trainable parameters."""

    def run(folder: Path) -> dict[str, Any]:
        from finetune.config.load import load_config
        from finetune.core.reporter import SilentReporter
        from finetune.data.sources.open import find_split
        from finetune.training.setup import set_up_run

        config = load_config(
            _config(
                data,
                seed,
                folder,
                recipe=word,
                train={"epochs": SETS[data].epochs},
                optimizer={"name": "sgd"},  # the plain loop's
            )
        )
        run_setup = set_up_run(config, SilentReporter())
        stage, plan = run_setup.stages[0], run_setup.plans[0]
        images = {"train": run_setup.data.train, "val": run_setup.data.val}
        if SETS[data].scored != "val":
            names = run_setup.data.train.class_names
            images["val"] = find_split(
                config.data, SETS[data].scored, class_names=names, seed=seed, root=None
            )
        for split, found in images.items():
            for number, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)):
                link = folder / "photos" / split / found.class_names[label]
                link.mkdir(parents=True, exist_ok=True)
                (link / f"{number}{path.suffix}").symlink_to(path.resolve())
        thawed = [name for name, _ in plan.skeleton.named_parameters() if name not in plan.frozen]
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
