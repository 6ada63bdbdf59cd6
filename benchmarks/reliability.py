"""Run the tests of all promises with full counts, and write the tables of docs/reliability.md.

    python benchmarks/reliability.py --into docs/reliability.md

All tests of `promises.TESTS` are run, including the slow ones, and their trials are counted.
``--quick`` uses the counts of an ordinary test run. Without ``--into`` the tables are printed. The
exit status is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lost import LOST
from measure import commit, describe_machine, versions
from promises import PROMISES, TESTS, Promise

REPOSITORY = Path(__file__).parent.parent
BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
PACKAGES = ("torch", "torchvision", "pillow", "pydantic", "safetensors", "hypothesis")
Line = dict[str, Any]
"""Record of a test, with the keys ``promise``, ``tried`` and ``held``."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="use the counts of an ordinary test run"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="number of parallel test processes"
    )
    parser.add_argument(
        "--into", type=Path, help="file in which the text between the marks is replaced"
    )
    options = parser.parse_args()
    failed, lines = try_all(quick=options.quick, processes=options.processes)
    text = fragment(lines, failed=failed)
    if options.into is None:
        print(text)
    else:
        before, rest = options.into.read_text().split(BEGIN)
        options.into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")
    return 1 if failed else 0


def try_all(*, quick: bool, processes: int) -> tuple[bool, list[Line]]:
    """Run the tests, and return whether any failed, and all recorded lines."""
    tests = [f"tests/{name}" for name in TESTS]
    there = [name for name in tests if (REPOSITORY / name).exists()]
    for name in sorted(set(tests) - set(there)):
        print(f"{name} is not there", file=sys.stderr)
    full = {f"FINETUNE_COUNT_{name}": str(n) for p in PROMISES for name, n in p.counts}
    with tempfile.TemporaryDirectory() as folder:
        counts, cases = Path(folder) / "counts.jsonl", Path(folder) / "cases.xml"
        counts.touch()
        chosen = [
            "-q",
            "-n",
            str(processes if processes > 1 else 0),
            "-m",
            "not gpu",
            f"--junitxml={cases}",
            *there,
        ]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *chosen],
            cwd=REPOSITORY,
            env=os.environ | ({} if quick else full) | {"FINETUNE_COUNTS": str(counts)},
            stdout=sys.stderr,
            check=False,
        )
        lines = [json.loads(line) for line in counts.read_text().splitlines()]
        return done.returncode != 0, [*lines, *_lines_of(cases)]


def _lines_of(cases: Path) -> Iterator[Line]:
    """Yield a line for each test case that was not skipped."""
    for case in ElementTree.parse(cases).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        name = f"{file}.py::{case.get('name', '').partition('[')[0]}"
        if case.find("skipped") is None:
            held = case.find("failure") is None and case.find("error") is None
            yield {"promise": name, "tried": 1, "held": int(held)}


def fragment(lines: Iterable[Line], *, failed: bool) -> str:
    """Return both tables, with date, machine and versions."""
    every = list(lines)
    known = {key for promise in PROMISES for key in promise.keys}
    counted = {line["promise"] for line in every if "::" not in line["promise"]}
    strangers = sorted(counted - known)
    assert not strangers, f"counted under no key of promises.py: {strangers}"
    rows = [_row(promise, every) for promise in PROMISES]
    parts = [
        "## Promises",
        "\n".join(["| promise | tried | times | held |", "| --- | --- | ---: | ---: |", *rows]),
        _where(failed),
        "## Fixed bugs with regression tests",
        "\n".join(["| bug | test |", "| --- | --- |", *(_guard(*row) for row in LOST)]),
    ]
    return "\n\n".join(parts)


def _row(promise: Promise, lines: Sequence[Line]) -> str:
    of_it = [line for line in lines if line["promise"] in (*promise.keys, *promise.tests)]
    tried, held = (sum(line[what] for line in of_it) for what in ("tried", "held"))
    figures = f"{tried:,} | {held:,}" if of_it else "not yet tried | "
    return f"| {promise.text} | {promise.tried} | {figures} |"


def _guard(case: str, test: str) -> str:
    file, _, name = test.partition("::")
    return f"| {case} | [`{name}`](../{file}) |"


def _where(failed: bool) -> str:
    machine = describe_machine()
    found = versions(sys.executable, PACKAGES)
    of = ", ".join(f"{name} {version}" for name, version in found.items())
    ended = "A test failed in this run." if failed else "Every test passed."
    return (
        f"{date.today().isoformat()}: {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB, {machine['system']}, commit "
        f"{commit(REPOSITORY) or 'unknown'}; {of}. {ended}"
    )


if __name__ == "__main__":
    sys.exit(main())
