"""Atomic file writes and helpers for files and folders."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO

import platformdirs

from finetune.core.errors import OutputError
from finetune.core.text import nearest

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Error numbers of calls that a file system does not support."""
_REFUSED = UNSUPPORTED | {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTTY, errno.ENOENT}
"""Error numbers of a change of permissions that some mounts refuse; EIO is a fault of the disk."""
_warned: set[str] = set()


def write_atomically(
    path: Path,
    write: Callable[[IO[bytes]], object],
    *,
    check: Callable[[IO[bytes]], object] | None = None,
    keep: Path | None = None,
) -> None:
    """Write a file atomically: a temporary file in the same folder is flushed, synced and renamed.

    Args:
        path: Path of the file.
        write: Function that writes the content to an open file.
        check: Function that verifies the written file before the rename; an OSError rejects it.
        keep: Path in the same folder to which the previous file at ``path`` is moved.

    Raises:
        OutputError: The file cannot be written; the previous file at ``path`` is unchanged.
    """
    temporary: str | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
            temporary = file.name
            write(file)
            file.flush()
            _sync(file.fileno(), path)
            if check is not None:
                check(file)
        set_mode(Path(temporary), 0o666 & ~_umask())  # NamedTemporaryFile makes private files
        _rename(Path(temporary), path, keep)
        temporary = None
    # torch.save raises RuntimeError if the disk is full.
    except (OSError, RuntimeError) as error:
        raise unwritable(path, _reason(error)) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the first error is the one to report
                Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file atomically; bytes of file names that are not UTF-8 are preserved."""

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
        text.detach()

    write_atomically(path, write)


def append_line(path: Path, line: str) -> None:
    """Append one line to a file; if it cannot be written completely, the file is unchanged.

    Raises:
        OutputError: The line cannot be written.
    """
    content = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                while content:  # a nearly full disk accepts a part, then raises
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise unwritable(path, _reason(error)) from error


def refuse_to_replace(path: Path, *, overwrite: bool) -> None:
    """Check before any work that an output file can be written without replacing another.

    Raises:
        OutputError: The path is a folder, exists without ``overwrite``, or its folder is missing.
    """
    if is_folder(path):
        raise OutputError(
            "is a folder", kind="output.is_a_folder", path=path, to_do="give --output a file name"
        )
    if exists(path) and not overwrite:
        raise OutputError(
            "exists already", kind="output.exists", path=path, to_do="--overwrite replaces it"
        )
    if not is_folder(path.parent):
        raise unwritable(path, f"there is no folder {path.parent}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_of(status: os.stat_result) -> str:
    """Return a key that changes when a file's content changes, without reading the file.

    Size and modification time alone can be equal for different files: archives restore the times
    of extracted files, and ``cp -p`` and ``touch -r`` copy them. Programs cannot set the change
    time (ctime), and a file moved over another one has a different inode. The device number is left
    out because it may differ after a reboot.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def exists(path: Path) -> bool:
    """Return whether a path exists.

    Unlike ``Path.exists``, returns False if the system rejects the path (too long, no permission).
    """
    return os.path.exists(path)  # noqa: PTH110


_MOST_BESIDE = 1000
"""Number of names in a folder among which a similar one is sought."""
_NEAR = 0.7
"""Similarity from which on a name is taken for a misspelt one; ``photos`` and ``pets`` have 0.6."""


def nearest_path(path: Path, is_meant: Callable[[Path], bool] = exists) -> Path | None:
    """Return the path that was probably meant by one that does not exist, or None.

    One of its parts may be misspelt; the others must exist as they are.

    Args:
        is_meant: Whether a path is of the kind that is sought.
    """
    start = Path(path.anchor)
    parts = path.relative_to(start).parts
    for at, part in enumerate(parts):
        if exists(start / part) and at < len(parts) - 1:
            start /= part
            continue
        try:
            names = [child.name for child in islice(start.iterdir(), _MOST_BESIDE)]
        except OSError:
            return None
        found = (
            start.joinpath(near, *parts[at + 1 :]) for near in nearest(part, names, cutoff=_NEAR)
        )
        return next(filter(is_meant, found), None)
    return None


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if the system rejects the path, like `exists`."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False if the system rejects it, like `exists`."""
    return os.path.isfile(path)  # noqa: PTH113


