"""Ranks: the place of this process among the processes of one run; imports no torch.

torchrun, and ``finetune train --nproc``, set the environment variables that are read here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from finetune.core.errors import ConfigError

_NEEDED = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Place of this process among the processes of one run.

    Attributes:
        rank: Number of this process, from 0; rank 0 decides, writes and prints.
        size: Number of processes.
        local_rank, local_size: The same among the processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """Return the ranks that a launcher has set.

        Raises:
            ConfigError: ``WORLD_SIZE`` is set without the other variables.
        """
        size = environment.get("WORLD_SIZE", "1")
        if size == "1":
            return cls()
        missing = [name for name in _NEEDED if name not in environment]
        if missing:
            raise ConfigError(
                f"is {size}, but {', '.join(missing)} is not set",
                kind="config.no_launcher",
                source="environment variable WORLD_SIZE",
                to_do="Start several processes with `finetune train --nproc N` or with torchrun, "
                "or unset WORLD_SIZE",
            )
        numbers = [environment[name] for name in _NEEDED[:3]]
        try:
            rank, local_rank, local_size = map(int, numbers)
            return cls(rank, int(size), local_rank, local_size)
        except ValueError as error:
            raise ConfigError(
                f"not whole numbers: {', '.join([size, *numbers])}",
                kind="config.no_launcher",
                source=f"environment variables WORLD_SIZE, {', '.join(_NEEDED[:3])}",
            ) from error

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which decides, writes and prints."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there is more than one process."""
        return self.size > 1

    def rows(self, count: int) -> range:
        """Return the positions of this rank's share of ``count`` rows, which may be empty."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def batches(self, count: int) -> int:
        """Return the largest number of batches that a process takes of ``count``."""
        return -(-count // self.size)


ALONE = Ranks()
"""A run of one process."""
