"""Tests of docs/reliability.md and of the script that generates it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import REPOSITORY


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def line(promise: str, tried: int, held: int) -> dict[str, Any]:
    return {"promise": promise, "tried": tried, "held": held}


def test_counts_of_one_promise_are_summed() -> None:
    import reliability

    counted = [line("odd-images", 50, 50), line("odd-images", 1, 0), line("rotation", 7, 7)]
    text = reliability.fragment(counted, failed=True)
    assert re.search(r"\| An unusual image gets .* \| 51 \| 50 \|", text)
    assert re.search(r"\| Nothing is deleted .* \| 7 \| 7 \|", text)
    assert "not yet tried" in text
    assert "A test failed in this run." in text


def test_a_count_under_no_known_key_is_noticed() -> None:
    import reliability

    with pytest.raises(AssertionError, match="counted under no key"):
        reliability.fragment([line("misspelt", 1, 1)], failed=False)


def test_every_key_is_counted_by_a_test_that_is_run() -> None:
    import promises

    there = [REPOSITORY / "tests" / name for name in promises.TESTS]
    text = "".join(path.read_text() for path in there)
    keys = {key for promise in promises.PROMISES for key in promise.keys}
    assert {key for key in keys if f'"{key}"' not in text} == set()
    variables = {name for promise in promises.PROMISES for name, _ in promise.counts}
    text += (REPOSITORY / "tests" / "helpers" / "hostile_checkpoints.py").read_text()
    assert {name for name in variables if f'times("{name}"' not in text} == set()


def test_every_test_that_is_named_is_there_and_run() -> None:
    import promises

    for promise in promises.PROMISES:
        assert promise.keys or promise.tests, promise.text
        for test in promise.tests:
            file, _, name = test.partition("::")
            assert file in promises.TESTS
            assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), test


def test_cases_of_a_test_that_counts_nothing_are_counted(tmp_path: Path) -> None:
    import reliability

    cases = tmp_path / "cases.xml"
    cases.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="test_x[1]"/>'
        '<testcase classname="tests.test_a" name="test_x[2]"><failure/></testcase>'
        '<testcase classname="tests.test_a" name="test_x[3]"><skipped/></testcase>'
        "</testsuite></testsuites>"
    )
    assert [*reliability._lines_of(cases)] == [
        line("test_a.py::test_x", 1, 1),
        line("test_a.py::test_x", 1, 0),
    ]


def test_every_guard_is_there() -> None:
    import lost

    for case, guard in lost.LOST:
        file, _, name = guard.partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(), case
        assert "|" not in case


def test_the_page_has_its_marks() -> None:
    import reliability

    text = (REPOSITORY / "docs" / "reliability.md").read_text()
    assert text.count(reliability.BEGIN) == text.count(reliability.END) == 1
