"""Compare peak memory of an evaluation with that of a forward pass with gradients enabled.

    python benchmarks/evaluation_memory.py [--model mobilenet_v2] [--batch-size 32] [--batches 3]

The floor is the minimum that an evaluation needs: weights, one batch, and the largest pair of
activations (input and output of one module). Each variant runs in its own process; the measured
value is the increase of the peak resident set size since before the network was built. The losses
of both variants must agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
WAYS = ("evaluate", "gradients")


def measure(way: str, name: str, batch_size: int, batches: int) -> dict[str, float]:
    """Measure one variant; call it in a new process, because the peak never decreases."""
    import torch
    from torch import Tensor, nn
    from torchvision import models

    from finetune.core.memory import peak_memory_mib
    from finetune.training.evaluate import evaluate

    torch.manual_seed(0)
    base = peak_memory_mib() or 0
    model = models.get_model(name).eval()
    data = [
        ((torch.rand(batch_size, 3, 224, 224),), torch.zeros(batch_size, dtype=torch.int64))
        for _ in range(batches)
    ]
    largest_pair = 0

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal largest_pair
        if not list(module.children()) and isinstance(output, Tensor):
            pair = args[0].nbytes + output.nbytes
            largest_pair = max(largest_pair, pair)

    handles = [module.register_forward_hook(record) for module in model.modules()]
    if way == "evaluate":
        loss = evaluate(model, data, num_classes=1000).loss
    else:
        total = 0.0
        for (images,), labels in data:
            total += float(nn.functional.cross_entropy(model(images), labels, reduction="sum"))
        loss = total / (batch_size * batches)
    for handle in handles:
        handle.remove()
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    inputs = sum(images.nbytes for (images,), _ in data)
    return {
        "peak_mib": (peak_memory_mib() or 0) - base,
        "floor_mib": (weights + inputs + largest_pair) / 2**20,
        "loss": loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        figures = measure(arguments.way, arguments.model, arguments.batch_size, arguments.batches)
        print(json.dumps(figures))
        return
    found = {way: _in_process(way, arguments) for way in WAYS}
    assert abs(found["evaluate"]["loss"] - found["gradients"]["loss"]) < 1e-5
    floor = found["evaluate"]["floor_mib"]
    print(f"{arguments.model}, batch of {arguments.batch_size}: floor {floor:.0f} MiB")
    for way in WAYS:
        peak = found[way]["peak_mib"]
        print(f"  {way:<10} {peak:6.0f} MiB, {peak / floor:.2f} times the floor")


def _in_process(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [
        *(sys.executable, __file__, "--way", way, "--model", arguments.model),
        *("--batch-size", str(arguments.batch_size), "--batches", str(arguments.batches)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    main()
