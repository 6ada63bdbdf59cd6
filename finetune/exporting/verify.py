"""Whether an export answers as ``eval`` does, on real photos of every shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from finetune.config import PreprocessingConfig
from finetune.data.transforms import build_fit, normalise
from finetune.errors import ResultError
from finetune.eval_results import Agreement
from finetune.exporting.formats import Answer
from finetune.exporting.graph import LARGEST_SIDE, SMALLEST_SIDE
from finetune.progress import Progress
from finetune.runtime import one_thread_a_core

TOLERANCES = {"float32": 0.02, "bfloat16": 0.1}
"""Largest difference of a probability, by what ``eval`` computes in. The export is float32, and
resizes within two of 255 levels of what ``eval`` does: 0.005 at most on 155 photos. bfloat16 rounds
each layer to 8 bits, which alone moved a calibrated probability by 0.04; float32 is compared too.
"""


def shapes_of_all_kinds(photos: Sequence[Tensor]) -> list[Tensor]:
    """The photos that an export takes, and of the first a lying, a standing and a square part: a
    size that was baked into a graph shows on another aspect ratio alone."""
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
    progress: Progress,
) -> list[Tensor]:
    """Probabilities ``(classes,)`` of each photo, which goes through the export alone; and of the
    last one in a batch of three.

    Args:
        photos: uint8 ``(3, H, W)`` each.
        inside: Preprocessing is part of the export; else it is done here.
    """
    transform = build_fit(preprocessing)

    def prepared(photo: Tensor) -> Tensor:
        return photo[None] if inside else normalise(transform(photo)[None], preprocessing)

    with one_thread_a_core() as pool:
        answers = pool.map(lambda photo: answer(prepared(photo).contiguous())[0], photos)
        found = list(progress.track(answers, "compare", total=len(photos)))
        batch = prepared(photos[-1])
        return [*found, answer(torch.cat([batch, batch, batch]))[1]]


def judge(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    photos: Sequence[Tensor],
    *,
    runtime: str,
    precision: str,
) -> Agreement:
    """How far the answers are from those of ``eval``.

    Args:
        found: As `answers_of` gives them.
        expected: Probabilities ``(classes,)`` of each photo, from the code of ``eval``.
        precision: In which ``eval`` computed.

    Raises:
        ResultError: too far.
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
    if not float(largest) <= agreement.tolerance:  # so that a not-a-number fails as well
        raise ResultError(f"export: {in_words(agreement)}. Nothing was written.")
    return agreement


def in_words(agreement: Agreement) -> str:
    """The figures in a sentence, with what was allowed."""
    return (
        f"on {agreement.num_images:,} photos {agreement.runtime} and eval in "
        f"{agreement.precision} give the same class for {agreement.same_top1:,}; probabilities "
        f"differ by {agreement.max_difference:.2g} at most, {agreement.tolerance:g} being allowed"
    )
