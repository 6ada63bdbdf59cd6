"""``finetune train --nproc N``: several processes on this machine, started by torch's launcher.

The processes find each other through the loopback interface alone: torch.distributed has neither
login nor encryption. torchrun starts the same processes on several machines (docs/distributed.md).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from finetune.core import cores
from finetune.core.errors import FinetuneError
from finetune.core.reporter import Reporter
from finetune.core.text import plural
from finetune.distributed.group import KILLED

_MOST_RESTARTS = 3
_LOOPBACK = "127.0.0.1"


def launch(arguments: Sequence[str], processes: int, reporter: Reporter) -> int:
    """Run ``finetune train`` in several processes, and return its exit code.

    Processes that were killed are started again up to three times, and resume the run. A new
    launcher starts them each time, since torch's own restart keeps addresses of killed processes.

    Args:
        arguments: Arguments of ``finetune train``, without ``--nproc``.

    Raises:
        FinetuneError: a process was killed again after each restart.
    """
    available = cores.available_cores()
    if processes > available:
        reporter.warn(
            f"--nproc {processes}: this machine has {plural(available, 'core')}, so that the "
            "processes will wait for each other"
        )
    logging.disable()  # torch's launcher would report failures with tracebacks of its own
    os.environ.setdefault("OMP_NUM_THREADS", str(max(available // processes, 1)))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    name = f"finetune-{uuid.uuid4()}"
    os.environ["TORCHELASTIC_RUN_ID"] = name
    for restart in range(_MOST_RESTARTS + 1):
        os.environ["FINETUNE_RESTART_COUNT"] = str(restart)
        code = _run(arguments, processes, name)
        if code >= 0:
            return code
        if restart < _MOST_RESTARTS:
            reporter.warn(
                f"a process was killed by signal {-code}: restarting all processes, which resume "
                "from the last checkpoint"
            )
    raise FinetuneError(
        f"a process was killed by signal {-code}, for the {_MOST_RESTARTS + 1}th time",
        kind="distributed.killed",
        source="train",
        to_do="signal 9 often means that memory ran out: use fewer processes, a smaller "
        "data.batch_size, or freeze more",
    )


def _run(arguments: Sequence[str], processes: int, name: str) -> int:
    """Run all processes to their end; the code is negative if a signal killed one of them."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=name,
        rdzv_backend="c10d",
        rdzv_endpoint=f"{_LOOPBACK}:0",
        local_addr=_LOOPBACK,
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "finetune", "train", *arguments)
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        killed = {code for code in codes if code < 0} - {-signal.SIGTERM, -signal.SIGINT}
        by_signal = {128 + signal.SIGTERM, 128 + signal.SIGINT}
        reported = {code for code in codes if code > 0} - by_signal - {KILLED}
        if reported:
            return min(reported)
        return min(killed, default=128 - KILLED if KILLED in codes else 128 + signal.SIGTERM)
    except SignalException as received:
        return 128 + int(received.sigval)
    return 0
