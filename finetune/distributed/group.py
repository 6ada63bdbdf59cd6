"""Group of the processes of one run: sums, decisions of the first process, and failures.

Texts and numbers cross as JSON, never as pickles. A process that fails notes its exit code in the
group's store before it ends; the others find their connections closed, read the code, and end with
it without a message of their own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from torch import Tensor

from finetune.core import cores
from finetune.core.errors import FinetuneError, Interrupted
from finetune.distributed.ranks import ALONE, Ranks

if TYPE_CHECKING:  # absent in builds of torch without torch.distributed
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

_FAILED = "failed"
_RENDEZVOUS = timedelta(minutes=10)
_LONGEST_WAIT = timedelta(days=7)
"""Others may wait for the first process for long, while it trains a head alone; a process that
ends closes its connections, which the others notice at once."""
_OF_CONNECTIONS = ("onnect", "ocket", "peer", "NCCL", "roken pipe", "imed out")
"""Parts of the messages of gloo and NCCL about a process that has ended."""
_REASON_ROUNDS, _REASON_ROUND_S = 20, 0.05
_WATCH_S, _GRACE_S = 0.5, 4.0
_PR_SET_PDEATHSIG = 1


KILLED = 137
"""Exit code of a process that ends because another one was killed or lost."""


class OtherProcessError(FinetuneError):
    """Another process of the run failed and has reported why, or received a signal to stop."""

    def __init__(self, exit_code: int) -> None:
        is_signal = exit_code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
        what = "received a signal to stop" if is_signal else "failed"
        super().__init__(f"another process of this run {what}", kind="distributed.other_failed")
        self.exit_code = exit_code
        self.is_signal = is_signal


class Group:
    """Processes of one run.

    Every method that exchanges something must be called by all of them, in the same order, and
    never within the work of `first` or a block of `first_before_others`. In a group of one process,
    nothing is exchanged.
    """

    def __init__(self, ranks: Ranks = ALONE, store: Store | None = None) -> None:
        self.ranks = ranks
        self._store = store

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides, writes and prints."""
        return self.ranks.is_first

    @property
    def are_several(self) -> bool:
        """Whether there is more than one process."""
        return self.ranks.are_several

    def add_up(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.are_several:
            with self._noticing():
                dist.all_reduce(tensor)
        return tensor

    def start_adding_up(self, tensor: Tensor) -> Callable[[], None]:
        """Start to sum a tensor over all processes, in place; return what waits for the end."""
        with self._noticing():
            work = dist.all_reduce(tensor, async_op=True)

        def wait() -> None:
            with self._noticing():
                work.wait()

        return wait

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.add_up(torch.zeros(1))

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process, by rank; values are what JSON can contain."""
        if not self.are_several:
            return [value]
        text = _encoded(value)
        sizes = torch.zeros(self.ranks.size, dtype=torch.int64)
        sizes[self.ranks.rank] = len(text)
        self.add_up(sizes)
        own = torch.zeros(max(int(sizes.max()), 1), dtype=torch.uint8)
        own[: len(text)] = text
        parts = [torch.empty_like(own) for _ in range(self.ranks.size)]
        with self._noticing():
            dist.all_gather(parts, own)
        return [_decoded(part[:size]) for part, size in zip(parts, sizes.tolist(), strict=True)]

    def first(self, work: Callable[[], T], kind: Any = Any) -> T:
        """Let the first process do some work, and return its result in all processes.

        Args:
            kind: Type of the result, such as a dataclass, of which pydantic makes JSON and back;
                by default, what JSON itself can contain.

        Raises:
            OtherProcessError: the work raised an error, in the other processes.
        """
        if not self.are_several:
            return work()
        as_plain: TypeAdapter[T] = TypeAdapter(kind)
        if self.is_first:
            with self._reporting_failure():
                result = work()
            self._broadcast({"value": as_plain.dump_python(result)})
            return result
        return as_plain.validate_python(self._received())

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let the first process run the block, then all others; such as for a download.

        Raises:
            OtherProcessError: the block raised an error in the first process.
        """
        if self.are_several and not self.is_first:
            self._received()
        if self.are_several and self.is_first:
            with self._reporting_failure():
                yield
            self._broadcast({"value": None})
            return
        yield

    def tensors_of_first(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return, in all processes, the named tensors of the first one, on the CPU.

        Args:
            tensors: Tensors in the first process; ignored in the others.
        """
        if not self.are_several:
            return dict(tensors or {})
        known = [
            (name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape))
            for name, tensor in (tensors or {}).items()
        ]
        received = {}
        for name, dtype, shape in self.first(lambda: known, list[tuple[str, str, list[int]]]):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            if tensors is not None and self.is_first:
                tensor = tensors[name].detach().cpu().contiguous()
            with self._noticing():
                dist.broadcast(tensor, src=0)
            received[name] = tensor
        return received

    def rows_of_all(self, features: tuple[Tensor, ...], owner: int) -> None:
        """Copy tensors of one process into those of all others."""
        for tensor in features:
            with self._noticing():
                dist.broadcast(tensor.view(torch.uint8) if tensor.numel() else tensor, src=owner)

    def refuse_differences(self, **facts: str) -> None:
        """Compare texts of all processes.

        Raises:
            FinetuneError: they differ; the message names what differs, and where.
        """
        every = self.gather(facts)
        for name, value in every[0].items():
            others = [rank for rank, found in enumerate(every) if found[name] != value]
            if others:
                raise FinetuneError(
                    f"{name} of process {others[0]} differ from those of process 0",
                    kind="distributed.differs",
                    to_do="all machines need the same files, weights and versions",
                )

    def failed(self, error: BaseException) -> bool:
        """Note that this process ends because of an error.

        Returns:
            Whether this process is the first to fail and should report its error.
        """
        if not self.are_several or self._store is None:
            return True
        if isinstance(error, OtherProcessError):
            return self.is_first and error.is_signal
        code = str(getattr(error, "exit_code", 1))
        me = f"{self.ranks.rank} {code}"
        is_mine = True
        with suppress(RuntimeError):
            is_mine = bool(self._store.compare_set(_FAILED, "", me) == me.encode())
        # A signal usually reaches all processes, and the first one reports it.
        return self.is_first if isinstance(error, Interrupted) else is_mine

    def _broadcast(self, message: Any) -> None:
        text = _encoded(message)
        size = torch.tensor([len(text)])
        with self._noticing():
            dist.broadcast(size, src=0)
            dist.broadcast(text, src=0)

    def _received(self) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        with self._noticing():
            dist.broadcast(size, src=0)
            text = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(text, src=0)
        message = _decoded(text)
        if "exit_code" in message:
            raise OtherProcessError(message["exit_code"])
        return message["value"]

    @contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        """Tell the waiting processes of an error before it is raised."""
        try:
            yield
        except (Exception, Interrupted) as error:
            self.failed(error)
            self._broadcast({"exit_code": getattr(error, "exit_code", 1)})
            raise

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        """Raise `OtherProcessError` where an exchange fails because a process has ended."""
        try:
            yield
        except RuntimeError as error:
            if not any(word in str(error) for word in _OF_CONNECTIONS):
                raise
            raise OtherProcessError(self._code_of_other()) from error

    def _code_of_other(self) -> int:
        with suppress(RuntimeError):  # the process that kept the store is gone
            for _ in range(_REASON_ROUNDS):
                if self._store is not None and self._store.check([_FAILED]):
                    return int(self._store.get(_FAILED).split()[1])
                time.sleep(_REASON_ROUND_S)
        return KILLED


ONE_PROCESS = Group()
"""Group of a run of one process."""

_joined = ONE_PROCESS


def group() -> Group:
    """Return the group that this process has joined; a group of one without a launcher."""
    return _joined


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work as in a run of one process, while the others wait for it."""
    global _joined
    before, _joined = _joined, ONE_PROCESS
    try:
        yield
    finally:
        _joined = before


@contextmanager
def joined() -> Iterator[Group]:
    """Join the other processes of this run, if a launcher started several.

    An error that ends the block gets an attribute ``is_reported_here``: whether this process, and
    not another one, should print it.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    global _joined
    ranks = Ranks.of_environment()
    if not ranks.are_several:
        yield ONE_PROCESS
        return
    from torch._C._distributed_c10d import PrefixStore

    _end_with_parent()
    store = _store_of(ranks)
    # NCCL refuses several processes on one GPU.
    is_one_each = torch.cuda.is_available() and torch.cuda.device_count() >= ranks.local_size
    backend = "cpu:gloo,cuda:nccl" if is_one_each else "gloo"
    dist.init_process_group(
        backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=_LONGEST_WAIT
    )
    notes = PrefixStore("finetune", store)
    if is_one_each:
        _watch(notes)
    cores.share_among(ranks.local_size)
    torch.set_num_threads(cores.available_cores())
    _joined = Group(ranks, notes)
    try:
        yield _joined
        _joined.barrier()  # so that no process closes a connection that another one still uses
    except BaseException as error:
        error.is_reported_here = _joined.failed(error)  # type: ignore[attr-defined]
        raise
    finally:
        _joined = ONE_PROCESS
        cores.share_among(1)
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _store_of(ranks: Ranks) -> Store:
    """Return the store in which the processes find each other.

    On one machine each restart uses names of its own: torch's launcher keeps one store for all
    restarts, in which the addresses of killed processes would be found. The number of restarts may
    differ between machines.
    """
    from torch._C._distributed_c10d import PrefixStore, TCPStore

    of_agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        ranks.size,
        is_master=ranks.is_first and not of_agent,
        timeout=_RENDEZVOUS,
    )
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    is_one_machine = ranks.local_size == ranks.size
    return PrefixStore(f"restart {restart}" if is_one_machine else "run", store)


def _watch(store: Store) -> None:
    """End this process some seconds after another one has failed.

    Under NCCL it would wait on the GPU, where no exception reaches it. After a signal, all end on
    their own once they have saved.
    """

    def watch() -> None:
        with suppress(RuntimeError):  # the process that kept the store is gone
            while not store.check([_FAILED]):
                time.sleep(_WATCH_S)
            code = int(store.get(_FAILED).split()[1])
            if not OtherProcessError(code).is_signal:
                time.sleep(_GRACE_S)
                os._exit(code)

    threading.Thread(target=watch, daemon=True).start()


def _end_with_parent() -> None:
    """Ask Linux to send SIGTERM when the launcher dies; torch's launcher would leave orphans."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _encoded(value: Any) -> Tensor:
    text = json.dumps(value, default=os.fspath)
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def _decoded(text: Tensor) -> Any:
    return json.loads(bytes(text.numpy()).decode())
