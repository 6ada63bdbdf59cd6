"""Tests of unusual images: verdict, memory use, and no started process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.counting import Count
from helpers.odd_images import ODD, make_all
from helpers.paths import HELPERS

from finetune.commands.check_data import check_data
from finetune.config.data import DataConfig
from finetune.core.errors import DataError
from finetune.core.reporter import SilentReporter
from finetune.data.checks.preflight import preflight_check
from finetune.data.images import Images

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes")
PEAK_MIB = 1000_000_000 / 2**20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is made here on purpose
        make_all(folder)
    return folder


@pytest.fixture(scope="module")
def found(corpus: Path) -> dict[str, Any]:
    """What a process of its own says of them."""
    program = HELPERS / "odd_images.py"
    done = subprocess.run(
        [sys.executable, str(program), str(corpus)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def is_as_expected(reason: str | None, expected: str | None) -> bool:
    if expected is None or reason is None:
        return reason is expected
    return expected in reason and "\n" not in reason and reason.isprintable()


def test_every_odd_image_has_the_verdict_that_is_expected(
    found: dict[str, Any], count: Count
) -> None:
    lost = {}
    for name, odd in ODD.items():
        verdict = found["verdicts"][name]
        held = (
            is_as_expected(verdict["quick"], odd.quick)
            and is_as_expected(verdict["full"], odd.full)
            and ("error" not in verdict) == odd.decodes
            and verdict.get("shapes", [[3, 224, 224]]) == [[3, 224, 224]]
        )
        if not held:
            lost[name] = verdict
    count("odd-images", tried=len(ODD), held=len(ODD) - len(lost))
    assert not lost


def test_no_odd_image_takes_a_gigabyte(found: dict[str, Any], count: Count) -> None:
    # Above what torch itself takes, which is 0.7 GB where it brings libraries for a GPU.
    grown = found["peak_mib"] - found["before"]
    count("odd-images-memory", tried=1, held=int(grown < PEAK_MIB))
    peaks = {name: verdict["peak_mib"] for name, verdict in found["verdicts"].items()}
    assert grown < PEAK_MIB, peaks


def test_no_odd_image_starts_a_process(found: dict[str, Any], count: Count) -> None:
    count("odd-images-processes", tried=len(ODD), held=len(ODD) if not found["started"] else 0)
    assert not found["started"]


def test_a_run_and_check_data_name_the_same_ones(corpus: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in ("cats", "dogs"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
    # A link to a folder is followed, as a folder of the class would be.
    links = [name for name in ODD if (corpus / name).is_symlink()]
    listed = [n for n in ODD if n in links or _bytes(corpus / n) < 10**6]
    listed = [name for name in listed if not (corpus / name).is_dir()]
    folder = tmp_path / "data" / "train" / "cats"
    for name in listed:
        (folder / name).symlink_to(corpus / name)
    for split, label in (("train", "dogs"), ("val", "cats"), ("val", "dogs")):
        (tmp_path / "data" / split / label / "a.jpg").symlink_to(corpus / "rgb.jpg")
    report = check_data(DataConfig(root=str(tmp_path / "data")), workers=1)
    (unreadable,) = (f for f in report.findings if f.kind == "unreadable")
    assert unreadable.count == sum(ODD[name].full is not None for name in listed)

    images = Images(tuple(folder / n for n in listed), (0,) * len(listed), ("cats", "dogs"))
    with pytest.raises(DataError) as caught:
        preflight_check(images, on_unreadable="fail", base=folder, reporter=SilentReporter())
    # What only decoding finds, check-data has remembered by now.
    bad = sum(ODD[name].full is not None for name in listed)
    assert caught.value.kind == "data.undecodable"
    assert caught.value.what.startswith(f"{bad:,} of {len(listed):,} files ")


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
