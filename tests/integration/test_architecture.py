"""Tests of imports: declared packages, and commands that must not import torch."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from helpers.paths import REPOSITORY

import finetune

PACKAGE = Path(finetune.__file__).parent


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_import_is_declared() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    declared = text.split("dependencies = [")[1].split("]")[0].lower()
    names_of_extras = ("plots", "export", "adapt", "embed", "map", "mlflow", "wandb", "trackio")
    extras = "".join(line for line in text.splitlines() if line.startswith(names_of_extras))
    names = {"yaml": "pyyaml", "PIL": "pillow", "umap": "umap-learn", "mlflow": "mlflow-skinny"}
    for path in modules():
        at_the_top = imported(path, top_level_only=True)
        for name in imported(path):
            root = name.split(".")[0]
            if f'"{names.get(root, root)}>=' in extras and name not in at_the_top:
                continue  # an extra may be absent: imported where it is used
            if root not in sys.stdlib_module_names and root != "finetune":
                assert f'"{names.get(root, root)}>=' in declared, f"{path.name} imports {root}"
