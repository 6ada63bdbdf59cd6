"""Compare `finetune predict` with a plain prediction loop, on the same checkpoint and photos.

    python benchmarks/predict.py RUN PHOTOS [--rounds 3]

RUN is a finished run of mobilenet_v2 at 224 px, PHOTOS a folder. The plain loop is a typical one: a
Dataset over the files, a DataLoader with two workers, float32, `torch.no_grad`. Both are run as
whole processes, alternately; images per second are measured from the first image to the last
prediction, without imports. Labels are compared unless the two highest probabilities are close.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
CLOSE = 0.1


def plain(checkpoint: str, folder: str) -> None:
    """Run the plain loop, and print images per second and the prediction of each file."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import models, transforms

    class Photos(Dataset[torch.Tensor]):
        def __init__(self) -> None:
            suffixes = {".jpg", ".jpeg", ".png"}
            files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes)
            self.files = sorted(map(str, files))
            self.transform = transforms.Compose(
                [
                    transforms.Resize(256),
                    transforms.CenterCrop(224),
                    transforms.ToTensor(),
                    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                ]
            )

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, at: int) -> torch.Tensor:
            pixels: torch.Tensor = self.transform(Image.open(self.files[at]).convert("RGB"))
            return pixels

    content = torch.load(checkpoint, weights_only=True)
    names = json.loads(content["metadata"])["class_names"]
    model = models.mobilenet_v2(num_classes=len(names))
    model.load_state_dict(content["model"])
    model.eval()
    photos = Photos()
    start = time.perf_counter()
    shares = []
    with torch.no_grad():
        for images in DataLoader(photos, batch_size=32, num_workers=2):
            shares.append(torch.softmax(model(images), dim=1))
    elapsed_s = time.perf_counter() - start
    best = torch.cat(shares).topk(2)
    answers = {
        file: (names[at[0]], values[0] - values[1])
        for file, at, values in zip(
            photos.files, best.indices.tolist(), best.values.tolist(), strict=True
        )
    }
    print(json.dumps({"images_per_s": len(photos) / elapsed_s, "answers": answers}))


def run(command: list[str]) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("photos")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.run, arguments.photos)
        return
    photos = str(Path(arguments.photos).resolve())
    checkpoint = str(Path(arguments.run, "best.pt").resolve())
    speed, whole = [], []
    for _ in range(arguments.rounds):
        theirs, their_s = run([sys.executable, __file__, "--plain", checkpoint, photos])
        ours, our_s = run(
            [sys.executable, "-m", "finetune", "predict", checkpoint, photos, "--json"]
        )
        speed.append(ours["images_per_s"] / theirs["images_per_s"])
        whole.append(their_s / our_s)
        print(
            f"plain {theirs['images_per_s']:.0f} images/s, finetune {ours['images_per_s']:.0f} "
            f"images/s: {speed[-1]:.2f} times; whole process {whole[-1]:.2f} times",
            flush=True,
        )
    labels = {row["path"]: row["label"] for row in ours["predictions"]}
    clear = {f: label for f, (label, margin) in theirs["answers"].items() if margin > CLOSE}
    same = sum(labels[file] == label for file, label in clear.items())
    print(f"the same label for {same:,} of {len(clear):,} photos that are not close")
    print(
        f"median: {statistics.median(speed):.1f} times the images a second, "
        f"{statistics.median(whole):.1f} times as fast as a process"
    )


if __name__ == "__main__":
    main()
