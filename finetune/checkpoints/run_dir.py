"""Run directory: file names, preparation for a run, and protection of files of the user."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune.core.errors import CheckpointError, OutputError, address_problem
from finetune.core.files import (
    exists,
    is_file,
    is_folder,
    nearest_path,
    refuse_without_home,
    write_atomically,
    write_text,
)

_LONGEST_NAME = 255  # bytes, on every common file system
_MOST_MEANT = 3
_LONGEST_WORDS = 40  # characters of the name of evaluated data in a file name
_LONGEST_PATH = 3800  # bytes: Linux allows 4,095, less the names of files in the directory

MARKER = ".finetune-run"
LAUNCH = ".finetune-launch"
"""Name of the launch of several processes that began the run; not in the marker, which is locked,
and whose lock would be released when it is read."""
BEST = "best.pt"
LAST = "last.pt"
PREVIOUS = "previous.pt"
CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
LOG = "log.txt"
SUMMARY = "summary.json"
FREEZE_TEXT = "freeze-report.txt"
FREEZE_JSON = "freeze-report.json"
SPLIT = "split.csv"
SKIPPED = "skipped.csv"
CORRECTIONS = "corrections.csv"
LEARNING_CURVE = "learning-curve.json"
SUSPECTS_PAGE, SUSPECTS_TABLE = "suspects.html", "suspects.csv"
PREDICTIONS = "predictions.csv"
EVALUATION = "metrics.json"
REPORT = "report.html"
CURVES, CONFUSION = "report-curves.png", "report-confusion.png"
EXPORT = "export"
EXPORTED = {
    "onnx": "model.onnx",
    "exported-program": "model.pt2",
    "safetensors": "model.safetensors",
}
"""File name by export format; each file is in ``export/FORMAT/``."""
EXPORT_README = "README.md"

_OWN = (
    *(BEST, LAST, PREVIOUS, CONFIG, METRICS, SUMMARY, FREEZE_TEXT, FREEZE_JSON, SPLIT, SKIPPED),
    *(CORRECTIONS, LEARNING_CURVE, SUSPECTS_PAGE, SUSPECTS_TABLE),
    *(LAUNCH, LOG),
    *(PREDICTIONS, EVALUATION, REPORT, CURVES, CONFUSION),
    *(
        f"{EXPORT}/{kind}/{name}"
        for kind, file in EXPORTED.items()
        for name in (file, f"{file}.data", EXPORT_README)
    ),
)


_OF_EVALUATION = re.compile(
    r"(predictions|metrics|report|report-confusion)(-last|-previous)?"
    r"(-(train|test)|-[^/]+-[0-9a-f]{6})?\.(csv|json|html|png)"
)
"""Names of the files of an evaluation; see `of_evaluation`."""


def of_evaluation(name: str, checkpoint: Path, *, split: str, data: str | None) -> str:
    """Return the name of a file of an evaluation, different for each checkpoint, split and data.

    Only the evaluation of ``best.pt`` on the validation split of the run's own data has the plain
    name. ``last.pt`` on the test split gives ``metrics-last-test.json``, and other data gives
    ``metrics-NAME-HASH.json``: the hash of the path tells folders of equal names apart.

    Args:
        name: Plain name, such as ``metrics.json``.
        split: Split of the run's own data, or of ``data``.
        data: Folder or table that was evaluated instead of the run's own data.
    """
    parts = [checkpoint.stem] if checkpoint.name in (LAST, PREVIOUS) else []
    if data is not None:
        path = os.path.abspath(data)  # noqa: PTH100
        code = hashlib.sha256(f"{split} {path}".encode("utf-8", "surrogateescape")).hexdigest()
        words = re.sub(r"[^\w.-]+", "-", Path(path).name, flags=re.ASCII).strip("-.")
        parts += [words[:_LONGEST_WORDS] or "data", *([split] if split != "val" else []), code[:6]]
    elif split != "val":
        parts.append(split)
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return "-".join([stem, *parts]) + suffix


def _own_names(folder: Path) -> list[str]:
    """Return the names of all files that may be of a run, ``best.pt`` first."""
    found = [path.name for path in folder.iterdir() if _OF_EVALUATION.fullmatch(path.name)]
    return list(dict.fromkeys([*_OWN, *found]))


def is_run(path: Path) -> bool:
    """Return whether a path is that of a run directory with a checkpoint, or of a checkpoint."""
    return exists(path / BEST) or (path.suffix == ".pt" and is_file(path))


def nearest_run(path: Path) -> str:
    """Return `` Did you mean 'runs/pets'?`` if a run or a checkpoint is near a path, else ""."""
    runs = sorted(child for child in path.glob("*") if is_run(child)) if is_folder(path) else []
    if not runs:
        in_runs = Path("runs") / path
        near = in_runs if is_run(in_runs) else nearest_path(path, is_run)
        near = near or nearest_path(in_runs, is_run)
        runs = [near] if near else []
    named = " or ".join(repr(str(run)) for run in runs[:_MOST_MEANT])
    return f" Did you mean {named}?" if named else ""


def no_such_checkpoint(path: Path) -> CheckpointError:
    """Return the error of a RUN or CHECKPOINT argument that does not exist."""
    return CheckpointError(
        "no such checkpoint",
        kind="checkpoint.not_found",
        path=path,
        to_do=f"{nearest_run(path)} A run writes runs/NAME/best.pt; paths are relative to the "
        "working directory",
    )


def checkpoint_of(run: str) -> Path:
    """Return the checkpoint of a RUN or CHECKPOINT argument: a run's ``best.pt``, or the file.

    Raises:
        CheckpointError: There is no such file or directory, the directory has no checkpoint, or the
            argument is a remote address.
    """
    if problem := address_problem(run):
        raise CheckpointError(problem.what, kind="checkpoint.is_an_address", to_do=problem.to_do)
    path = Path(run)
    if not exists(path):
        raise no_such_checkpoint(path)
    if not is_folder(path):
        return path
    if exists(path / BEST):
        return path / BEST
    raise CheckpointError(
        f"contains no {BEST}",
        kind="checkpoint.not_found",
        path=path,
        to_do=f"{nearest_run(path)} Give the folder of a finished run, as in runs/NAME, or a "
        "checkpoint file",
    )


def run_of(checkpoint: Path) -> str:
    """Return the RUN argument that names a checkpoint: the inverse of `checkpoint_of`."""
    return str(checkpoint.parent if checkpoint.name == BEST else checkpoint)


def make_output(folder: Path) -> None:
    """Create the directory given by ``--output``.

    Raises:
        OutputError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            error.strerror or str(error), kind="output.unwritable", key="--output", path=folder
        ) from error


