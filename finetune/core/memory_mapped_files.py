"""Tensors in memory-mapped files."""

from __future__ import annotations

import errno
import mmap
from typing import IO

import torch
from torch import Tensor


def mapped(file: IO[bytes], num_bytes: int) -> mmap.mmap | bytearray:
    """Return the first bytes of an open file, memory-mapped; they have to be in the file.

    Raises:
        OSError: The file system does not support mapping.
    """
    if not num_bytes:
        return bytearray()
    try:
        return mmap.mmap(file.fileno(), num_bytes)
    except ValueError as error:  # the file has become shorter
        raise OSError(errno.EIO, "a file is shorter than it was") from error


def as_tensor(content: mmap.mmap | bytearray, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return mapped bytes as a tensor without copying them."""
    if not len(content):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=torch.Size(shape).numel()).view(shape)
