"""Tests of the charts of the page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.page_facts import curve_of, facts_of, freeze_report
from helpers.reporters import RecordingReporter

from finetune.commands.report import _learning_curve
from finetune.report.json_text import to_json
from finetune.report.page import render_page
from finetune.report.page.charts import LEFT, RIGHT, WIDTH, curve_chart


def test_a_learning_curve_is_drawn_on_a_logarithmic_axis() -> None:
    curve = curve_of(["ants", "bees"])
    chart = curve_chart(curve)
    law, measured = chart.lines
    places = [float(point.split(",")[0]) for point in law.points.split()]
    sizes = [*(point.num_photos for point in curve.points), 1600]
    span = math.log(sizes[-1] / sizes[0])
    for size, place in zip(sizes, places, strict=True):
        expected = LEFT + (WIDTH - LEFT - RIGHT) * math.log(size / sizes[0]) / span
        assert place == pytest.approx(expected, abs=0.5)
    assert len(measured.points.split()) == 8
    assert chart.marks[0] == pytest.approx(places[-2], abs=0.1)
    assert [text for _, text in chart.x_ticks][-1] == "1,600"
    assert chart.dots[0].text == "50 photos: 80.0%, measured"
    assert chart.dots[-1].text.endswith("projected")


def test_the_page_has_the_learning_curve_that_was_measured() -> None:
    facts = facts_of(freeze_report(["*"]), ["ants", "bees", "wasps"])
    assert "Would more photos help?" not in render_page(facts)
    page = render_page(replace(facts, curve=curve_of(["ants", "bees"])))
    assert "Would more photos help?" in page
    assert "Twice the photos: 87.0 % -&gt; 89.0 %" in page


def test_a_learning_curve_is_read_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "learning-curve.json"
    reporter = RecordingReporter()
    assert _learning_curve(path, reporter) is None
    curve = curve_of(["ants", "bees"])
    path.write_text(to_json(curve))
    assert _learning_curve(path, reporter) == curve
    assert reporter.warned == []
    path.write_text("{}")
    assert _learning_curve(path, reporter) is None
    assert len(reporter.warned) == 1
