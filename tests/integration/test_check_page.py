"""Tests of ``finetune check-data --report``: the page and the table of pairs."""

from __future__ import annotations

import csv
import re
import shutil
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.broken_files import picture, save
from helpers.hostile_names import HOSTILE
from helpers.messages import fails
from helpers.page_facts import check_facts
from PIL import Image

from finetune.cli import app, data
from finetune.report.page import render_check_page


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes with a copy in two classes, a recoloured copy, a GIF and a broken file."""
    root = tmp_path / "pets"
    for name in ("cats", "dogs"):
        for index in range(12):
            path = root / name / f"{index:02d}.png"
            save(path, picture(zlib.crc32(f"{name} {index}".encode()), (40, 32)))
    shutil.copy(root / "cats/03.png", root / "dogs/copy.png")
    with Image.open(root / "cats/05.png") as image:
        image.point(lambda level: min(255, level + 6)).save(root / "cats/brighter.png")
    with Image.open(root / "dogs/07.png") as image:
        image.convert("P").save(root / "dogs/placeholder.gif")
    (root / "dogs/broken.jpg").write_bytes(b"no photo")
    monkeypatch.chdir(tmp_path)
    return root


def check(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    command = ["finetune", "check-data", "pets", "--workers", "1", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    return app._run()


def test_the_page_shows_pairs_side_by_side_closest_first(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(monkeypatch, "--report") == 3
    said = capsys.readouterr().out
    assert "pets-check.html" in said
    assert "pets-check-pairs.csv" in said
    text = Path("pets-check.html").read_text(encoding="utf-8")
    pairs = text[text.index('id="pairs"') : text.index('id="odd"')]
    figures = pairs.split("<figure")[1:]
    assert len(figures) == 3
    assert all(figure.count("<img") == 2 for figure in figures)
    assert "in different classes" in figures[0]
    assert "cats/03.png" in figures[0]
    assert "dogs/copy.png" in figures[0]
    assert "equal pixels" in figures[0]
    assert re.search(r"pixels differ by [\d.]+%", figures[1])
    odd = text[text.index('id="odd"') : text.index('id="sizes"')]
    assert "dogs/broken.jpg" in odd
    assert "dogs/placeholder.gif" in odd
    assert "2 errors" in text


def test_the_table_holds_all_pairs(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(monkeypatch, "--report", "--output", "out/page.html")
    with Path("out/page-pairs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["found"] == "equal in different classes"
    assert (rows[0]["path"], rows[0]["other_path"]) == ("cats/03.png", "dogs/copy.png")
    assert (rows[0]["class"], rows[0]["other_class"]) == ("cats", "dogs")
    assert rows[0]["different_bits"] == ""
    assert {row["path"] for row in rows[1:]} == {"cats/05.png", "dogs/07.png"}
    assert Path("out/page.html").exists()


def test_output_without_a_report_has_no_effect() -> None:
    with fails("config.no_effect", key="--output", source="check-data"):
        data.check_data("pets", output="page.html")


def test_data_without_pairs_says_so() -> None:
    none = {"classes": 0, "splits": 0, "same": 0}
    text = render_check_page(replace(check_facts(), pairs=[], num_pairs=none))
    pairs = text[text.index('id="pairs"') : text.index('id="odd"')]
    assert "None: no two images are equal or look alike." in pairs
    assert "No picture matches" not in pairs


def test_hostile_names_stay_text() -> None:
    text = render_check_page(check_facts((HOSTILE[0], HOSTILE[6])))
    assert HOSTILE[0] not in text
    assert HOSTILE[6] not in text
    assert text.count("<script") == 1
    assert "unsafe" not in text.partition("<style")[0]


def test_names_of_groups_are_suggested_as_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(24):
        name = f"pets/{('cats', 'dogs')[index % 2]}/person{index // 3}_{index}.png"
        save(tmp_path / name, picture(index, (40, 32)))
    monkeypatch.chdir(tmp_path)
    check(monkeypatch, "--report")
    pattern = r"data.group_pattern: '(person\d+)_' keeps each group in one split"
    assert pattern in " ".join(capsys.readouterr().out.split())
    assert "data.group_pattern" in Path("pets-check.html").read_text(encoding="utf-8")
