"""Verification of an export against ``eval``, on photos of several shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.config.schema import PreprocessingConfig
from finetune.core.errors import ResultError
from finetune.core.reporter import Reporter
from finetune.core.threads import one_thread_a_core
from finetune.data.loading.transforms import build_fit, normalise
from finetune.inference.export.formats import Answer
from finetune.inference.export.graph import LARGEST_SIDE, SMALLEST_SIDE
from finetune.results.evaluation import Agreement

TOLERANCES = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.1}
"""Maximum difference of a probability, by the precision of ``eval``.

The export is float32, and its resizing differs from that of ``eval`` by at most two of 255 levels:
0.005 at most on 155 photos. bfloat16 rounds each layer to 8 bits, which alone changed a calibrated
probability by 0.04, so float32 is compared too.
"""


def shapes_of_all_kinds(photos: Sequence[Tensor]) -> list[Tensor]:
    """Return the photos that an export accepts, and landscape, portrait and square crops of the
    first.

    A size that tracing made constant is noticed only with another aspect ratio.
    """
    first = photos[0]
    height, width = first.shape[1:]
    side = min(height, width)
    parts = [first[:, : side * 2 // 3], first[:, :, : side * 2 // 3], first[:, :side, :side]]
    every = [*photos, *(part.contiguous() for part in parts)]
    return [
        photo
        for photo in every
        if min(photo.shape[1:]) >= SMALLEST_SIDE and max(photo.shape[1:]) <= LARGEST_SIDE
    ]


def answers_of(
    answer: Answer,
    photos: Sequence[Tensor],
    preprocessing: PreprocessingConfig,
    *,
    inside: bool,
    reporter: Reporter,
) -> list[dict[str, Tensor]]:
    """Run an export on each photo alone, and on the last photo in a batch of three.

    Args:
        answer: Function that runs the export.
        photos: Photos as uint8 pixels ``(3, H, W)``.
        preprocessing: Preprocessing of the network.
        inside: Whether preprocessing is part of the export; otherwise it is done here.
        reporter: Reporter of the progress.

    Returns:
        Outputs for each photo by name, such as ``probabilities`` ``(classes,)``, then those from
        the batch.
    """
    transform = build_fit(preprocessing)

    def stage_setup(photo: Tensor) -> Tensor:
        return photo[None] if inside else normalise(transform(photo)[None], preprocessing)

    with one_thread_a_core() as pool:
        answers = pool.map(lambda photo: _row(answer(stage_setup(photo).contiguous()), 0), photos)
        found = list(reporter.track(answers, "compare", total=len(photos)))
        batch = stage_setup(photos[-1])
        return [*found, _row(answer(torch.cat([batch, batch, batch])), 1)]


def _row(outputs: dict[str, Tensor], at: int) -> dict[str, Tensor]:
    """Return the outputs for one image of a batch."""
    return {name: rows[at] for name, rows in outputs.items()}


def judge(
    found: Sequence[dict[str, Tensor]],
    expected: Sequence[dict[str, Tensor]],
    photos: Sequence[Tensor],
    *,
    runtime: str,
    precision: str,
) -> Agreement:
    """Compare the outputs of an export with those of ``eval``.

    Args:
        found: Outputs returned by `answers_of`.
        expected: Outputs for each photo, computed as in ``eval`` and ``predict``.
        photos: Photos that were compared.
        runtime: Name of the export's runtime.
        precision: Precision that ``eval`` computed in.

    Raises:
        ResultError: a probability or a distance differs by more than its tolerance.
    """
    pairs = list(zip(found, [*expected, expected[-1]], strict=True))
    largest = _largest_difference(pairs, "probabilities")
    distance = _largest_difference(pairs, "distance") if "distance" in found[0] else None
    allowed = TOLERANCES[precision]
    agreement = Agreement(
        num_images=len(photos),
        runtime=runtime,
        precision=precision,
        max_difference=largest,
        tolerance=allowed,
        same_top1=sum(
            bool(ours["probabilities"].argmax() == theirs["probabilities"].argmax())
            for ours, theirs in pairs[:-1]
        ),
        shapes=tuple({(int(p.shape[1]), int(p.shape[2])): None for p in photos})[:20],
        max_distance_difference=distance,
        same_unlike=None
        if distance is None
        else sum(
            bool(ours["unlike"]) == bool(theirs["distance"] > 1) for ours, theirs in pairs[:-1]
        ),
    )
    # Written so that NaN fails too.
    if not (largest <= allowed and (distance is None or distance <= allowed)):
        raise ResultError(
            in_words(agreement),
            kind="result.export_differs",
            source="export",
            to_do="Nothing was written",
        )
    return agreement


def _largest_difference(
    pairs: Sequence[tuple[dict[str, Tensor], dict[str, Tensor]]], name: str
) -> float:
    differences = [(ours[name] - theirs[name]).abs().max() for ours, theirs in pairs]
    return float(torch.stack(differences).max())


def in_words(agreement: Agreement) -> str:
    """Describe the agreement and its tolerance in a sentence."""
    text = (
        f"on {agreement.num_images:,} photos {agreement.runtime} and eval in "
        f"{agreement.precision} give the same class for {agreement.same_top1:,}; probabilities "
        f"differ by at most {agreement.max_difference:.2g}"
    )
    if agreement.max_distance_difference is not None:
        text += f", distances by {agreement.max_distance_difference:.2g}"
    return f"{text} (allowed: {agreement.tolerance:g})"
