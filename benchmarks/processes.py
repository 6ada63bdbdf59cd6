"""Compare training in several processes with training in one, and measure what the exchange costs.

    python benchmarks/processes.py [--json processes.json] [--parts equal killed …]

Photos and weights are those of docs/benchmarks.md, in ../shared or the folder that FINETUNE_SHARED
names. The parts print Markdown tables, which docs/distributed.md contains:

- equal: the largest difference of any weight (relative, of those above 1) between one process and
  two or three, after a single step of 31 photos of ants_bees at 64 px, in float32 and in float64,
  and after two epochs of 85 photos (batches of 32, 32 and 21) in float64;
- metrics: accuracy on ants_bees and cifar100, in float32, in one, two and three processes;
- speed: images per second of one process and of two, each with one core, everything training;
- overlap: images per second of two processes that exchange the gradients of ResNet-50 in buckets
  during the backward pass, and all at once behind it;
- exchange: seconds of an all-reduce of the gradient of a network, and its share of a step.

`process_faults.py` measures what happens when processes fail.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measure import ProcessError, origin
from tables import markdown

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("FINETUNE_SHARED", REPOSITORY.parent / "shared"))
WEIGHTS = SHARED / "weights/mobilenet_v2_imagenet.pth"
FLOAT32 = ("--float32",)
CASES: dict[str, list[str]] = {
    "the head, on new crops": ["augment.policy=crop_flip"],
    "block 18": ["freeze.patterns=['*', '!features.18.*']"],
    "blocks 17 and 18": ["freeze.patterns=['*', '!features.17.*', '!features.18.*']"],
    "everything": ["freeze.patterns=[]"],
    "… accumulating 2 batches": ["freeze.patterns=[]", "train.accumulate=2"],
    "… clipped at 0.1": ["freeze.patterns=[]", "train.clip_norm=0.1"],
    "… EMA of 0.9": ["freeze.patterns=[]", "train.ema=0.9"],
    "… mixup and cutmix": ["freeze.patterns=[]", "augment.mixup=0.2", "augment.cutmix=1.0"],
    "… balanced draws": ["freeze.patterns=[]", "data.balance=sampler"],
    "… after a head, as a second stage": [],
    "LoRA adapters of swin_t": [
        "model.name=swin_t",
        "model.weights=none",
        "freeze.patterns=['*']",
        "adapt={lora: {rank: 4, targets: ['*.mlp.*']}}",
    ],
    "everything, AdamW": ["freeze.patterns=[]", "optimizer.name=adamw", "optimizer.lr=0.0005"],
}
STAGES = "[{epochs: 1, freeze: {patterns: ['*']}}, {epochs: 1, freeze: {patterns: []}}]"
NETWORKS = {"mobilenet_v2": 2.23, "resnet50": 25.6, "convnext_tiny": 28.6, "vit_b_16": 86.6}
"""Millions of parameters."""
LINKS = {"NVLink, 300 GB/s": 300e9, "InfiniBand, 50 GB/s": 50e9, "Ethernet, 3 GB/s": 3e9}


def main() -> None:
    if sys.argv[1:2] == ["--as-process"]:
        _as_process(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision"))
    for part in options.parts:
        with tempfile.TemporaryDirectory() as name:
            document[part], table = PARTS[part](Path(name))
        print(f"\n{part}\n\n{table}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=1) + "\n")


def write_config(folder: Path, data: Path, size: int = 96, *, stages: str = "") -> Path:
    """Write a config without any choice by timing, so that all runs compute alike.

    Args:
        stages: Stages of the training, in place of the patterns and the epochs.
    """
    values: dict[str, Any] = {
        "model": {
            "name": "mobilenet_v2",
            "weights": str(WEIGHTS),
            "preprocessing": {"resize": size, "crop": size},
        },
        "data": {"root": str(data), "batch_size": 32, "workers": 0},
        "augment": {"policy": "flip"},
        "optimizer": {"name": "sgd", "lr": 0.005},
        "schedule": {"name": "cosine", "warmup_epochs": 0},
        "features": {"cache": "off"},
        "runtime": {
            "device": "cpu",
            "precision": "float32",
            "memory_format": "contiguous",
            "live_precision": "float32",
            "live_memory_format": "contiguous",
            "compile": "off",
        },
    }
    path = folder / "c.yaml"
    if stages:
        path.write_text(f"{json.dumps(values)[:-1]}, stages: {stages}}}")
    else:
        values |= {"freeze": {"patterns": ["*"]}, "train": {"epochs": 2}}
        path.write_text(json.dumps(values))
    return path


def train(
    config: Path, run: Path, size: int, *settings: str, precision: str = "float32"
) -> dict[str, Any]:
    """Train in several processes without a launcher, and return the first one's summary."""
    children = start(config, run, size, "--overwrite", *pairs(settings), precision=precision)
    ended = [(*child.communicate(), child.returncode) for child in children]
    for _, said, code in ended:
        if code:
            raise ProcessError(said)
    found: dict[str, Any] = json.loads(ended[0][0])
    return found


