"""Write measurements as the tables of docs/benchmarks.md.

    python benchmarks/render.py compare.json scale.json --into docs/benchmarks.md

If several files contain a case, the last one is used. Without ``--into`` the tables are printed.
Without files the tables list what is not measured yet.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import CASES
from reach import OPEN, reach_table
from tables import case_table, evaluation_table, scale_table, start_up_table

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
Document = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="JSON files of compare.py and scale.py")
    parser.add_argument(
        "--into", type=Path, help="file in which the text between the marks is replaced"
    )
    options = parser.parse_args()
    text = fragment([json.loads(path.read_text()) for path in options.files])
    if options.into is None:
        print(text)
        return
    before, rest = options.into.read_text().split(BEGIN)
    options.into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def fragment(documents: Sequence[Document]) -> str:
    """Return the goals, a table for each measured case, and the machines."""
    merged: Document = {"cases": {}, "num_images": {"val": 0}}
    for document in documents:
        cases = merged["cases"] | {
            name: record | {"from": document} for name, record in document.get("cases", {}).items()
        }
        merged |= document
        merged["cases"] = cases
    parts = ["## Goals", reach_table(merged), "## Figures"]
    measured = [name for name in CASES if merged["cases"].get(name, {}).get("runs")]
    for name in measured:
        parts += _case(name, merged["cases"][name])
    if "scale" in merged:
        parts += ["### Cost by number of images", scale_table(merged["scale"])]
    if not measured:
        parts.append(f"{OPEN.capitalize()}.")
    if documents:
        parts += ["### Machines", "\n".join(_machine(document) for document in documents)]
    return "\n\n".join(parts)


def _case(name: str, record: Document) -> list[str]:
    document = record["from"]
    num_val = document["num_images"]["val"]
    rounds = f"{record['rounds']} round{'s' if record['rounds'] > 1 else ''}"
    parts = [
        f"### {record['title']}",
        f"`--case {name}`, {record['epochs']} epochs, {rounds}, {document['date']}.",
        case_table(record, num_val),
    ]
    if record.get("evaluations"):
        parts += ["Evaluation of a checkpoint:", evaluation_table(record, num_val)]
    if record.get("imports_s"):
        parts += ["Starting from a warm cache:", start_up_table(record, num_val)]
    return parts


def _machine(document: Document) -> str:
    machine = document["machine"]
    fast = [name for name in ("avx512_bf16", "amx_bf16") if machine[name]]
    measured = ", ".join(document["cases"]) if "cases" in document else "number of images"
    lines = [
        f"- {document['date']}: {machine['cpu']}, {machine['cores']} cores "
        f"({' and '.join(fast) or 'no bfloat16 instructions'}), {machine['memory_gib']:g} GiB, "
        f"{machine['system']}, commit {document['commit'] or 'unknown'}; {measured}."
    ]
    for who, found in document["versions"].items():
        lines.append(f"  - {who}: {', '.join(f'{k} {v}' for k, v in found.items())}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
