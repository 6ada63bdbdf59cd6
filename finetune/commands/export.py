"""``finetune export``: write the network for another runtime, and verify it there."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finetune.checkpoints import run_dir
from finetune.checkpoints.checkpoint import Checkpoint, Metadata, read_checkpoint
from finetune.core.errors import ConfigError, DataError, FinetuneError, OutputError
from finetune.core.files import set_mode
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.images import Images
from finetune.data.loading.decoding import read_photo
from finetune.data.sources.open import find_split
from finetune.inference.calibration import probabilities
from finetune.inference.export.describe import describe, readme
from finetune.inference.export.formats import check_packages, write
from finetune.inference.export.verify import answers_of, in_words, judge, shapes_of_all_kinds
from finetune.inference.limits import Distance
from finetune.inference.load import load_network, open_network
from finetune.inference.predictor import ADD_LIMITS, Predictor
from finetune.results.evaluation import ExportResult

IMAGES = 256
"""Default maximum number of photos that an export is compared on."""


def export(
    run: str,
    *,
    file_format: str,
    preprocessing: bool = True,
    output: Path | None = None,
    data: str | None = None,
    num_images: int = IMAGES,
    reporter: Reporter | None = None,
) -> ExportResult:
    """Write a checkpoint in another format, and keep it only if its outputs match ``eval``.

    Args:
        run: Run directory or checkpoint.
        file_format: Name of the format: onnx, exported-program or safetensors.
        preprocessing: Whether the export includes resize, crop and normalization; a safetensors
            file contains only weights.
        output: Output folder; by default ``export/FORMAT`` next to the checkpoint.
        data: Photos to compare on instead of the run's own.
        num_images: Maximum number of photos to compare on.

    Raises:
        CheckpointError, DataError, ModelError, OutputError.
        ResultError: the outputs of the export differ from those of ``eval``; nothing is kept.
    """
    start = time.perf_counter()
    reporter = reporter or SilentReporter()
    _refuse_without_effect(file_format, preprocessing=preprocessing)
    inside = preprocessing and file_format != "safetensors"
    check_packages(file_format)
    path = run_dir.checkpoint_of(run)
    folder = path.parent / run_dir.EXPORT / file_format if output is None else output
    _refuse_foreign_files(folder, file_format)
    reporter.status("loading the checkpoint")
    checkpoint = read_checkpoint(path)
    state, metadata, limits = checkpoint.model, checkpoint.metadata, checkpoint.limits
    if limits is None and file_format == "onnx":
        reporter.say(
            f"the export gives only probabilities, since the checkpoint has no limits; {ADD_LIMITS}"
        )
    photos = _photos(metadata, data, num_images, reporter)
    expected = _expected(path, checkpoint, photos, reporter)
    about = describe(
        metadata, preprocessing=inside, limits=limits if file_format == "onnx" else None
    )
    network = load_network(path, state, metadata).eval()
    with _scratch(folder) as scratch:
        reporter.status(f"writing {metadata.model_name} as {file_format}")
        answer, runtime, dynamic = write(
            file_format, scratch, network, metadata, about, preprocessing=inside, limits=limits
        )
        found = answers_of(answer, photos, metadata.preprocessing, inside=inside, reporter=reporter)
        agreements = [
            judge(found, expected[precision], photos, runtime=runtime, precision=precision)
            for precision in expected
        ]
        model_file = run_dir.EXPORTED[file_format]
        checked = "; ".join(map(in_words, agreements))
        page = readme(metadata, model_file, preprocessing=inside, limits=limits, agreement=checked)
        (scratch / run_dir.EXPORT_README).write_text(page, encoding="utf-8")
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


def _photos(metadata: Metadata, data: str | None, most: int, reporter: Reporter) -> list[Tensor]:
    """Return decoded photos, evenly spaced over the validation images, of all orientations.

    If no validation images were held out, the training images are used.
    """
    config = metadata.config
    nothing_held_out = data is None and not config.data.val_fraction
    try:
        images = find_split(
            config.data,
            "train" if nothing_held_out else "val",
            class_names=metadata.class_names,
            seed=config.seed,
            root=data,
            reporter=reporter,
        )
    except DataError as error:
        raise error.at(
            also="An export is verified on images of known classes; name some with --data"
        ) from error
    count, levels = min(most, len(images)), metadata.preprocessing.levels
    photos = []
    for at in range(count):
        try:
            photos.append(read_photo(images.paths[at * len(images) // count], levels))
        except Exception:  # noqa: S112  # a broken file is skipped here; eval reports it
            continue
    taken = shapes_of_all_kinds(photos) if photos else []
    if not taken:
        raise DataError(
            "none of the images to verify the export on can be read",
            kind="data.undecodable",
            source="export",
            to_do="name other images with --data",
        )
    return taken


def _expected(
    path: Path, checkpoint: Checkpoint, photos: Sequence[Tensor], reporter: Reporter
) -> dict[str, list[dict[str, Tensor]]]:
    """Return the probabilities and distances of ``eval`` and ``predict``, by precision.

    If the run computes in another precision, those in float32 are returned as well.
    """
    metadata, limits = checkpoint.metadata, checkpoint.limits
    own = metadata.config
    plain = own.with_values({"runtime.precision": "float32", "runtime.live_precision": "float32"})
    runtime = own.runtime
    if plain == own:
        configs = {"float32": own}
    else:
        half = runtime.precision if runtime.precision != "float32" else runtime.live_precision
        configs = {half: own, "float32": plain}
    none = Images((), (), metadata.class_names)
    expected = {}
    for precision, config in configs.items():
        changed = metadata.model_copy(update={"config": config})
        opened = open_network(path, checkpoint.model, changed, none, reporter=reporter)
        blocks = list(Predictor(opened).embeddings(photos))
        logits = torch.cat([block.logits for block in blocks])
        found = {"probabilities": probabilities(logits, metadata.temperature)}
        if limits is not None:
            found["distance"] = Distance(limits)(torch.cat([block.vectors for block in blocks]))
        expected[precision] = [
            dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)
        ]
    return expected


class _scratch:  # noqa: N801
    """Temporary folder in the output folder for an unverified export; always removed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.folder))
        except OSError as error:
            raise OutputError(
                error.strerror or str(error),
                kind="output.unwritable",
                source="export",
                path=self.folder,
            ) from error
        return self.path

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if error is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # succeeds only if it is empty
        if isinstance(error, OSError) and not isinstance(error, FinetuneError):
            raise OutputError(
                f"cannot be written: {error.strerror or error}",
                kind="output.unwritable",
                source="export",
                path=self.folder,
            ) from error


def _refuse_foreign_files(folder: Path, file_format: str) -> None:
    """Raise if the folder has a README but no export: it is a file of the user."""
    page = folder / run_dir.EXPORT_README
    if page.exists() and not (folder / run_dir.EXPORTED[file_format]).exists():
        raise OutputError(
            "exists already and was not written by export",
            kind="output.exists",
            source="export",
            path=page,
            to_do="choose another folder with --output",
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
            "has no effect on safetensors, which contain only weights",
            kind="config.no_effect",
            source="export",
            key="--no-preprocessing",
            to_do="remove it",
        )
