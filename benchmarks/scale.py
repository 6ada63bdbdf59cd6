"""Measure time and memory of `finetune` as a function of the number of images.

    python benchmarks/scale.py [--sizes 1000 10000 100000] [--json scale.json]

Synthetic images are written to class folders of a temporary folder, and the head of the bundled
backbone is trained: each image is decoded, passes the frozen prefix and the feature cache, and is
used in three epochs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from measure import commit, describe_machine, import_seconds, run_process, versions
from PIL import Image
from tables import scale_table

REPOSITORY = Path(__file__).resolve().parent.parent
NUM_CLASSES = 8
EPOCHS = 3
PIXELS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="folder for images and features; default: temp")
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    options = parser.parse_args()
    import_seconds(sys.executable, REPOSITORY)  # untimed, as in compare.py
    runs: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "commit": commit(REPOSITORY),
        "machine": describe_machine(),
        "versions": {"finetune": versions(sys.executable, ("torch", "torchvision", "pillow"))},
        "scale": {"epochs": EPOCHS, "runs": runs},
    }
    for size in sorted(options.sizes):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            runs.append(_measure(size, Path(name)))
        if options.json:
            options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(scale_table(document["scale"]))


def _measure(size: int, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    draw(folder / "images", size)
    sys.stderr.write(f"{size:,} images drawn in {time.perf_counter() - start:.0f} s\n")
    command = [sys.executable, "-m", "finetune", "train", "--json"]
    command += ["--config", "configs/quickstart.yaml"]
    told = {
        "data.root": folder / "images",
        "train.epochs": EPOCHS,
        "output_dir": folder / "run",
        "features.dir": folder / "features",
    }
    for key, value in told.items():
        command += ["--set", f"{key}={value}"]
    process = run_process(
        command, folder=REPOSITORY, environment={"XDG_CACHE_HOME": str(folder / "cache")}
    )
    summary = json.loads(process.stdout)
    sys.stderr.write(f"{size:,} images: {process.took.wall_s:.1f} s\n")
    counts = {key: summary[key] for key in ("num_train", "num_val")}
    return {
        "num_images": size,
        **counts,
        "top1": summary["val"]["top1"],
        "took": asdict(process.took),
    }


def draw(folder: Path, count: int) -> None:
    """Write images of smooth noise, with a different hue for each class.

    They are as costly to decode as a small photo; quality 90 gives about 2 KB per image.
    """
    draws = random.Random(0)
    for name in range(NUM_CLASSES):
        (folder / f"class_{name}").mkdir(parents=True)
    hues = [bytes(draws.randrange(256) for _ in range(3)) for _ in range(NUM_CLASSES)]
    for index in range(count):
        label = index % NUM_CLASSES
        noise = Image.frombytes("RGB", (12, 12), draws.randbytes(12 * 12 * 3))
        hue = Image.frombytes("RGB", (1, 1), hues[label]).resize(noise.size)
        picture = Image.blend(noise, hue, 0.4).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        picture.save(folder / f"class_{label}" / f"{index:06}.jpg", quality=90)


if __name__ == "__main__":
    main()
