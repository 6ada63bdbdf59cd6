"""Several processes of one run, forked from a server, without torch's launcher."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from helpers.fork_server import ForkServer, Program

FLOAT64 = "helpers.ranks:in_float64"
"""Function that trains in float64, where runs differ by rounding of the order of 1e-16."""


def start_ranks(
    server: ForkServer, size: int, *arguments: str, call: str = "finetune.cli.app:main"
) -> list[Program]:
    """Start the command line in several processes, which join each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        server.start(
            *arguments,
            call=call,
            environment={
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "GLOO_SOCKET_IFNAME": "lo",
            },
        )
        for rank in range(size)
    ]


def run_ranks(
    server: ForkServer, size: int, *arguments: str, call: str = "finetune.cli.app:main"
) -> list[Program]:
    """Run the command line in several processes to its end; all must succeed."""
    programs = (
        start_ranks(server, size, *arguments, call=call)
        if size > 1
        else [server.start(*arguments, call=call)]
    )
    for program in programs:
        code = program.wait()
        assert code == 0, program.said
    return programs


def gap(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    """The largest difference of an element of two sets of weights."""
    assert one.keys() == two.keys()
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def wait_for(condition: Callable[[], Any], timeout: float = 60.0) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "never became true"
        time.sleep(0.01)


def in_float64() -> None:
    """The command line, with weights, features and sums in float64, in many small buckets."""
    import torch

    from finetune.cli.app import main
    from finetune.distributed import gradient_sum
    from finetune.features.compute_format import ComputeFormat

    gradient_sum.BUCKET_BYTES = 2**17
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    ComputeFormat.dtype = torch.float64  # type: ignore[assignment, misc]
    sys.argv[0] = "finetune"
    main()


def short_of_memory() -> None:
    """`in_float64`, where the second process runs out of memory in its third backward pass."""
    import os

    import torch

    from finetune.training.shared_step import SharedStep

    loss, calls, hooks = SharedStep._loss, [], []

    def fail(_: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def failing(step: SharedStep, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        parameters = step._parameters()
        if os.environ["RANK"] == "1" and len(calls) == 3:
            hooks.append(parameters[len(parameters) // 2].register_hook(fail))
        elif len(calls) > 3 and hooks:
            hooks.pop().remove()
        return loss(step, *arguments)

    SharedStep._loss = failing  # type: ignore[method-assign]
    in_float64()


def other_weights() -> None:
    """The command line, where the second process has another frozen weight."""
    import os

    from torch import nn

    from finetune.cli.app import main
    from finetune.training import prepare_stage

    load = prepare_stage.load_pretrained

    def changed(model: nn.Module, spec: Any) -> Any:
        if os.environ["RANK"] == "1":
            next(model.parameters()).data.add_(1)
        return load(model, spec)

    prepare_stage.load_pretrained = changed
    main()
