"""Compare the time of `finetune tune` with 64 trials with that of one ordinary run.

    python benchmarks/tune.py [--rounds 3] [--json tune.json]

Both train MobileNetV2's head on ants_bees, as whole processes with an empty cache: `train` for 25
epochs, and `tune`, which ends with a training of its own. Photos and weights are those of
docs/benchmarks.md, in ../shared or the folder that FINETUNE_SHARED names. recipes.py measures the
accuracy of `tune`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import origin, run_process

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
EPOCHS, TRIALS = 25, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision")) | {"rounds": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            document["rounds"].append(_round(Path(name)))
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    ratio = statistics.median(one["ratio"] for one in document["rounds"])
    print(f"tune takes {ratio:.2f} times one run ({options.rounds} rounds)")


def _round(folder: Path) -> dict[str, Any]:
    config = {
        "model": {
            "name": "mobilenet_v2",
            "weights": str(SHARED / "weights/mobilenet_v2_imagenet.pth"),
        },
        "data": {"root": str(SHARED / "data/ants_bees")},
        "train": {"epochs": EPOCHS},
    }
    took = {}
    for verb, options in (("train", []), ("tune", ["--trials", str(TRIALS)])):
        path = folder / f"{verb}.yaml"
        path.write_text(json.dumps(config | {"output_dir": str(folder / verb)}))  # JSON is YAML
        process = run_process(
            [sys.executable, "-m", "finetune", verb, "--config", path, "--json", *options],
            folder=REPOSITORY,
            environment={"XDG_CACHE_HOME": str(folder / f"cache-{verb}")},
        )
        took[verb] = asdict(process.took)
    ratio = took["tune"]["wall_s"] / took["train"]["wall_s"]
    cpu = took["tune"]["cpu_s"] / took["train"]["cpu_s"]
    print(f"tune takes {ratio:.2f} times as long as train, {cpu:.2f} times its processor time")
    return took | {"ratio": ratio, "cpu_ratio": cpu}


if __name__ == "__main__":
    main()
