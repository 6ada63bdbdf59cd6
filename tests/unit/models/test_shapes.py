"""Tests of the faster passes on the meta device."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from helpers.builders import small_config

from finetune.models.build import build_skeleton, resolve_model
from finetune.models.shapes import ShapesOnly

Shape = tuple[int, ...] | None


def shapes(name: str, mode: Any) -> dict[str, Shape]:
    """Shapes of the logits and of every gradient."""
    spec = resolve_model(small_config(name).model)
    network = build_skeleton(spec, 3)
    next(network.parameters()).requires_grad_(False)
    crop = spec.preprocessing.crop
    with mode:
        logits = network(torch.empty(2, 3, crop, crop, device="meta"))
        logits.sum().backward()
    found: dict[str, Shape] = {"logits": tuple(logits.shape)}
    for path, parameter in network.named_parameters():
        found[path] = None if parameter.grad is None else tuple(parameter.grad.shape)
    return found


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "swin_t"])
def test_shapes_are_those_of_an_ordinary_pass(name: str) -> None:
    assert shapes(name, ShapesOnly()) == shapes(name, nullcontext())
