"""Server that forks test programs from a process that has already imported torch.

Run as a program, this module is the server: it reads one request per line and answers each with one
line. It has no threads, so that a fork behaves like a newly started program.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Program:
    """A program that was started, with its output in files."""

    server: ForkServer
    pid: int
    out: Path
    err: Path

    @property
    def said(self) -> str:
        """Its stderr so far."""
        # triton misses at exit what the server has frozen, and says so.
        return self.err.read_text().partition("nanobind: leaked")[0]

    def send(self, number: int) -> None:
        """Send it a signal; it may have ended already."""
        if self.server.ask(wait=self.pid, timeout=0.0)["code"] is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 120.0) -> int:
        """Its exit code, negative for the signal that killed it."""
        code = self.server.ask(wait=self.pid, timeout=timeout)["code"]
        assert code is not None, f"still running after {timeout} s:\n{self.said}"
        return int(code)

    def left(self) -> list[int]:
        """Processes of its session that are there still."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found


class ForkServer:
    """The process that programs are forked from."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            cwd=TESTS.parent,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.ask(wait=0, timeout=0.0)  # until it has imported everything

    def ask(self, **request: Any) -> dict[str, Any]:
        """A request, and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(
        self,
        *arguments: str,
        call: str = "finetune.cli.app:main",
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """Start the command line, or another function, which finds its arguments in sys.argv."""
        self._count += 1
        out, err = (self.folder / f"{self._count}.{name}" for name in ("out", "err"))
        out.touch()
        err.touch()
        given = {
            "argv": ["finetune", *arguments],
            "call": call,
            "out": str(out),
            "err": str(err),
            "environment": dict(environment or {}),
        }
        return Program(self, self.ask(**given)["pid"], out, err)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and stderr of the command line."""
        program = self.start(*arguments)
        return program.wait(), program.said

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    import torch

    # What a program would import itself, one after the other; torch.fx imports more when it is
    # first used.
    for module in ("cli.app", "commands.train", "commands.evaluate"):
        importlib.import_module(f"finetune.{module}")
    torch.set_num_threads(1)
    config = importlib.import_module("finetune.config.schema").Config.model_validate(
        {
            "model": {"name": "shufflenet_v2_x0_5", "weights": "none"},
            "data": {"root": "unread"},
            "output_dir": "unwritten",
        }
    )
    assert (
        importlib.import_module("finetune.freezing.plan")
        .make_plan(config, 2)
        .cost.forward_trainable
    )
    gc.collect()
    gc.freeze()  # what is here already is no garbage of a fork: it would be copied to be looked at
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": _wait(request["wait"], request["timeout"], codes)}
        else:
            pid = os.fork()
            if pid == 0:
                os.environ.update(request["environment"])
                _become(request["argv"], Path(request["out"]), Path(request["err"]))
                module, _, name = request["call"].partition(":")
                getattr(importlib.import_module(module), name)()
                raise SystemExit
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(pid: int, timeout: float, codes: dict[int, int]) -> int | None:
    end = time.monotonic() + timeout
    while pid and pid not in codes:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            codes[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= end:
            return None
        else:
            time.sleep(0.002)
    return codes.get(pid)


def _become(argv: Sequence[str], out: Path, err: Path) -> None:
    """In the fork: a program of its own session, with its own input and output."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it off
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), number)
    sys.argv = list(argv)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    _serve()
