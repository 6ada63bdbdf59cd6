"""Compare training in several processes with training in one, and measure what the exchange costs.

    python benchmarks/processes.py [--json processes.json] [--parts equal killed …]

Photos and weights are those of docs/benchmarks.md, in ../shared or the folder that FINETUNE_SHARED
names. The parts print Markdown tables, which docs/distributed.md contains:

- equal: the largest difference of any weight (relative, of those above 1) between one process and
  two or three, after a single step of 31 photos of ants_bees at 64 px, in float32 and in float64,
  and after two epochs of 85 photos (batches of 32, 32 and 21) in float64;
- metrics: accuracy on ants_bees and cifar100, in float32, in one, two and three processes;
- killed: runs of two processes under ``--nproc``, and under torchrun with ``--max-restarts``, of
  which one process is killed at a random time; each is to end with the weights of a whole run;
- speed: images per second of one process and of two, each with one core, everything training;
- exchange: seconds of an all-reduce of the gradient of a network, and its share of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
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
    "… AdamW": ["freeze.patterns=[]", "optimizer.name=adamw", "optimizer.lr=0.0005"],
}
NETWORKS = {"mobilenet_v2": 2.23, "resnet50": 25.6, "convnext_tiny": 28.6, "vit_b_16": 86.6}
"""Millions of parameters."""
LINKS = {"NVLink, 300 GB/s": 300e9, "InfiniBand, 50 GB/s": 50e9, "Ethernet, 3 GB/s": 3e9}


def main() -> None:
    if sys.argv[1:2] == ["--as-process"]:
        _as_process(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--kills", type=int, default=10, help="killed processes by each launcher")
    parser.add_argument("--json", type=Path, help="output file of all measurements")
    options = parser.parse_args()
    document = origin(("torch", "torchvision"))
    for part in options.parts:
        with tempfile.TemporaryDirectory() as name:
            document[part], table = PARTS[part](Path(name), options.kills)
        print(f"\n{part}\n\n{table}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(document, indent=1) + "\n")


def _config(folder: Path, data: Path, size: int = 96) -> Path:
    """Write a config without any choice by timing, so that all runs compute alike."""
    values = {
        "model": {
            "name": "mobilenet_v2",
            "weights": str(WEIGHTS),
            "preprocessing": {"resize": size, "crop": size},
        },
        "data": {"root": str(data), "batch_size": 32, "workers": 0},
        "freeze": {"patterns": ["*"]},
        "train": {"epochs": 2},
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
    path.write_text(json.dumps(values))
    return path


def train(
    config: Path, run: Path, size: int, *settings: str, precision: str = "float32"
) -> dict[str, Any]:
    """Train in several processes without a launcher, and return the first one's summary."""
    pairs = [word for one in (*settings, f"output_dir={run}") for word in ("--set", one)]
    command = [sys.executable, str(Path(__file__).resolve()), "--as-process", precision]
    command += ["train", "--config", str(config), "--overwrite", "--json", *pairs]
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
                command,
                cwd=REPOSITORY,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = [(*child.communicate(), child.returncode) for child in children]
    for _, said, code in ended:
        if code:
            raise ProcessError(said)
    found: dict[str, Any] = json.loads(ended[0][0])
    return found


def _as_process(precision: str, arguments: Sequence[str]) -> None:
    """Run the command line; in float64 if asked for, with everything that computes."""
    from finetune.cli.app import main as command_line

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


def _equal(folder: Path, _: int) -> tuple[Any, str]:
    """Compare one process with two and three, after one step and after two epochs."""
    few, some = folder / "few", folder / "some"
    _link_photos(few, 31)
    _link_photos(some, 85)
    rows: list[list[str]] = []
    found = {}
    for name, settings in CASES.items():
        gaps = {}
        for data, epochs, precisions in (
            (few, 1, ("float32", "float64")),
            (some, 2, ("float64",)),
        ):
            config = _config(folder, data, 64)
            more = [*settings, f"train.epochs={epochs}"]
            for precision in precisions:
                if data == few and "accumulate" in " ".join(more):
                    continue
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


