"""``finetune predict``: labels for files, folders and lists of them."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from finetune.data.folders import files_of_class
from finetune.data.images import passed_over, shown
from finetune.data.levels import warn_of_levels
from finetune.errors import DataError
from finetune.eval_results import Prediction, PredictSummary, Unreadable
from finetune.files import expand_user, is_folder
from finetune.predictor import Predictor, open_predictor
from finetune.progress import Progress, Silent

_MOST_NAMED = 10
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte-order marks: editors and PowerShell put them in front of a list."""


def predict(
    run: str,
    paths: Iterable[str],
    *,
    show: Callable[[Sequence[str], Prediction | Unreadable], None],
    top: int | None = 5,
    threshold: float = 0.0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> PredictSummary:
    """Label images; each answer goes to ``show`` as soon as its batch is computed.

    Args:
        run: A run's folder, or a checkpoint.
        paths: Files, and folders with all images below them.
        show: Is given the class names and an answer, in the order of the paths.
        top: So many classes are given for each image; None for all.
        threshold: Below this probability an answer is unsure.

    Raises:
        CheckpointError.
        DataError: there is no image, or none can be read.
    """
    progress = progress or Silent()
    files = list(image_files(paths, progress))
    if not files:
        raise DataError("predict: there is no image to label; give files, or folders of images")
    predictor = open_predictor(run, batch_size=batch_size, progress=progress)
    warn_of_levels(predictor.levels, files, progress)
    names = predictor.class_names
    start = time.perf_counter()
    answers = predictor.stream(files, top=len(names) if top is None else top, threshold=threshold)
    unsure = 0
    unreadable = []
    for answer in progress.track(answers, "predict", total=len(files)):
        show(names, answer)
        if isinstance(answer, Unreadable):
            unreadable.append((answer.path, answer.reason))
        else:
            unsure += answer.unsure
    elapsed_s = time.perf_counter() - start
    _report(unreadable, len(files), progress)
    return _summary(run, predictor, len(files), unsure, unreadable, elapsed_s)


def image_files(paths: Iterable[str], progress: Progress) -> Iterator[str]:
    """Every file as it is, every folder as the images below it, in order of their names."""
    for path in map(_meant, paths):
        if not is_folder(Path(path)):
            yield path
            continue
        files = files_of_class(Path(path))
        if not files.images:
            progress.warn(f"{shown(path)}: holds no images")
        for said in passed_over(files.links, files.misnamed):
            progress.warn(f"{shown(path)}: {said}")
        yield from files.images


def paths_of_list(content: bytes) -> list[str]:
    """The paths in a list, one a line.

    The list is in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark. Bytes that are not UTF-8
    are kept, since a file may be named by them.

    Raises:
        DataError: it is no such list.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            content = _as_utf8(content, mark, encoding)
            break
    if b"\0" in content:
        raise DataError(
            "predict: -: the list holds NUL bytes; save it as UTF-8, with one path a line"
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
            f"predict: -: the list begins as {encoding.upper()}, and is none: {error}; save it as "
            "UTF-8, with one path a line"
        ) from error


def _meant(path: str) -> str:
    """The path of something that is there: as given; else as lists of other programs may give it,
    between blanks or quotes, with ``~`` or with backslashes."""
    bare = path.replace("\ufeff", "").strip()
    if len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'":
        bare = bare[1:-1]
    possible = (path, bare, str(expand_user(bare)), bare.replace("\\", "/"))
    return next(filter(os.path.lexists, possible), path)


def _report(unreadable: Sequence[tuple[str, str]], total: int, progress: Progress) -> None:
    if not unreadable:
        return
    if len(unreadable) == total:
        path, reason = unreadable[0]
        more = f", and so on: none of {total:,} files can be read" if total > 1 else ""
        raise DataError(f"{shown(path)}: cannot be read: {reason}{more}")
    for path, reason in unreadable[:_MOST_NAMED]:
        progress.warn(f"{shown(path)}: cannot be read: {reason}")
    if len(unreadable) > _MOST_NAMED:
        progress.warn(f"… and {len(unreadable) - _MOST_NAMED:,} more cannot be read")


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
    )