def pairs(settings: Sequence[str]) -> list[str]:
    """Return the words of the command line for some settings."""
    return [word for one in settings for word in ("--set", one)]


def start(
    config: Path,
    run: Path,
    size: int,
    *words: str,
    precision: str = "float32",
    of_each: Sequence[Sequence[str]] = (),
) -> list[subprocess.Popen[str]]:
    """Start to train in several processes, without a launcher.

    Args:
        of_each: More words of the command line for each process.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--as-process", precision]
    command += ["train", "--config", str(config), "--json", "--set", f"output_dir={run}", *words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = os.cpu_count() or 1
    children = []
    for rank in range(size):
        ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        several = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            **{name: str(value) for name, value in ranks.items()},
        }
        environment = os.environ | {
            "OMP_NUM_THREADS": str(max(cores // size, 1)),
            "GLOO_SOCKET_IFNAME": "lo",
            "XDG_CACHE_HOME": str(run.parent / "cache"),
            **(several if size > 1 else {}),
        }
        children.append(
            subprocess.Popen(
                [*command, *(of_each[rank] if of_each else ())],
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return children


def _as_process(precision: str, arguments: Sequence[str]) -> None:
    """Run the command line; in float64, or with a single exchange a step, if asked for."""
    from finetune.cli.app import main as command_line

    if precision == "one bucket":
        from finetune.distributed import gradient_sum

        gradient_sum.BUCKET_BYTES = 2**60
    if precision == "float64":
        import torch

        from finetune.features.compute_format import ComputeFormat

        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
        ComputeFormat.dtype = torch.float64  # type: ignore[assignment]
    sys.argv = ["finetune", *arguments]
    command_line()


def gap(one: Path, two: Path) -> float:
    """Return the largest difference of an element of two runs, relative to it if it is above 1."""
    from finetune.checkpoints.checkpoint import load_checkpoint

    left, right = (load_checkpoint(run / "last.pt")[0] for run in (one, two))
    gaps = []
    for name, tensor in left.items():
        exact = tensor.double()
        apart = (exact - right[name].double()).abs() / exact.abs().clamp(min=1.0)
        gaps.append(float(apart.max()))
    return max(gaps)


def _equal(folder: Path) -> tuple[Any, str]:
    """Compare one process with two and three, after one step and after two epochs."""
    few, some = folder / "few", folder / "some"
    link_photos(few, 31)
    link_photos(some, 85)
    rows: list[list[str]] = []
    found = {}
    for name, settings in CASES.items():
        gaps = {}
        for data, epochs, precisions in (
            (few, 1, ("float32", "float64")),
            (some, 2, ("float64",)),
        ):
            stages = STAGES if "stage" in name else ""
            config = write_config(folder, data, 64, stages=stages)
            more = settings if stages else [*settings, f"train.epochs={epochs}"]
            for precision in precisions:
                if data == few and (stages or "accumulate" in " ".join(more)):
                    continue  # a single step has nothing to accumulate, or no second stage
                for size in (1, 2, 3):
                    train(config, folder / f"run-{size}", size, *more, precision=precision)
                gaps[f"{data.name} {precision}"] = [
                    gap(folder / "run-1", folder / f"run-{size}") for size in (2, 3)
                ]
        found[name] = gaps
        cells = [gaps.get(key) for key in ("few float32", "few float64", "some float64")]
        rows.append([name, *("-" if cell is None else f"{max(cell):.0e}" for cell in cells)])
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["trains", "one step, float32", "one step, float64", "two epochs, float64"]
    return found, markdown(header, rows)


def link_photos(folder: Path, most: int) -> None:
    """Link this many photos of ants_bees to train on, and 31 to validate, of both classes."""
    for split, number in (("train", most), ("val", 31)):
        photos = sorted((SHARED / "data/ants_bees" / split).rglob("*.jpg"))
        for photo in (photos[at * len(photos) // number] for at in range(number)):
            link = folder / split / photo.parent.name / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo)


def _metrics(folder: Path) -> tuple[Any, str]:
    """Compare the accuracy of one, two and three processes in float32."""
    rows: list[list[str]] = []
    found = {}
    for data, name in (
        ("ants_bees", "block 18"),
        ("ants_bees", "everything"),
        ("cifar100", "block 18"),
    ):
        config = write_config(folder, SHARED / "data" / data, 96 if data == "ants_bees" else 32)
        epochs = 4 if data == "ants_bees" else 1
        scores = []
        for size in (1, 2, 3):
            said = train(config, folder / "run", size, *CASES[name], f"train.epochs={epochs}")
            scores.append([said["last"]["top1"], said["last"]["loss"]])
        found[f"{data}, {name}"] = scores
        rows.append([data, name, *(f"{top1:.2%}, {loss:.4f}" for top1, loss in scores)])
    header = ["photos", "trains", "1 process: top-1, loss", "2 processes", "3 processes"]
    return found, markdown(header, rows)


def _speed(folder: Path) -> tuple[Any, str]:
    """Measure images per second of one process on one core, and of two on a core each."""
    config = write_config(folder, SHARED / "data/ants_bees", 160)
    settings = ["freeze.patterns=[]", "train.epochs=3", "runtime.live_memory_format=channels_last"]
    rows, found = [], {}
    for name, size, more in (
        ("one, with one core", 1, []),
        ("two, norms together", 2, ["runtime.norms=together"]),
        ("two, norms apart", 2, ["runtime.norms=apart"]),
    ):
        seconds = []
        before = os.sched_getaffinity(0)
        if size == 1:
            os.sched_setaffinity(0, {min(before)})
        try:
            for _round in range(2):
                train(config, folder / "run", size, *settings, *more)
                lines = (folder / "run/metrics.jsonl").read_text().splitlines()
                seconds += [json.loads(line)["elapsed_s"] for line in lines[1:]]
        finally:
            os.sched_setaffinity(0, before)
        found[name] = 245 / statistics.median(seconds)
        rows.append([name, f"{found[name] / found['one, with one core']:.2f}"])
    return found, markdown(["processes", "images per second, one process is 1"], rows)


def _overlap(folder: Path) -> tuple[Any, str]:
    """Measure two processes with gradients exchanged behind the backward pass, and during it."""
    config = write_config(folder, SHARED / "data/ants_bees", 64)
    settings = ["model.name=resnet50", "model.weights=none", "freeze.patterns=[]"]
    settings += ["train.epochs=4", "runtime.norms=apart", "train.checkpoint_minutes=60"]
    seconds: dict[str, list[float]] = {"one bucket": [], "float32": []}
    for _ in range(2):
        for how, found in seconds.items():
            train(config, folder / "run", 2, *settings, precision=how)
            lines = (folder / "run/metrics.jsonl").read_text().splitlines()
            found += [json.loads(line)["elapsed_s"] for line in lines[1:]]
    apart, during = (statistics.median(found) for found in seconds.values())
    rows = [["behind the backward pass", "1.00"], ["during it", f"{apart / during:.2f}"]]
    header = ["gradients are exchanged", "images per second"]
    return seconds, markdown(header, rows)


def _exchange(folder: Path) -> tuple[Any, str]:
    """Time the all-reduce of gradients between two processes, and compute it for many GPUs."""
    script = """
