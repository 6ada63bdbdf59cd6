"""``finetune predict``: label image files, folders and lists of paths."""

from __future__ import annotations

import codecs
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from finetune.checkpoints.run_dir import checkpoint_of, is_run, nearest_run
from finetune.core.errors import CheckpointError, ConfigError, DataError, address_problem
from finetune.core.files import exists, expand_user, is_folder
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.images import near, passed_over, shown
from finetune.data.levels import warn_of_levels
from finetune.data.sources.folders import files_of_class
from finetune.data.sources.layout_checks import system_note
from finetune.inference.limits import has_limit
from finetune.inference.predictor import ADD_LIMITS, Predictor, open_predictor
from finetune.results.evaluation import Prediction, PredictSummary, Unreadable

_NO_LIMITS = (
    "photos unlike the training photos are not marked, since the checkpoint has no limits; "
    f"{ADD_LIMITS}"
)
_MOST_NAMED = 10
_MOST_SHOWN = 3
_LISTS = frozenset({".txt", ".lst", ".list"})
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # must precede UTF-16, whose mark is a prefix of it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks, which editors and PowerShell write at the start of a text file."""


def predict(  # noqa: PLR0913
    run: str,
    paths: Iterable[str],
    *,
    show: Callable[[Sequence[str], Prediction | Unreadable], None],
    top: int | None = 5,
    threshold: float = 0.0,
    coverage: float | None = None,
    batch_size: int | None = None,
    reporter: Reporter | None = None,
) -> PredictSummary:
    """Label images; each prediction is passed to ``show`` as soon as its batch is computed.

    Args:
        run: Run directory or checkpoint.
        paths: Image files, and folders that are searched recursively.
        show: Callback that receives the class names and one prediction, in the order of the paths.
        top: Number of classes reported per image; None for all.
        threshold: Probability below which a prediction counts as unsure.
        coverage: Coverage of the prediction sets; None gives none.
        batch_size: Number of images per batch; by default that of the run.

    Raises:
        CheckpointError.
        DataError: there are no images, or none can be read.
    """
    reporter = reporter or SilentReporter()
    paths = list(paths)
    refuse_swapped(run, paths, command="predict")
    reporter.status("listing the images")
    files = list_images(paths, reporter, command="predict", purpose="classify")
    reporter.status("loading the network")
    predictor = open_predictor(run, batch_size=batch_size, keeps=True, reporter=reporter)
    warn_of_levels(predictor.levels, files, reporter)
    names = predictor.class_names
    start = time.perf_counter()
    answers = predictor.stream(
        files,
        top=len(names) if top is None else top,
        threshold=threshold,
        coverage=coverage,
    )
    unsure = unlike = in_sets = 0
    unreadable = []
    for answer in reporter.track(answers, "predict", total=len(files)):
        show(names, answer)
        if isinstance(answer, Unreadable):
            unreadable.append((answer.path, answer.reason))
        else:
            unsure += answer.unsure
            unlike += bool(answer.unlike)
            in_sets += len(answer.prediction_set or ())
    elapsed_s = time.perf_counter() - start
    if predictor.feature_counts is not None:
        reporter.say(predictor.feature_counts.in_words)
    report_unreadable(unreadable, len(files), reporter, command=f"finetune predict {run}")
    summary = _summary(run, predictor, len(files), unsure, unreadable, elapsed_s)
    if predictor.limits is None:
        reporter.say(_NO_LIMITS)
        return summary
    record = predictor.limits.record
    return replace(
        summary,
        num_unlike=unlike if has_limit(record) else None,
        false_alarms=record.rate,
        calibration_images=record.images,
        coverage=coverage,
        mean_set_size=None if coverage is None else in_sets / summary.num_images,
    )


def refuse_swapped(run: str, paths: Sequence[str], *, command: str) -> None:
    """Check that the run has a checkpoint before images are listed: it may be one of the paths.

    Raises:
        ConfigError: A run is among the paths instead.
        CheckpointError: There is none.
    """
    if is_run(Path(run)):
        return
    runs = [path for path in paths if is_run(Path(path))]
    if runs and address_problem(run) is None:
        images = [run, *(path for path in paths if path != runs[0])]
        line = " ".join(["finetune", command, *map(shlex.quote, [runs[0], *images[:_MOST_SHOWN]])])
        more = " …" if len(images) > _MOST_SHOWN else ""
        raise ConfigError(
            f"{runs[0]} is a run, and {run} is none",
            kind="config.swapped_arguments",
            source=command,
            to_do=f"Give the run first: {line}{more}",
        )
    try:
        checkpoint_of(run)
    except CheckpointError as error:
        if not is_folder(Path(run)) or nearest_run(Path(run)):
            raise
        to_do = f"The run comes first: finetune {command} RUN IMAGES"
        raise error.at(to_do=to_do) from None


