"""Tests of cross-validation folds: complete, stratified, reproducible, grouped."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from helpers.messages import fails

from finetune.data.splits.folds import Fold, groups_of_copies, make_folds


def labels_of(*counts: int) -> list[int]:
    return [label for label, count in enumerate(counts) for _ in range(count)]


def folds(
    labels: list[int], groups: list[str] | None = None, count: int = 5, seed: int = 0
) -> tuple[Fold, ...]:
    names = [f"{label}/{at}.jpg" for at, label in enumerate(labels)]
    return make_folds(labels, names, groups or (), count, seed=seed)


def test_every_image_is_held_out_once_and_trained_on_otherwise() -> None:
    labels = labels_of(13, 20, 7)
    found = folds(labels)
    held_out = [at for fold in found for at in fold.held_out]
    assert sorted(held_out) == list(range(40))
    for fold in found:
        assert sorted((*fold.train, *fold.held_out)) == list(range(40))


def test_classes_are_in_proportion_and_folds_of_one_size() -> None:
    labels = labels_of(13, 20, 7, 3)
    found = folds(labels)
    assert {len(fold.held_out) for fold in found} <= {8, 9}
    for label in range(4):
        counts = [sum(labels[at] == label for at in fold.held_out) for fold in found]
        assert max(counts) - min(counts) <= 1


def test_a_fold_follows_from_names_and_seed_alone() -> None:
    labels = labels_of(10, 10)
    names = [f"{at}.jpg" for at in range(20)]
    one = make_folds(labels, names, (), 4, seed=0)
    order = random.Random(0).sample(range(20), 20)
    other = make_folds([labels[at] for at in order], [names[at] for at in order], (), 4, seed=0)

    def by_name(fold: Fold, names: list[str]) -> set[str]:
        return {names[at] for at in fold.held_out}

    shuffled = [names[at] for at in order]
    assert [by_name(f, names) for f in one] == [by_name(f, shuffled) for f in other]
    assert make_folds(labels, names, (), 4, seed=1) != one


def test_the_only_image_of_a_class_is_always_trained_on() -> None:
    labels = labels_of(10, 1)
    assert all(10 in fold.train for fold in folds(labels))


def test_groups_stay_whole_and_classes_are_nearly_in_proportion() -> None:
    draws = random.Random(0)
    labels, groups = [], []
    for group in range(60):
        label = group % 3
        for _ in range(draws.randrange(1, 8)):
            labels.append(label)
            groups.append(f"person {group}")
    found = folds(labels, groups)
    homes = {group: {at for at, other in enumerate(groups) if other == group} for group in groups}
    for fold in found:
        for members in homes.values():
            assert not members & {*fold.held_out} or members <= {*fold.held_out}
    totals = Counter(labels)
    for fold in found:
        held_out = Counter(labels[at] for at in fold.held_out)
        for label, count in totals.items():
            assert abs(held_out[label] / count - 1 / 5) < 0.05


def test_every_class_is_known_in_every_fold_though_groups_hold_several() -> None:
    draws = random.Random(1)
    groups = [f"g{draws.randrange(12)}" for _ in range(80)]
    labels = [draws.randrange(4) if at % 9 else 4 for at in range(80)]
    for fold in folds(labels, groups, count=3):
        assert {labels[at] for at in fold.train} == {*labels}
        assert fold.held_out


def test_a_class_in_a_single_group_is_always_trained_on() -> None:
    labels = [0] * 8 + [1] * 2
    groups = [f"g{at}" for at in range(8)] + ["lone", "lone"]
    assert all({8, 9} <= {*fold.train} for fold in folds(labels, groups, count=4))


def test_images_of_equal_contents_are_one_group_by_the_first_of_their_names() -> None:
    names = ["b.jpg", "a.jpg", "c.jpg"]
    assert groups_of_copies(names, ["x", "x", "y"]) == ("a.jpg", "a.jpg", "c.jpg")
    assert groups_of_copies(names, ["x", "y", "z"]) == ()


@pytest.mark.parametrize("groups", [None, ["a", "b"] * 3])
def test_too_many_folds_are_refused_with_what_is_possible(groups: list[str] | None) -> None:
    with fails("data.too_few_for_folds", key="tune.folds"):
        folds(labels_of(3, 3), groups, count=7)
