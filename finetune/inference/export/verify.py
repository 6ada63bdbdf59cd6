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
) -> list[Tensor]:
    """Run an export on each photo alone, and on the last photo in a batch of three.

    Args:
        answer: Function that runs the export.
        photos: Photos as uint8 pixels ``(3, H, W)``.
        preprocessing: Preprocessing of the network.
        inside: Whether preprocessing is part of the export; otherwise it is done here.
        reporter: Reporter of the progress.

    Returns:
        Probabilities ``(classes,)`` of each photo, then those from the batch.
    """
    transform = build_fit(preprocessing)

    def stage_setup(photo: Tensor) -> Tensor:
        return photo[None] if inside else normalise(transform(photo)[None], preprocessing)

    with one_thread_a_core() as pool:
        answers = pool.map(lambda photo: answer(stage_setup(photo).contiguous())[0], photos)
        found = list(reporter.track(answers, "compare", total=len(photos)))
        batch = stage_setup(photos[-1])
        return [*found, answer(torch.cat([batch, batch, batch]))[1]]


def judge(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    photos: Sequence[Tensor],
    *,
    runtime: str,
    precision: str,
) -> Agreement:
    """Compare the outputs of an export with those of ``eval``.

    Args:
        found: Probabilities returned by `answers_of`.
        expected: Probabilities ``(classes,)`` of each photo, computed as in ``eval``.
        photos: Photos that were compared.
        runtime: Name of the export's runtime.
        precision: Precision that ``eval`` computed in.

    Raises:
        ResultError: a probability differs by more than the tolerance.
    """
    pairs = list(zip(found, [*expected, expected[-1]], strict=True))
    largest = torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max()
    agreement = Agreement(
        num_images=len(photos),
        runtime=runtime,
        precision=precision,
        max_difference=float(largest),
        tolerance=TOLERANCES[precision],
        same_top1=sum(bool(ours.argmax() == theirs.argmax()) for ours, theirs in pairs[:-1]),
        shapes=tuple({(int(p.shape[1]), int(p.shape[2])): None for p in photos})[:20],
    )
    if not float(largest) <= agreement.tolerance:  # written so that NaN fails too
        raise ResultError(
            in_words(agreement),
            kind="result.export_differs",
            source="export",
            to_do="Nothing was written",
        )
    return agreement


def in_words(agreement: Agreement) -> str:
    """Describe the agreement and its tolerance in a sentence."""
    return (
        f"on {agreement.num_images:,} photos {agreement.runtime} and eval in "
        f"{agreement.precision} give the same class for {agreement.same_top1:,}; probabilities "
        f"differ by at most {agreement.max_difference:.2g} (allowed: {agreement.tolerance:g})"
    )
