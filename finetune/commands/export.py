"""``finetune export``: the network for other runtimes, checked in them before it is kept."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune import run_folder
from finetune.checkpoint import Metadata, load_checkpoint
from finetune.data.decoding import read_photo
from finetune.data.images import Images
from finetune.data.sources import find_split
from finetune.errors import ConfigError, DataError, FinetuneError, OutputError
from finetune.eval_results import ExportResult
from finetune.exporting.describe import describe, readme
from finetune.exporting.formats import check_packages, write
from finetune.exporting.verify import answers_of, in_words, judge, shapes_of_all_kinds
from finetune.files import set_mode
from finetune.opening import load_network, open_network
from finetune.predictor import Predictor
from finetune.progress import Progress, Silent
from finetune.temperature import probabilities

IMAGES = 256
"""Photos that an export is compared on, where there are so many."""


def export(
    run: str,
    *,
    file_format: str,
    preprocessing: bool = True,
    output: Path | None = None,
    data: str | None = None,
    num_images: int = IMAGES,
    progress: Progress | None = None,
) -> ExportResult:
    """Write a checkpoint in another format, and keep it where it answers as ``eval`` does.

    Args:
        run: A run's folder, or a checkpoint.
        file_format: onnx, exported-program or safetensors.
        preprocessing: Resize, crop and normalisation inside; safetensors hold weights alone.
        output: A folder; by default ``export/FORMAT`` beside the checkpoint.
        data: Photos to compare on, where the run's own are absent.

    Raises:
        CheckpointError, DataError, ModelError, OutputError.
        ResultError: the export answers otherwise than ``eval``; nothing was kept.
    """
    start = time.perf_counter()
    progress = progress or Silent()
    _refuse_without_effect(file_format, preprocessing=preprocessing)
    inside = preprocessing and file_format != "safetensors"
    check_packages(file_format)
    path = run_folder.checkpoint_of(run)
    folder = path.parent / run_folder.EXPORT / file_format if output is None else output
    _refuse_foreign_files(folder, file_format)
    state, metadata = load_checkpoint(path)
    photos = _photos(metadata, data, num_images, progress)
    expected = _expected(path, state, metadata, photos, progress)
    about = describe(metadata, preprocessing=inside)
    network = load_network(path, state, metadata).eval()
    with _scratch(folder) as scratch:
        progress.say(f"{metadata.model_name} is written as {file_format}")
        answer, runtime, dynamic = write(
            file_format, scratch, network, metadata, about, preprocessing=inside
        )
        found = answers_of(answer, photos, metadata.preprocessing, inside=inside, progress=progress)
        agreements = [
            judge(found, expected[precision], photos, runtime=runtime, precision=precision)
            for precision in expected
        ]
        model_file = run_folder.EXPORTED[file_format]
        checked = "; ".join(map(in_words, agreements))
        page = readme(metadata, model_file, preprocessing=inside, agreement=checked)
        (scratch / run_folder.EXPORT_README).write_text(page, encoding="utf-8")
        files = _move(scratch, folder)
    return ExportResult(
        checkpoint=str(path),
        model=metadata.model_name,
        format=file_format,
        preprocessing=inside,
        dynamic=dynamic,
        files=tuple(map(str, files)),
        num_bytes=sum(file.stat().st_size for file in files),
        agreement=agreements[0],
        in_float32=agreements[1] if len(agreements) > 1 else None,
        elapsed_s=time.perf_counter() - start,
    )


def _photos(metadata: Metadata, data: str | None, most: int, progress: Progress) -> list[Tensor]:
    """Decoded photos from all over the validation images, some of every orientation; where none
    were held out, from all over the training images."""
    config = metadata.config
    nothing_held_out = data is None and not config.data.val_fraction
    try:
        images = find_split(
            config.data,
            "train" if nothing_held_out else "val",
            class_names=metadata.class_names,
            seed=config.seed,
            root=data,
            progress=progress,
        )
    except DataError as error:
        raise DataError(
            f"{error} An export is kept only once it agrees with eval on photos: --data names "
            "some, of classes that training knows."
        ) from error
    count, levels = min(most, len(images)), metadata.preprocessing.levels
    photos = []
    for at in range(count):
        try:
            photos.append(read_photo(images.paths[at * len(images) // count], levels))
        except Exception:  # noqa: S112  # a broken file compares nothing; eval names it
            continue
    taken = shapes_of_all_kinds(photos) if photos else []
    if not taken:
        raise DataError("export: none of the photos to compare on can be read; --data names others")
    return taken


def _expected(
    path: Path,
    state: dict[str, Tensor],
    metadata: Metadata,
    photos: Sequence[Tensor],
    progress: Progress,
) -> dict[str, list[Tensor]]:
    """Probabilities from the network, form and batches of ``eval``, by precision; where that is
    bfloat16, in float32 as well."""
    runtime = metadata.config.runtime
    plain = runtime.model_copy(update={"precision": "float32", "live_precision": "float32"})
    forms = {"bfloat16": runtime, "float32": plain} if plain != runtime else {"float32": runtime}
    none = Images((), (), metadata.class_names)
    expected = {}
    for precision, form in forms.items():
        config = metadata.config.model_copy(update={"runtime": form})
        changed = metadata.model_copy(update={"config": config})
        opened = open_network(path, state, changed, none, known=False, progress=progress)
        logits = [logits for _, logits, _ in Predictor(opened).logits(photos)]
        expected[precision] = list(probabilities(torch.cat(logits), metadata.temperature))
    return expected


class _scratch:  # noqa: N801
    """A folder beside the output for what is not checked yet; gone afterwards, come what may."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.folder))
        except OSError as error:
            raise OutputError(f"export: {self.folder}: {error.strerror or error}") from error
        return self.path

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if error is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # only where it is empty, as it was made here
        if isinstance(error, OSError) and not isinstance(error, FinetuneError):
            raise OutputError(
                f"export: {self.folder}: cannot be written: {error.strerror or error}"
            ) from error


def _refuse_foreign_files(folder: Path, file_format: str) -> None:
    """A README that stands alone in a folder is somebody's own; beside an export it is ours."""
    page = folder / run_folder.EXPORT_README
    if page.exists() and not (folder / run_folder.EXPORTED[file_format]).exists():
        raise OutputError(
            f"export: {page}: exists, and is no export's; give --output another folder"
        )


def _move(scratch: Path, folder: Path) -> list[Path]:
    moved = []
    for file in sorted(scratch.iterdir()):
        set_mode(file, 0o644)
        moved.append(file.replace(folder / file.name))
    return moved


def _refuse_without_effect(file_format: str, *, preprocessing: bool) -> None:
    if file_format == "safetensors" and not preprocessing:
        raise ConfigError(
            "export: --no-preprocessing has no effect on safetensors, which hold weights alone; "
            "leave it out"
        )
