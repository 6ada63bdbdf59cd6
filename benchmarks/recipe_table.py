"""Write the results of recipes.py and tune.py as markdown tables.

    python benchmarks/recipe_table.py FILE... [--tune tune.json] --into docs/training.md

The measurements may be in several files. The text between the two marks is replaced; without
``--into`` the tables are printed.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean, median
from typing import Any

from recipes import PLAIN, RECIPES, SETS, TUNED
from tables import NOTHING, markdown

BEGIN, END = "<!-- recipes: begin -->", "<!-- recipes: end -->"
Runs = dict[str, list[dict[str, Any]]]
"""Runs of one photo set, by recipe, with one run per seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--tune", type=Path)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    documents = [json.loads(path.read_text()) for path in options.files]
    text = fragment({key: run for one in documents for key, run in one["runs"].items()})
    if options.tune is not None:
        text += f"\n\n{tune_sentence(json.loads(options.tune.read_text()))}"
    text += f"\n\n{_origin(documents[-1])}"
    if options.into is None:
        print(text)
        return
    before, rest = options.into.read_text().split(BEGIN)
    options.into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def fragment(runs: dict[str, dict[str, Any]]) -> str:
    """Return a table for each photo set."""
    parts = []
    for data, facts in SETS.items():
        found: Runs = {}
        for key, run in runs.items():
            own, what, _ = key.split("/")
            if own == data:
                found.setdefault(what, []).append(run)
        if found:
            title = f"**{data}**, {facts.epochs} epochs at {facts.size} px, {facts.scored} split"
            parts += [title, _table(found)]
    return "\n\n".join(parts)


def _table(runs: Runs) -> str:
    header = ["recipe", "trains", "top-1, %", "processor time, full is 1", "the plain loop, %"]
    rows = []
    for what in (*RECIPES[:1], TUNED, *RECIPES[1:]):
        if what in runs:
            plain = runs.get(f"{PLAIN} {what}", ())
            rows.append(
                [
                    what.replace("_", " ") if what == TUNED else f"`{what}`",
                    f"{runs[what][0]['trains']:,}",
                    _with_spread([run["top1"] for run in runs[what]]),
                    _relative(runs, what),
                    _with_spread([run["top1"] for run in plain]) if plain else NOTHING,
                ]
            )
    others = [run["logistic"]["top1"] for run in runs.get(TUNED, ())]
    if others:
        rows.append(
            ["logistic regression, C by the same folds", NOTHING, _with_spread(others)]
            + [NOTHING] * 2
        )
    return markdown(header, rows)


def _with_spread(shares: list[float]) -> str:
    """Format the mean, followed by the range if there are several values."""
    mean = f"{100 * fmean(shares):.1f}"
    return f"{mean} ({100 * min(shares):.1f} to {100 * max(shares):.1f})" if shares[1:] else mean


def _relative(runs: Runs, what: str) -> str:
    if "full" not in runs:
        return NOTHING
    full = fmean(run["cpu_s"] for run in runs["full"])
    return f"{fmean(run['cpu_s'] for run in runs[what]) / full:.2g}"


def tune_sentence(document: dict[str, Any]) -> str:
    """Return a sentence about the time of a search relative to one run."""
    ratios = [one["ratio"] for one in document["rounds"]]
    return (
        f"`finetune tune` with 64 trials on ants_bees, the training by the best included, took "
        f"{median(ratios):.2f} times as long as one `finetune train` of 25 epochs "
        f"({min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} rounds, empty caches)."
    )


def _origin(document: dict[str, Any]) -> str:
    machine = document["machine"]
    found = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    cpu = re.sub(r"\s+", " ", machine["cpu"])
    return (
        f"{document['date']}, commit {document['commit'] or 'unknown'}, {cpu}, "
        f"{machine['cores']} cores; {found}."
    )


if __name__ == "__main__":
    main()
