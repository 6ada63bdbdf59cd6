"""The page of promises says what was counted, and every guard that it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))


def line(promise: str, tried: int, held: int) -> dict[str, Any]:
    return {"promise": promise, "tried": tried, "held": held}


def test_counts_of_one_promise_are_summed() -> None:
    import reliability

    counted = [line("odd-images", 50, 50), line("odd-images", 1, 0), line("rotation", 7, 7)]
    text = reliability.fragment(counted, failed=True)
    assert re.search(r"\| An odd image has .* \| 51 \| 50 \|", text)
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
    text = "".join(path.read_text() for path in there if path.exists())
    # Another branch of work brings the tests of resuming.
    absent = [path.name for path in there if not path.exists()]
    later = {"kills", "kills-in-save", "signals", "second-signal", "resume-refused"}
    later |= {"not-a-number", "out-of-memory"}
    keys = {key for promise in promises.PROMISES for key in promise.keys}
    missing = {key for key in keys if f'"{key}"' not in text}
    assert missing <= (later if absent else set())


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
