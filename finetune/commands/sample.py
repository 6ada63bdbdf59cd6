"""``finetune sample``: draw a small data set to try the commands with."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

from finetune.core.errors import OutputError
from finetune.core.files import exists, is_folder
from finetune.core.reporter import Reporter
from finetune.data.sources.demo import TRAIN_PER_CLASS, VAL_PER_CLASS, draw_demo_set
from finetune.data.sources.demo_drawing import FIGURES
from finetune.results.data import SampleSet


def sample(folder: Path, *, reporter: Reporter | None = None) -> SampleSet:
    """Draw the demo data set into a new folder, with a test split.

    Raises:
        OutputError: The folder contains files, or cannot be written.
    """
    if exists(folder) and not (is_folder(folder) and not any(folder.iterdir())):
        raise OutputError(
            "already exists" if is_folder(folder) else "is a file, not a folder",
            kind="output.exists",
            path=folder,
            to_do="give the name of a new folder",
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Renamed once it is whole: half a data set looks like one.
        scratch = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
        try:
            drawn = scratch / "drawn"
            drawn.mkdir()
            draw_demo_set(
                drawn,
                train_per_class=TRAIN_PER_CLASS,
                val_per_class=VAL_PER_CLASS,
                test_per_class=VAL_PER_CLASS,
                reporter=reporter,
            )
            if exists(folder):
                folder.rmdir()
            drawn.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise OutputError(
            error.strerror or str(error), kind="output.unwritable", path=folder
        ) from error
    name = shlex.quote(str(folder))
    config = shlex.quote(f"{folder.name}.yaml")
    return SampleSet(
        folder=str(folder),
        class_names=tuple(sorted(FIGURES)),
        num_train=len(FIGURES) * TRAIN_PER_CLASS,
        num_val=len(FIGURES) * VAL_PER_CLASS,
        num_test=len(FIGURES) * VAL_PER_CLASS,
        next=(
            f"finetune check-data {name}",
            f"finetune init {name} --weights bundled --output {config}",
            f"finetune train {config}",
        ),
    )
