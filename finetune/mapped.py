"""Tensors in files: mapped, and with their space reserved beforehand."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from finetune.files import UNSUPPORTED


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in a file, which is written as the tensor is.

    Raises:
        OSError: the file system of the file maps none.
    """
    try:
        numbers = torch.from_file(
            str(path), shared=True, size=torch.Size(shape).numel(), dtype=dtype
        )
    except RuntimeError as error:
        raise OSError(errno.ENODEV, "its file system cannot map files") from error
    return numbers.reshape(shape)


def reserve(path: Path, num_bytes: int) -> None:
    """Give a file its size and its space: a mapped file that meets a full disk later on would end
    the process without a word (SIGBUS).

    Raises:
        OSError: there is no room; the file is empty again.
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
    """Give an open file its space; False where system or file system does not offer that.

    Raises:
        OSError: there is no room.
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
    """Bytes of a file that have their place on the disk."""
    status = path.stat()
    blocks: int | None = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else 512 * blocks