import json, os, statistics, sys, time, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
found = {}
for name, millions in json.loads(sys.argv[1]).items():
    flat = torch.randn(int(float(millions) * 1e6))
    times = []
    for _ in range(8):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(flat)
        times.append(time.perf_counter() - start)
    found[name] = statistics.median(times)
if dist.get_rank() == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""
    program = folder / "exchange.py"
    program.write_text(script)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(program), json.dumps(NETWORKS)),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    rows = []
    for name, millions in NETWORKS.items():
        cells = []
        for bandwidth in LINKS.values():
            ring = [2 * (gpus - 1) / gpus * millions * 4e6 / bandwidth for gpus in (8, 64, 512)]
            cells.append(", ".join(f"{1e3 * seconds:.2g}" for seconds in ring))
        rows.append([name, f"{millions:.1f}", f"{1e3 * found[name]:.0f}", *cells])
    links = [f"{link}: 8, 64, 512 GPUs, ms" for link in LINKS]
    header = ["network", "parameters, million", "2 processes, gloo, ms", *links]
    return found, markdown(header, rows)


Part = Callable[[Path], tuple[Any, str]]
PARTS: dict[str, Part] = {
    "equal": _equal,
    "metrics": _metrics,
    "speed": _speed,
    "overlap": _overlap,
    "exchange": _exchange,
}

if __name__ == "__main__":
    main()
