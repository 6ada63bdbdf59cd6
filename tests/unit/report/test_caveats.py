"""Tests of the sentences that say what limits an accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune.report.caveats import caveat_fields, caveats_by_run
from finetune.report.layout import document, plain
from finetune.results.caveats import ScoredPhotos, caveats_of, with_choices
from finetune.results.evaluation import Comparison, RunFigures

PHOTOS = ScoredPhotos("validation", {"ant": 20, "bee": 23})


def test_photos_of_which_nothing_bad_is_known_have_no_caveat() -> None:
    assert caveats_of(PHOTOS) == ()


@pytest.mark.parametrize(
    ("known", "kind", "text"),
    [
        (
            {"leaked": 43},
            "leak",
            "43 of 43 validation photos are also training photos: this figure says nothing about "
            "new photos.",
        ),
        (
            {"leaked": 3},
            "leak",
            "3 of 43 validation photos are also training photos: this figure is too high for new "
            "photos.",
        ),
        (
            {"leaked": 1, "top1_without": 0.5},
            "leak",
            "1 of 43 validation photos is also a training photo: without them, top-1 is 50.00% "
            "(21 of 42).",
        ),
        (
            {"noun": "", "alike": 2},
            "look_alike",
            "2 of 43 photos look nearly like a training photo: if they show the same thing, this "
            "figure is too high (`finetune check-data` lists them).",
        ),
        (
            {"noun": "training"},
            "trained_on",
            "The network was trained on these photos: this figure says nothing about new photos.",
        ),
        (
            {"in_two_classes": 1},
            "two_classes",
            "1 photo is in more than one class: at least one of its labels is wrong.",
        ),
        (
            {"in_two_classes": 2},
            "two_classes",
            "2 photos are in more than one class: at least one label of each is wrong.",
        ),
        (
            {"corrected": 1},
            "corrected",
            "1 of 43 validation photos has a corrected label: compare this figure only with others "
            "on the same labels.",
        ),
        (
            {"chose": ("the epoch",)},
            "selection",
            "These photos chose the epoch: expect slightly less on new photos.",
        ),
        (
            {"counts": {"ant": 0, "bee": 43}},
            "missing_class",
            "Class 'ant' has no validation photos: this figure says nothing about it.",
        ),
        (
            {"counts": {"ant": 4, "bee": 39}, "noun": "test"},
            "few_photos",
            "Class 'ant' has only 4 test photos: its recall is only a rough estimate.",
        ),
        (
            {"counts": {"ant": 4, "bee": 9, "fly": 10}},
            "few_photos",
            "2 of 3 classes have fewer than 10 validation photos: their recall is only a rough "
            "estimate.",
        ),
        (
            {"fitted_temperature": True},
            "calibration",
            "The temperature was fitted on these photos: expect a slightly larger calibration "
            "error on new photos.",
        ),
        (
            {"unchecked": "data/pets: no such folder"},
            "unchecked",
            "It is not known whether training photos are among these photos, since the training "
            "photos cannot be listed: data/pets: no such folder.",
        ),
    ],
)
def test_each_fact_is_a_sentence(known: dict[str, Any], kind: str, text: str) -> None:
    (caveat,) = caveats_of(replace(PHOTOS, **known))
    assert (caveat.kind, caveat.text) == (kind, text)


def test_the_most_serious_comes_first() -> None:
    photos = replace(PHOTOS, fitted_temperature=True, chose=("the epoch",), alike=1, leaked=2)
    found = [caveat.kind for caveat in caveats_of(photos)]
    assert found == ["leak", "look_alike", "selection", "calibration"]


def test_a_later_choice_joins_the_earlier_one() -> None:
    before = caveats_of(replace(PHOTOS, chose=("the epoch",), leaked=43, fitted_temperature=True))
    after = with_choices(before, "the run", "the epoch")
    assert [caveat.kind for caveat in after] == ["leak", "selection", "calibration"]
    assert "chose the run and the epoch:" in after[1].text


def test_rows_bear_a_word_once() -> None:
    fields = caveat_fields(caveats_of(replace(PHOTOS, chose=("the epoch",), leaked=43)))
    assert [field.label for field in fields] == ["Caveats", ""]


def test_a_comparison_names_the_runs_of_each_caveat() -> None:
    chose = replace(PHOTOS, chose=("the epoch",))
    runs = [
        RunFigures(name, "x.pt", "m", "d", 43, 0.9, 0.9, 0.1, 0.9, 0.1, {}, None, caveats_of(known))
        for name, known in (("a", chose), ("b", replace(chose, leaked=43)))
    ]
    fields = caveats_by_run(Comparison(tuple(runs), (), (), "", None))
    text = " ".join(plain(document(fields)).split())
    leak, chosen = text.split(" new photos.")[:2]
    assert leak.startswith("Caveats b: 43 of 43 validation photos are also training photos:")
    assert chosen == " These photos chose the epoch: expect slightly less on"
