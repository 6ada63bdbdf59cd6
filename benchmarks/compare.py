"""Compare `finetune` with a plain training loop and other libraries on real photos.

    python benchmarks/compare.py --peers-python PATH --json results.json

All contenders use the same photos, weights, epochs, batch size and learning rate. Whole processes
including imports are run one after the other, in rotated order in every round. Each time is
reported with accuracy and augmentation, and as a ratio, because seconds on a shared machine vary.
`finetune` starts each turn with an empty cache; its runs with a warm cache use another seed and
learning rate. docs/benchmarks.md explains the results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from cases import CASES, PLAIN, Case
from contenders import (
    REPOSITORY,
    Measured,
    Setting,
    measure_finetune,
    measure_peer,
    measure_plain,
)
from measure import ProcessError, commit, describe_machine, import_seconds, versions
from render import fragment

OUR_PACKAGES = ("torch", "torchvision", "pillow")
PEER_PACKAGES = (
    *("torch", "torchvision", "lightning", "transformers", "accelerate"),
    *("fastai", "scikit-learn", "timm"),
)
QUICK_EPOCHS = 2
_SUFFIXES = {".jpg", ".jpeg", ".png"}
Turn = Callable[[], Measured]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        _measure(options, _same_photos(options.shared.resolve() / "data/ants_bees", Path(folder)))


def _same_photos(source: Path, folder: Path) -> Path:
    """Link the photos that all contenders can read; ImageFolder ignores the GIF in the data."""
    for path in source.rglob("*"):
        if path.suffix.lower() in _SUFFIXES:
            link = folder / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return folder


def _measure(options: argparse.Namespace, photos: Path) -> None:
    weights = options.shared.resolve() / "weights/mobilenet_v2_imagenet.pth"
    setting = Setting(photos, weights, options.peers_python)
    if setting.peers_python is None:
        _say("no --peers-python: the rows of other libraries are left out")
    document = _head_of_document(setting)
    failed = False
    for name in options.case or CASES:
        case = CASES[name]
        epochs = options.epochs or (QUICK_EPOCHS if options.quick else case.epochs)
        measured = Measured()
        document["cases"][name] = record = {
            "title": case.title,
            "epochs": epochs,
            "rounds": options.rounds,
        }
        turns = _turns(setting, case, epochs)
        for number in range(options.rounds):
            start = number % len(turns)
            for contender, turn in turns[start:] + turns[:start]:
                try:
                    found = turn()
                except ProcessError as error:
                    failed = True
                    _say(f"{name}: {contender} failed and is left out: {error}")
                    continue
                measured.add(found)
                _say(_progress(name, number, options.rounds, found))
                record |= measured.as_json()
                if options.json:  # after each turn, because a long measurement may be interrupted
                    options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(fragment([document]))
    sys.exit(1 if failed else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
    parser.add_argument(
        "--shared", type=Path, default=shared, help="folder with data/ and weights/"
    )
    parser.add_argument(
        "--case", choices=CASES, action="append", help="case to measure (default: all)"
    )
    parser.add_argument("--epochs", type=int, help="number of epochs (default: see cases.py)")
    parser.add_argument(
        "--quick", action="store_true", help=f"train for {QUICK_EPOCHS} epochs only"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="number of rounds to take medians over"
    )
    parser.add_argument("--peers-python", help="Python interpreter with peers/requirements.txt")
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    return parser.parse_args()


def _head_of_document(setting: Setting) -> dict[str, Any]:
    pythons: dict[str, tuple[str, tuple[str, ...]]] = {"finetune": (sys.executable, OUR_PACKAGES)}
    if setting.peers_python:
        pythons["peers"] = (setting.peers_python, PEER_PACKAGES)
    for python, _ in pythons.values():
        import_seconds(python, REPOSITORY)  # untimed, so that torch is in the page cache for all
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(REPOSITORY),
        "machine": describe_machine(),
        "versions": {name: versions(*pair) for name, pair in pythons.items()},
        "num_images": {split: _count(setting.data / split) for split in ("train", "val")},
        "cases": {},
    }


def _count(folder: Path) -> int:
    return sum(path.suffix.lower() in _SUFFIXES for path in folder.rglob("*"))


def _turns(setting: Setting, case: Case, epochs: int) -> list[tuple[str, Turn]]:
    turns: list[tuple[str, Turn]] = [
        (PLAIN, partial(measure_plain, setting, case, epochs)),
        ("finetune", partial(measure_finetune, setting, case, epochs)),
    ]
    if setting.peers_python:
        turns += [
            (peer.name, partial(measure_peer, setting, case, epochs, peer)) for peer in case.peers
        ]
    return turns


def _progress(name: str, number: int, rounds: int, found: Measured) -> str:
    told = [f"{run.contender} {run.took.wall_s:.1f} s" for run in found.runs]
    return f"{name}, round {number + 1} of {rounds}: {'; '.join(told)}"


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
