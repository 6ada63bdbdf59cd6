"""Imports point one way, and what must answer at once imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import finetune

PACKAGE = Path(finetune.__file__).parent

# A module imports only from lower lines, or from its own package.
LINES = [
    {"stage_results"},
    {
        *("errors", "keyed", "progress", "results", "check_results", "data_results"),
        *("eval_results", "terminal", "position", "lr_curve"),
        "cli_options",
        "locks",
    },
    {"stopping"},
    {"backbones", "files", "yaml_text", "config_section"},
    {
        *("config_data", "config_augment", "config_optimizer", "config_adapt", "config_stages"),
        *("config_tune", "tune_results"),
    },
    {"config_model"},
    {"config"},
    {
        "checkpoint_checks",
        "config_problems",
        "freeze",
        "run_folder",
        "tensor_file",
        "runtime",
        "train_mode",
        "depthwise",
        *("sealed", "averaging", "optimizer_state", "stages"),
    },
    {"data", "adapters", "handover", "claim", "mapped"},
    {"checkpoint", "tracing"},
    {
        "config_file",
        "split",
        "recipe",
        "blocks",
        "param_groups",
        "layers",
        "schedules",
        "continuing",
        "weight_files",
    },
    {"known_weights"},
    {
        "loss",
        "model",
        "optim",
        "metrics",
        "proof",
        "cost",
        "intervals",
        "temperature",
        "search_space",
    },
    {"step"},
    {
        *("weights", "loop", "evaluate", "planning", "feature_cache", "form", "saving", "scoring"),
        "named_recipes",
    },
    {"computation", "monitor", "defaults"},
    {"keeping", "in_form"},
    {"features", "shared_dropout"},
    {"engine", "head_updates", "range_test"},
    {"heads"},
    {"judging"},
    {"head_trials"},
    {"trials"},
    {"timing", "opening", "predictions"},
    {"predictor", "exporting", "saliency"},
    {"pictures"},
    {"report"},
    {"commands"},
    {"cli_support"},
    {"cli_data", "cli_results", "cli_tune"},
    {"cli"},
    {"__main__"},
]
NO_TORCH = {
    *("errors", "keyed", "progress", "results", "backbones", "yaml_text", "config"),
    *(
        "config_section",
        "config_data",
        "config_augment",
        "config_optimizer",
        "config_model",
        "config_stages",
        "check_results",
        "terminal",
    ),
    *("cli_options", "eval_results", "cli_results", "intervals"),
    *("config_file", "config_problems", "freeze", "run_folder", "files", "report", "cli"),
    *("cli_support", "cli_data", "data_results", "recipe", "blocks", "param_groups"),
    *("position", "stopping", "stages", "stage_results"),
    *("cli_tune", "config_tune", "tune_results", "search_space", "lr_curve"),
    "checkpoint_checks",
    "locks",
}


def line_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LINES) if room in rooms)


def modules() -> list[tuple[str, Path]]:
    """Each module with its room: its own name, or the package it lies in."""
    return [
        (path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "__init__.py"
    ]


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


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(value))
def test_imports_point_down(room: str, path: Path) -> None:
    for name in imported(path):
        if name.startswith("finetune.") and not name.startswith("finetune.__"):
            other = name.split(".")[1]
            assert other == room or line_of(other) < line_of(room), f"{room} imports {other}"


@pytest.mark.parametrize(("room", "path"), modules(), ids=lambda value: str(value))
def test_rooms_without_torch_stay_so(room: str, path: Path) -> None:
    if room in NO_TORCH:
        roots = {name.split(".")[0] for name in imported(path, top_level_only=True)}
        assert not roots & {"torch", "torchvision", "safetensors"}


def test_every_module_can_be_read_in_one_sitting() -> None:
    assert {
        path.name: n for _, path in modules() if (n := len(path.read_text().splitlines())) > 350
    } == {}


def test_every_import_is_declared() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    declared = text.split("dependencies = [")[1].split("]")[0].lower()
    extras = "".join(
        line for line in text.splitlines() if line.startswith(("plots", "export", "adapt"))
    )
    names = {"yaml": "pyyaml", "PIL": "pillow"}
    for _, path in modules():
        at_the_top = imported(path, top_level_only=True)
        for name in imported(path):
            root = name.split(".")[0]
            if f'"{root}>=' in extras and name not in at_the_top:
                continue  # an extra may be absent: imported where it is used
            if root not in sys.stdlib_module_names and root != "finetune":
                assert f'"{names.get(root, root)}>=' in declared, f"{path.name} imports {root}"


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert not done.stderr, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["train", "--config", "absent.yaml"], ["--version"]],
)
def test_answers_at_once_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys, contextlib, io\n"
        f"sys.argv = ['finetune', *{arguments!r}]\n"
        "from finetune import cli\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "    cli._run()\n"
        "print('torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    assert run_python(code) == "False False"
