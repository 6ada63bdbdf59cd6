"""Files written whole or not at all."""

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
from pathlib import Path
from typing import IO

import platformdirs

from finetune.errors import OutputError

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
"""Errors by which a file system says that it does not offer a call at all."""
_REFUSED = UNSUPPORTED | {errno.EPERM, errno.EACCES}
_warned: set[str] = set()


def write_atomically(
    path: Path,
    write: Callable[[IO[bytes]], object],
    *,
    check: Callable[[IO[bytes]], object] | None = None,
    keep: Path | None = None,
) -> None:
    """Write through a temporary file in the same folder: flushed, synced, then renamed.

    Args:
        check: Reads what was written, before it takes its name; an OSError refuses it.
        keep: Name in the same folder that the file at ``path`` has from then on.

    Raises:
        OutputError: it could not be written; what was at ``path`` before is still there.
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
    # torch.save reports a full disk as RuntimeError.
    except (OSError, RuntimeError) as error:
        raise OutputError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the first error is the one to tell
                Path(temporary).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically`, for text in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """`write_atomically`, for a table; file names keep bytes that are not UTF-8."""

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
        text.detach()

    write_atomically(path, write)


def append_line(path: Path, line: str) -> None:
    """Add one line, whole or not at all.

    Raises:
        OutputError: it could not be written.
    """
    content = f"{line}\n".encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = os.fstat(file.fileno()).st_size
            try:
                while content:  # a disk that has room for a part takes that, and then says why
                    content = content[file.write(content) :]
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {_reason(error)}") from error


def refuse_to_replace(path: Path, *, overwrite: bool) -> None:
    """Before any work: can a file be written there without losing another?

    Raises:
        OutputError: there is one already and it is not to be replaced, or there is no such folder.
    """
    if is_folder(path):
        raise OutputError(f"{path}: is a folder; --output takes the name of a file")
    if exists(path) and not overwrite:
        raise OutputError(f"{path}: is there already; --overwrite replaces it")
    if not is_folder(path.parent):
        raise OutputError(f"{path}: cannot be written: there is no folder {path.parent}")


def sha256_of(path: Path) -> str:
    """Of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def state_of(status: os.stat_result) -> str:
    """What changes when a file's content does, without reading it, as text for a key.

    Size and modification time alone can be equal for different files: archives set the times of
    what they unpack, and ``cp -p`` and ``touch -r`` copy them. Programs cannot set the change time
    (ctime), and a file moved over another one has an inode of its own. The device is left out: its
    number may differ after a restart.
    """
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def exists(path: Path) -> bool:
    """Whether something is there that can be looked at.

    Unlike ``Path.exists``, a name that the system refuses (too long, no permission) is simply
    not there.
    """
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path) -> bool:
    """As `exists`, for folders."""
    return os.path.isdir(path)  # noqa: PTH112


def is_file(path: Path) -> bool:
    """As `exists`, for plain files: neither a folder nor a device."""
    return os.path.isfile(path)  # noqa: PTH113


def expand_user(path: str) -> Path:
    """``~`` replaced; left as it is where there is no such user, unlike ``Path.expanduser``."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def user_cache() -> Path:
    """The user's cache folder for finetune.

    Raises:
        OSError: there is none, since the user has no home folder; a warning says so once.
    """
    try:
        folder = platformdirs.user_cache_path("finetune")
    except (RuntimeError, KeyError):
        folder = Path("~")
    if str(folder).startswith("~"):  # what older versions of platformdirs return
        reason = "HOME is not set, and the user has no entry in the list of users"
        warn_once(
            f"{reason}: nothing is kept for later runs, and features are kept in memory; set HOME "
            "or XDG_CACHE_HOME to a folder that can be written"
        )
        raise FileNotFoundError(errno.ENOENT, reason)
    return folder


def warn_once(text: str) -> None:
    """Log a warning, once in a process; without a logging configuration it goes to stderr."""
    if text not in _warned:
        _warned.add(text)
        logging.getLogger("finetune").warning("warning: %s", text)


def set_mode(path: Path, mode: int) -> None:
    """Change a file's permissions where its file system has any: a network share may refuse."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


def remove_stale(folder: Path, pattern: str, *, older_than_s: float = 3600.0) -> None:
    """Remove the scratch folders that killed processes left; younger ones may still be in use."""
    for scratch in folder.glob(pattern):
        try:
            age_s = time.time() - scratch.stat().st_mtime
        except FileNotFoundError:  # its owner has just finished
            continue
        if age_s > older_than_s:
            shutil.rmtree(scratch, ignore_errors=True)


def _rename(new: Path, path: Path, keep: Path | None) -> None:
    """Give a file its name; the one that had it is at ``keep`` afterwards.

    A second link holds that one meanwhile, so that at no moment ``path`` is missing, and what was
    at ``keep`` goes last.
    """
    before = new.with_name(f"{new.name}-before")
    keeps = keep is not None and exists(path)
    try:
        if keeps:
            try:
                before.hardlink_to(path)
            except OSError:  # a file system without links
                shutil.copyfile(path, before)
        new.replace(path)
        _sync_folder(path.parent)
        if keep is not None and keeps:
            before.replace(keep)
            _sync_folder(path.parent)
    finally:
        before.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """What the system said first: torch.save hides a full disk behind an error of its own."""
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
    """Have a file reach its disk before it takes its name, where the file system offers that."""
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
    """Make the rename itself survive a power cut, where the system lets folders be synced."""
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
