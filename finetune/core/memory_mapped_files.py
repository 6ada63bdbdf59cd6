"""Memory-mapped tensor files whose disk space is reserved beforehand."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from finetune.core.files import UNSUPPORTED


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor that is memory-mapped to a file; writing to the tensor writes to the file.

    Raises:
        OSError: The file system does not support mapping.
    """
    try:
        numbers = torch.from_file(
            str(path), shared=True, size=torch.Size(shape).numel(), dtype=dtype
        )
    except RuntimeError as error:
        raise OSError(errno.ENODEV, "its file system cannot map files") from error
    return numbers.reshape(shape)


def reserve(path: Path, num_bytes: int) -> None:
    """Set a file's size and reserve its disk space.

    Otherwise writing to the mapped file on a full disk would kill the process without a message
    (SIGBUS).

    Raises:
        OSError: There is not enough disk space; the file is empty again.
    """
    with path.open("r+b") as file:
        file.truncate(num_bytes)
        try:
            if _allocate(file.fileno(), num_bytes):
                return
            if shutil.disk_usage(path.parent).free < num_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(0)
            raise


def _allocate(descriptor: int, num_bytes: int) -> bool:
    """Reserve disk space for an open file; return False if this is not supported.

    Raises:
        OSError: There is not enough disk space.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def allocated(path: Path) -> int:
    """Return the number of bytes allocated on disk for a file."""
    status = path.stat()
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else 512 * blocks