def _link_photos(folder: Path, most: int) -> None:
    """Link this many photos of ants_bees to train on, and 31 to validate, of both classes."""
    for split, number in (("train", most), ("val", 31)):
        photos = sorted((SHARED / "data/ants_bees" / split).rglob("*.jpg"))
        for photo in (photos[at * len(photos) // number] for at in range(number)):
            link = folder / split / photo.parent.name / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo)


def _metrics(folder: Path, _: int) -> tuple[Any, str]:
    """Compare the accuracy of one, two and three processes in float32."""
    rows: list[list[str]] = []
    found = {}
    for data, name in (
        ("ants_bees", "block 18"),
        ("ants_bees", "everything"),
        ("cifar100", "block 18"),
    ):
        config = _config(folder, SHARED / "data" / data, 96 if data == "ants_bees" else 32)
        epochs = 4 if data == "ants_bees" else 1
        scores = []
        for size in (1, 2, 3):
            said = train(config, folder / "run", size, *CASES[name], f"train.epochs={epochs}")
            scores.append([said["last"]["top1"], said["last"]["loss"]])
        found[f"{data}, {name}"] = scores
        rows.append([data, name, *(f"{top1:.2%}, {loss:.4f}" for top1, loss in scores)])
    header = ["photos", "trains", "1 process: top-1, loss", "2 processes", "3 processes"]
    return found, markdown(header, rows)


def _killed(folder: Path, kills: int) -> tuple[Any, str]:
    """Kill a process at a random time, and compare the weights with those of a whole run."""
    config = _config(folder, SHARED / "data/ants_bees", 48)
    settings = ["freeze.patterns=[]", "train.epochs=6", "train.checkpoint_minutes=0.02"]
    train(config, folder / "whole", 2, *settings)
    words = ["train", "--config", str(config)]
    words += [word for one in settings for word in ("--set", one)]
    launchers = {
        "`finetune train --nproc 2`": ["-m", "finetune", *words, "--nproc", "2"],
        "`torchrun --max-restarts 3`": [
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *("--max-restarts=3", "-m", "finetune", *words),
        ],
    }
    rng, found = random.Random(0), {}
    rows: list[list[str]] = []
    for name, command in launchers.items():
        same = finished = restarts = 0
        for number in range(kills):
            run = folder / f"run-{len(rows)}-{number}"
            child = subprocess.Popen(
                [sys.executable, *command, "--set", f"output_dir={run}"],
                cwd=REPOSITORY,
                env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            time.sleep(rng.uniform(8.0, 16.0))
            ranks = _children(child.pid)
            if ranks:
                with suppress(ProcessLookupError):
                    os.kill(rng.choice(ranks), signal.SIGKILL)
                    restarts += 1
            try:
                _, said = child.communicate(timeout=180)
            except subprocess.TimeoutExpired:
                child.kill()
                continue
            finished += child.returncode == 0
            if child.returncode == 0:
                same += gap(folder / "whole", run) == 0
            else:
                print(said[-1500:], file=sys.stderr, flush=True)
        found[name] = {"killed": restarts, "finished": finished, "same": same}
        rows.append([name, *(str(value) for value in (kills, restarts, finished, same))])
    header = ["launcher", "runs", "killed before their end", "finished", "with identical weights"]
    return found, markdown(header, rows)


def _children(pid: int) -> list[int]:
    """Return the processes of a run that a launcher has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _speed(folder: Path, _: int) -> tuple[Any, str]:
    """Measure images per second of one process on one core, and of two on a core each."""
    config = _config(folder, SHARED / "data/ants_bees", 160)
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


def _exchange(folder: Path, _: int) -> tuple[Any, str]:
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


Part = Callable[[Path, int], tuple[Any, str]]
PARTS: dict[str, Part] = {
    "equal": _equal,
    "metrics": _metrics,
    "killed": _killed,
    "speed": _speed,
    "exchange": _exchange,
}

if __name__ == "__main__":
    main()