def expand_user(path: str) -> Path:
    """Expand ``~``; for an unknown user it is left as is, unlike with ``Path.expanduser``."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def refuse_without_home(key: str, folder: Path) -> None:
    """Reject an expanded path that still begins with ``~``: a folder of that name would be made.

    Raises:
        OutputError: The user has no home folder.
    """
    if folder.parts[:1] == ("~",):
        raise OutputError(
            "~ cannot be expanded: HOME is not set, and the user has no entry in the list of users",
            kind="output.no_home",
            key=key,
            path=folder,
            to_do="set HOME, or give the whole path",
        )


def user_cache() -> Path:
    """Return the user's cache folder for finetune.

    Raises:
        OSError: The user has no home folder; also logged as a warning, once.
    """
    try:
        folder = platformdirs.user_cache_path("finetune")
    except (RuntimeError, KeyError):
        folder = Path("~")
    if str(folder).startswith("~"):  # returned by older versions of platformdirs
        reason = "HOME is not set, and the user has no entry in the list of users"
        warn_once(
            f"{reason}: nothing is cached for later runs, and features are cached in memory; set "
            "HOME or XDG_CACHE_HOME to a writable folder"
        )
        raise FileNotFoundError(errno.ENOENT, reason)
    return folder


def warn_once(text: str) -> None:
    """Log a warning once per process; without a logging configuration it goes to stderr."""
    if text not in _warned:
        _warned.add(text)
        logging.getLogger("finetune").warning("warning: %s", text)


def set_mode(path: Path, mode: int) -> None:
    """Set a file's permissions, if its file system supports them; network shares may not."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


def remove_stale(folder: Path, pattern: str, *, older_than_s: float = 3600.0) -> None:
    """Remove scratch folders left by killed processes; younger ones may still be in use."""
    for scratch in folder.glob(pattern):
        try:
            age_s = time.time() - scratch.stat().st_mtime
        except FileNotFoundError:  # removed by its owner in the meantime
            continue
        if age_s > older_than_s:
            shutil.rmtree(scratch, ignore_errors=True)


def _rename(new: Path, path: Path, keep: Path | None) -> None:
    """Rename ``new`` to ``path``; the previous file at ``path`` is moved to ``keep``.

    A hard link preserves the previous file meanwhile, so that ``path`` exists at every moment and
    the file at ``keep`` is replaced last.
    """
    before = new.with_name(f"{new.name}-before")
    keeps = keep is not None and exists(path)
    try:
        if keeps:
            try:
                before.hardlink_to(path)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, before)
        new.replace(path)
        _sync_folder(path.parent)
        if keep is not None and keeps:
            before.replace(keep)
            _sync_folder(path.parent)
    finally:
        before.unlink(missing_ok=True)


def unwritable(path: Path, reason: str) -> OutputError:
    """Return the error for a file that cannot be written."""
    return OutputError(f"cannot be written: {reason}", kind="output.unwritable", path=path)


def _reason(error: BaseException) -> str:
    """Return the message of the original OSError, which torch.save wraps in another error."""
    first: BaseException | None = error
    while first is not None:
        if isinstance(first, OSError) and first.strerror:
            return first.strerror
        first = first.__cause__ or first.__context__
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(descriptor: int, path: Path) -> None:
    """Flush a file to disk, if the file system supports it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warn_once(
            f"{path.parent}: this file system cannot say when a file has reached the disk (fsync): "
            "a power failure may cost the latest files"
        )


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power failure, if the system supports syncing folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