def rerun_command(config: Path, output_dir: str) -> str:
    """Shell command that trains a saved config again, into ``{output_dir}-rerun``."""
    return (
        f"finetune train --config {shlex.quote(str(config))} "
        f"--set {shlex.quote(f'output_dir={output_dir}-rerun')}"
    )


def report_command(folder: str) -> str:
    """Shell command that writes the HTML report of a run."""
    return f"finetune report {shlex.quote(folder)}"


def records_of(checkpoint: Path, *, validated: bool = True) -> list[dict[str, Any]]:
    """Epoch records of the run that contains a checkpoint; empty if there is no ``metrics.jsonl``.

    Damaged lines are skipped, so that the report shows a curve with a gap.

    Args:
        validated: Whether epochs without validation are skipped, too.
    """
    try:
        text = (checkpoint.parent / METRICS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = (_record(line, validated) for line in text.splitlines())
    return [record for record in found if record is not None]


def _record(line: str, validated: bool) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
        figures = [record["epoch"], record["loss"]]
        if validated or record["val"] is not None:
            figures += [record["val"]["loss"], record["val"]["top1"]]
        finite = all(math.isfinite(figure) for figure in figures)
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
    return record if finite else None


def chosen_on_validation(checkpoint: Path) -> tuple[str, ...]:
    """Return what the run's summary says was chosen on the validation images; empty without one.

    A ladder and a search record there what a checkpoint does not know: that they chose the run.
    """
    try:
        summary = json.loads((checkpoint.parent / SUMMARY).read_text(encoding="utf-8"))
        chose = summary["chosen_on_validation"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()
    return tuple(map(str, chose)) if isinstance(chose, list) else ()


def check_usable(folder: Path, *, overwrite: bool) -> None:
    """Check that a directory can be used for a new run.

    Raises:
        OutputError: The directory contains a run (unless ``overwrite``) or other files, it cannot
            be read or created, or it is in the home folder of a user who has none.
    """
    refuse_without_home("output_dir", folder)
    if not exists(folder):
        _check_can_be_made(folder)
        return
    if not is_folder(folder):
        raise OutputError(
            "is a file, not a folder", kind="output.not_a_folder", key="output_dir", path=folder
        )
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise OutputError(
            f"cannot be read: {error.strerror}",
            kind="output.unreadable",
            key="output_dir",
            path=folder,
        ) from error
    if all(name.startswith(".tmp-") for name in names):  # empty, or killed before marking
        return
    if MARKER not in names:
        raise OutputError(
            "contains files that are not of a finetune run",
            kind="output.foreign_files",
            key="output_dir",
            path=folder,
            to_do="choose another folder with --set output_dir=FOLDER",
        )
    if not overwrite:
        raise OutputError(
            "already contains a run",
            kind="output.exists",
            key="output_dir",
            path=folder,
            to_do="add --overwrite to replace it or --resume to continue it, or choose another "
            "folder with --set output_dir=FOLDER",
        )


def _check_can_be_made(folder: Path) -> None:
    parent = next(parent for parent in folder.absolute().parents if exists(parent))
    if not is_folder(parent):
        raise OutputError(
            f"{parent} is a file, not a folder",
            kind="output.not_a_folder",
            key="output_dir",
            path=folder,
        )
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in folder.parts):
        raise OutputError(
            "a name in this path is too long",
            kind="output.name_too_long",
            key="output_dir",
            path=folder,
        )
    if len(os.fsencode(folder.absolute())) > _LONGEST_PATH:
        raise OutputError(
            "the path is too long", kind="output.name_too_long", key="output_dir", path=folder
        )
    if not os.access(parent, os.W_OK):
        raise OutputError(
            f"{parent} cannot be written",
            kind="output.unwritable",
            key="output_dir",
            path=folder,
        )


def check_is_run(folder: Path) -> None:
    """Check that a directory contains a run that can be resumed.

    Raises:
        OutputError: The directory contains no run.
    """
    if exists(folder / MARKER):
        return
    if exists(folder) and not is_folder(folder):
        raise OutputError(
            "is a file",
            kind="output.not_a_folder",
            key="output_dir",
            path=folder,
            to_do="--resume takes the folder of a run",
        )
    what = "contains no finetune run" if is_folder(folder) else "no such folder"
    try:
        check_usable(folder, overwrite=False)
        begins = "the command without --resume starts a run there"
    except OutputError:  # it contains other files
        begins = ""
    raise OutputError(
        f"{what}, so there is nothing to resume",
        kind="output.no_run",
        key="output_dir",
        path=folder,
        to_do=nearest_run(folder) or begins,
    )


def config_of(run: str) -> Path:
    """Return the path of the resolved config in a run directory.

    Raises:
        OutputError: The directory contains no run, or the run has no config yet.
    """
    check_is_run(Path(run))
    path = Path(run) / CONFIG
    if not exists(path):
        raise OutputError(
            f"contains no {CONFIG}: the run ended before it was written",
            kind="output.no_run",
            key="output_dir",
            path=run,
            to_do="Start over with the run's config file: finetune train --config FILE --overwrite",
        )
    return path


def reopen(folder: Path, checkpoint: Path) -> None:
    """Prepare a run directory for resuming.

    Removes temporary files of a killed process and the summary, and renames the checkpoint that the
    run resumes from to ``last.pt``.

    Raises:
        OutputError: The directory cannot be written.
    """
    try:
        for stray in (*folder.glob(".tmp-*"), folder / SUMMARY):
            stray.unlink(missing_ok=True)
        if checkpoint.name != LAST:
            checkpoint.replace(folder / LAST)
    except OSError as error:
        raise OutputError(
            error.strerror or str(error), kind="output.unwritable", key="output_dir", path=folder
        ) from error


def prepare(folder: Path, *, overwrite: bool, launch: str | None = None) -> None:
    """Create a run directory with its marker, or remove the files of an earlier run from it.

    Args:
        launch: Name of the launch of several processes that begin the run.

    Raises:
        OutputError: The directory is not usable (see `check_usable`), or cannot be written.
    """
    check_usable(folder, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _mark(folder)
        if launch is not None:
            write_text(folder / LAUNCH, launch)
        for name in _own_names(folder):
            if not _leads_elsewhere(folder, name) and (name != LAUNCH or launch is None):
                (folder / name).unlink(missing_ok=True)
        for path in folder.glob(".tmp-*"):  # left by a killed process
            if path.is_symlink() or not path.is_dir():
                path.unlink(missing_ok=True)
        for below in (*(f"{EXPORT}/{kind}" for kind in EXPORTED), EXPORT):
            with suppress(OSError):  # absent, or it contains files of the user
                if not _leads_elsewhere(folder, below):
                    (folder / below).rmdir()
    except OSError as error:
        raise OutputError(
            error.strerror or str(error), kind="output.unwritable", key="output_dir", path=folder
        ) from error


def publish(run: Path, folder: Path, *, config: str) -> None:
    """Make another run directory contain the files of a run, instead of those that it has.

    Each file is replaced atomically, ``best.pt`` first. Checkpoints become hard links where the
    file system supports them; they are never changed in place.

    Args:
        config: Text of ``config.yaml`` in the directory.

    Raises:
        OutputError: The directory contains other files than those of a run, or cannot be written.
    """
    check_usable(folder, overwrite=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _mark(folder)
        for name in _own_names(folder):  # of which best.pt is the first
            new, path = run / name, folder / name
            if _leads_elsewhere(folder, name):
                continue
            if name == CONFIG:
                write_text(path, config)
            elif not exists(new):
                path.unlink(missing_ok=True)
            elif not (name.endswith(".pt") and _linked(new, path)):
                _copied(new, path)
    except OSError as error:
        raise OutputError(
            error.strerror or str(error), kind="output.unwritable", key="output_dir", path=folder
        ) from error


def _linked(source: Path, path: Path) -> bool:
    """Replace a file with a hard link to another one, if the file system supports links."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
    except OSError:
        return False
    temporary.replace(path)
    return True


def _copied(source: Path, path: Path) -> None:
    with source.open("rb") as file:
        write_atomically(path, lambda target: shutil.copyfileobj(file, target))


def remove(folder: Path) -> None:
    """Remove a run: its files, and the directory with its marker unless it contains others.

    Raises:
        OutputError: The directory contains no run but other files, or cannot be written.
    """
    prepare(folder, overwrite=True)
    try:
        if [path.name for path in folder.iterdir()] == [MARKER]:
            (folder / MARKER).unlink()
            folder.rmdir()
    except OSError as error:
        raise OutputError(
            error.strerror or str(error), kind="output.unwritable", key="output_dir", path=folder
        ) from error


def was_launched_as(folder: Path, launch: str) -> bool:
    """Return whether processes that were launched under this name began the run in a directory."""
    try:
        return (folder / LAUNCH).read_text(encoding="utf-8") == launch
    except (OSError, ValueError):
        return False


def _mark(folder: Path) -> None:
    """Write the marker, first and in place: if killed, the directory is empty or marked."""
    marker = folder / MARKER
    try:
        with marker.open("x", encoding="ascii") as file:
            file.write("The other files here were written by finetune.\n")
    except FileExistsError:
        pass
    except OSError:
        marker.unlink(missing_ok=True)
        raise


def _leads_elsewhere(folder: Path, name: str) -> bool:
    """Whether a directory between the run directory and the file is a symlink: the file would then
    belong to another directory."""
    inner = Path(name).parents
    return any((folder / parent).is_symlink() for parent in inner if parent != Path())
