"""One process at a time in the folder of a run."""

from __future__ import annotations

import errno
from pathlib import Path
from types import TracebackType
from typing import IO

from finetune.errors import OutputError
from finetune.run_folder import MARKER

try:
    import fcntl
except ImportError:  # Windows has none, and a folder there is not claimed
    fcntl = None  # type: ignore[assignment]

_HELD = frozenset({errno.EACCES, errno.EAGAIN})


class Claim:
    """The right to write into a run's folder, for as long as the process lives or until the end of
    a ``with``.

    It is a record lock (``lockf``) on the marker: the system takes it back however the process
    ends, and no worker process inherits it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Claim the folder, where it holds a run and is not claimed yet.

        Raises:
            OutputError: another process has it.
        """
        marker = self._folder / MARKER
        if fcntl is None or self._file is not None:
            return
        try:
            file = marker.open("r+b")
        except OSError:  # no run yet; or it cannot be written, which will be said where it is
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in _HELD:
                raise OutputError(
                    f"output_dir: {self._folder}: another process is training there; wait for its "
                    "end, or choose another folder with --set output_dir=FOLDER"
                ) from None
            return  # a file system without locks
        self._file = file

    def __enter__(self) -> Claim:
        self.take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