def list_images(
    paths: Iterable[str], reporter: Reporter, *, command: str, purpose: str
) -> list[str]:
    """Return the images at the paths, as `image_files` yields them.

    Args:
        command: Name of the command in the error.
        purpose: What the command does to images, for the error.

    Raises:
        DataError: there are none.
    """
    files = list(image_files(paths, reporter))
    if not files:
        raise DataError(
            f"no images to {purpose}",
            kind="data.no_images",
            source=command,
            to_do="give image files, or folders of images",
        )
    return files


def image_files(paths: Iterable[str], reporter: Reporter) -> Iterator[str]:
    """Yield each file unchanged, and for each folder the images below it in name order."""
    for path in map(_meant, paths):
        if not is_folder(Path(path)):
            yield path
            continue
        files = files_of_class(Path(path))
        if not files.images:
            reporter.warn(f"{shown(path)}: contains no images")
        for said in passed_over(files.links, files.misnamed):
            reporter.warn(f"{shown(path)}: {said}")
        for note in system_note(shown(path), files.system, Path(path)):
            reporter.warn(note)
        yield from files.images


def paths_of_list(content: bytes) -> list[str]:
    """Return the paths in a list with one path per line.

    The list is encoded in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark. Bytes that are not
    valid UTF-8 are kept, since file names may contain them. Paths that end with NUL bytes are also
    read if all of them exist.

    Raises:
        DataError: the list contains NUL bytes that do not end paths, or cannot be decoded.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            content = _as_utf8(content, mark, encoding)
            break
    if b"\0" in content:
        paths = [os.fsdecode(path) for path in content.split(b"\0") if path]
        if all(map(os.path.lexists, paths)):  # as written by find -print0
            return paths
        raise DataError(
            "the list contains NUL bytes",
            kind="data.not_text",
            key="-",
            to_do="save it as UTF-8, with one path per line",
        )
    content = content.replace(b"\r\n", b"\n")
    separator = b"\n" if b"\n" in content else b"\r"
    return [os.fsdecode(line) for line in content.split(separator) if line.strip()]


def _as_utf8(content: bytes, mark: bytes, encoding: str) -> bytes:
    if encoding == "utf-8":
        return content[len(mark) :]
    try:
        return content.decode(encoding).encode()
    except UnicodeError as error:
        raise DataError(
            f"the list has a byte-order mark of {encoding.upper()}, but is not: {error}",
            kind="data.not_text",
            key="-",
            to_do="save it as UTF-8, with one path per line",
        ) from error


def _meant(path: str) -> str:
    """Return the first variant of a path that exists, or the path as given.

    Lists written by other programs may contain spaces, quotes, ``~`` or backslashes.
    """
    bare = path.replace("\ufeff", "").strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        bare = bare[1:-1]
    possible = (path, bare, str(expand_user(bare)), bare.replace("\\", "/"))
    return next(filter(os.path.lexists, possible), path)


def report_unreadable(
    unreadable: Sequence[tuple[str, str]], total: int, reporter: Reporter, *, command: str
) -> None:
    """Warn of images that cannot be read, with their reasons.

    Args:
        total: Number of all images.
        command: Command line that takes a list of images on stdin.

    Raises:
        DataError: none of the images can be read.
    """
    if not unreadable:
        return
    if len(unreadable) == total:
        path, reason = unreadable[0]
        more = f"; none of the {total:,} files can be read" if total > 1 else ""
        raise DataError(
            f"cannot be read: {reason}{more}",
            kind="data.undecodable",
            path=path,
            to_do=_hint(command, path),
        )
    for path, reason in unreadable[:_MOST_NAMED]:
        hint = _hint(command, path)
        reporter.warn(f"{shown(path)}: cannot be read: {reason}{'. ' if hint else ''}{hint}")
    if len(unreadable) > _MOST_NAMED:
        reporter.warn(f"… and {len(unreadable) - _MOST_NAMED:,} more cannot be read")


def _hint(command: str, path: str) -> str:
    """Return what a path that is not of an image probably means, or "" if nothing is known."""
    if not exists(Path(path)):
        return near(Path(path)).strip()
    if Path(path).suffix.lower() not in _LISTS or not os.path.isfile(path):  # noqa: PTH113
        return ""
    return f"To read the images that it lists: {command} - < {shown(path)}"


def _summary(
    run: str,
    predictor: Predictor,
    total: int,
    unsure: int,
    unreadable: Sequence[tuple[str, str]],
    elapsed_s: float,
) -> PredictSummary:
    return PredictSummary(
        checkpoint=run,
        model=predictor.model_name,
        num_images=total - len(unreadable),
        num_unsure=unsure,
        unreadable=tuple(unreadable),
        elapsed_s=elapsed_s,
        images_per_s=(total - len(unreadable)) / elapsed_s,
        features=predictor.feature_counts,
    )
