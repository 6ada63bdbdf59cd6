"""Turn measured figures into the tables of docs/benchmarks.md, so that none is typed by hand.

    python benchmarks/render.py compare.json scale.json --into docs/benchmarks.md

Of a case that several files hold, the last one's is taken. Without ``--into`` the tables go to
stdout. Without any file they say what is still to be measured.
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
    parser.add_argument("files", type=Path, nargs="*", help="of compare.py and scale.py")
    parser.add_argument("--into", type=Path, help="replaces what stands between its two marks")
    options = parser.parse_args()
    text = fragment([json.loads(path.read_text()) for path in options.files])
    if options.into is None:
        print(text)
        return
    before, rest = options.into.read_text().split(BEGIN)
    options.into.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}")


def fragment(documents: Sequence[Document]) -> str:
    """Goals, machine, and a table for each case that was measured."""
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
        parts += ["### Cost against the number of images", scale_table(merged["scale"])]
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
        parts += ["Scoring a checkpoint:", evaluation_table(record, num_val)]
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
