"""Tests of the suggestion of ``data.group_pattern`` from names."""

from __future__ import annotations

import random

import pytest

from finetune.data.checks.group_names import suggest_group_pattern

DRAW = random.Random(0)


def test_people_in_names_are_groups() -> None:
    people = [DRAW.randint(1, 300) for _ in range(900)]
    keys = [f"train/sick/person{p}_virus_{n}.jpeg" for n, p in enumerate(people)]
    found = suggest_group_pattern(keys, [0] * len(keys))
    assert found is not None
    assert found.pattern == r"(person\d+)_"
    assert (found.num_groups, found.num_images) == (len({*people}), 900)
    assert found.example == keys[0].rpartition("/")[2]


def test_several_kinds_of_names_make_one_pattern() -> None:
    sick = [f"sick/person{n // 3}_{n}.jpeg" for n in range(300)]
    well = [f"well/NORMAL2-IM-{n // 3:04d}-{n:04d}.jpeg" for n in range(300)]
    found = suggest_group_pattern(sick + well, [0] * 300 + [1] * 300)
    assert found is not None
    assert found.pattern == r"(NORMAL\d+-IM-\d+|person\d+)[\-_]"
    assert found.num_groups == 200


def test_a_number_alone_is_sought_at_the_beginning_of_a_name() -> None:
    keys = [f"a/{n // 7:04d}_c{n % 7}s1.jpg" for n in range(700)]
    found = suggest_group_pattern(keys, [n % 2 for n in range(700)])
    assert found is not None
    assert found.pattern == r"(?:^|/)(\d+)_"


@pytest.mark.parametrize(
    "names",
    [
        [f"IMG_{n}.jpg" for n in range(700)],
        [f"{10**9 + 7919 * n}_f52e_n.jpg" for n in range(700)],
        [f"n0144{n // 100}_{n}.jpg" for n in range(700)],
        [f"set1_{n}.jpg" for n in range(700)],
        ["bee.jpg", "ant.jpg"],
    ],
    ids=["counter", "unique", "class", "one group", "words"],
)
def test_other_numbers_are_no_groups(names: list[str]) -> None:
    labels = [n // 100 for n in range(len(names))]
    keys = [f"{label}/{name}" for label, name in zip(labels, names, strict=True)]
    assert suggest_group_pattern(keys, labels) is None
