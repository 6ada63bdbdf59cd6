"""Output of ``embed``: files of embeddings, and the summary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from finetune.core.errors import ConfigError
from finetune.core.files import refuse_to_replace, write_atomically, write_csv
from finetune.core.text import did_you_mean, mib, plural
from finetune.report.layout import Document, Field, Fields, document, labelled
from finetune.results.evaluation import EmbedResult

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of images, in the order of the images.

    Attributes:
        labels, splits: Class and split of each image; empty strings where they are not known.
        predicted: Predicted class of each image; None without a trained network.
        vectors: ``(n, d)`` float32.
    """

    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    predicted: Sequence[str] | None
    vectors: NDArray[np.float32]

    @property
    def words(self) -> dict[str, Sequence[str]]:
        """Columns of text by name."""
        columns = {"path": self.paths, "label": self.labels, "split": self.splits}
        return columns if self.predicted is None else {**columns, "predicted": self.predicted}


Writer = Callable[[Embeddings], Path]
"""Function that writes a file of embeddings and returns its path."""


def open_writer(path: Path, *, overwrite: bool) -> Writer:
    """Return the function that writes embeddings in the format that the name's ending says.

    Raises:
        ConfigError: The ending is unknown, or pyarrow is not installed.
        OutputError: The file exists without ``overwrite``, or its folder is missing.
    """
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise ConfigError(
            f"the name must end in {', '.join(_FORMATS)}",
            kind="config.invalid_value",
            key="--output",
            path=path,
            to_do=did_you_mean(ending, _FORMATS),
        )
    if ending == ".parquet":
        _pyarrow()
    refuse_to_replace(path, overwrite=overwrite)

    def write(embeddings: Embeddings) -> Path:
        _FORMATS[ending](path, embeddings)
        return path

    return write


def _write_npz(path: Path, embeddings: Embeddings) -> None:
    import numpy as np

    # Texts are arrays of fixed-width characters, which load without pickle.
    words: dict[str, Any] = {
        name: np.array(column, np.str_) for name, column in embeddings.words.items()
    }
    write_atomically(path, lambda file: np.savez(file, **words, embedding=embeddings.vectors))


def _write_csv(path: Path, embeddings: Embeddings) -> None:
    def rows() -> Iterator[tuple[str, ...]]:
        for *words, vector in zip(*embeddings.words.values(), embeddings.vectors, strict=True):
            # Nine digits give the same float32 when they are read.
            yield (*words, *(f"{value:.9g}" for value in vector.tolist()))

    numbers = [f"embedding_{number}" for number in range(embeddings.vectors.shape[1])]
    write_csv(path, [*embeddings.words, *numbers], rows())


def _write_parquet(path: Path, embeddings: Embeddings) -> None:
    arrow, parquet = _pyarrow()
    columns = {
        # Parquet has UTF-8 alone; other bytes of a file's name are replaced.
        name: arrow.array(
            [word.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for word in column],
            arrow.string(),
        )
        for name, column in embeddings.words.items()
    }
    values = arrow.array(embeddings.vectors.reshape(-1), arrow.float32())
    columns["embedding"] = arrow.FixedSizeListArray.from_arrays(values, embeddings.vectors.shape[1])

    def write(file: IO[bytes]) -> None:
        parquet.write_table(arrow.table(columns), file)

    write_atomically(path, write)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            ".parquet files need the package pyarrow, which is not installed",
            kind="config.missing_package",
            to_do="install it with `python -m pip install 'finetune-vision[embed]'`, or write .npz "
            "or .csv",
        ) from None
    return pyarrow, parquet


_FORMATS = {".npz": _write_npz, ".csv": _write_csv, ".parquet": _write_parquet}


def render_embed(result: EmbedResult) -> Document:
    """Render the number and size of the embeddings, and the path of the file."""
    facts = [
        Field(
            "Embedded",
            f"{plural(result.num_images, 'image')} by {result.model}, {result.dimensions:,} values "
            f"each, in {result.elapsed_s:.2f} s",
        ),
        Field("Classes", f"known for {result.num_labelled:,} of them"),
    ]
    if result.unreadable:
        facts.append(Field("Left out", f"{len(result.unreadable):,} that cannot be read"))
    written = labelled("Written", result.files)
    return document(Fields([*facts, *written, Field("", mib(result.num_bytes))]))
