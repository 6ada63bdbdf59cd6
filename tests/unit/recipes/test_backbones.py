"""Tests of the choice of backbones by published accuracy and predicted time."""

from __future__ import annotations

import pytest
from torchvision import models

from finetune.config.model_registry import BUILDERS, family_of
from finetune.recipes.backbones import (
    CPU_FALLBACK,
    GPU_FALLBACK,
    PASS_S,
    SHORT_LIST,
    Machine,
    most_accurate,
    short_list,
)

LAPTOP, SERVER, GPU = Machine("cpu", 2), Machine("cpu", 64), Machine("cuda", 16)


@pytest.mark.parametrize(
    ("machine", "rows", "crop", "model"),
    [
        (LAPTOP, 643, None, "efficientnet_b4"),
        (LAPTOP, 7_315, None, "regnet_y_800mf"),
        (LAPTOP, 25_650, 128, "regnet_y_400mf"),
        (LAPTOP, 10**7, None, CPU_FALLBACK),
        (SERVER, 7_315, None, "efficientnet_v2_s"),
        (GPU, 10**7, None, GPU_FALLBACK),
    ],
)
def test_the_most_accurate_backbone_that_the_machine_computes_in_time(
    machine: Machine, rows: int, crop: int | None, model: str
) -> None:
    assert most_accurate(machine, rows, crop=crop).name == model


def test_no_backbone_that_is_as_fast_is_more_accurate() -> None:
    chosen = most_accurate(LAPTOP, 7_315)
    assert chosen.pass_s(LAPTOP, 7_315) <= PASS_S
    entry = models.get_model_weights(chosen.name).DEFAULT
    assert chosen.top1 == entry.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    assert chosen.multiply_adds == entry.meta["_ops"] * 1e9
    for name in BUILDERS:
        facts = models.get_model_weights(name).DEFAULT.meta
        if facts["_file_size"] <= 110 and facts["_metrics"]["ImageNet-1K"]["acc@1"] > chosen.top1:
            assert LAPTOP.pass_s(name, 7_315, 1e9 * facts["_ops"]) > PASS_S


def test_every_backbone_in_question_supports_the_size_of_small_images() -> None:
    endless = Machine("cpu", 10**9)
    families = {family_of(one.name) for one in short_list(endless, 1, 1e9, limit=100)}
    assert len(families) > 10
    assert not any(family.fixed_size or family.name == "maxvit" for family in families)


def test_the_short_list_has_one_backbone_of_a_family_and_fits_the_time() -> None:
    found = short_list(LAPTOP, 643, 120.0, besides=["mobilenet_v2"])
    families = [family_of(one.name).name for one in found]
    assert len(set(families) | {"mobilenet_v2"}) == len(found) + 1 == SHORT_LIST
    assert sum(one.pass_s(LAPTOP, 643) for one in found) <= 120.0
    assert [one.top1 for one in found] == sorted((one.top1 for one in found), reverse=True)


def test_a_smaller_input_size_lets_more_accurate_backbones_fit() -> None:
    own, smaller = (short_list(LAPTOP, 643, 30.0, crop=crop)[0].top1 for crop in (None, 128))
    assert smaller > own


def test_a_backbone_no_more_accurate_than_the_own_is_not_compared() -> None:
    assert short_list(SERVER, 100, 600.0, besides=["efficientnet_v2_l"]) == ()


def test_without_time_the_short_list_is_empty() -> None:
    assert short_list(LAPTOP, 10**6, 60.0) == ()
