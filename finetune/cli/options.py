"""Options and arguments shared by several commands, and what they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.core.errors import ConfigError

if TYPE_CHECKING:
    from finetune.config.schema import Config

ConfigArgument = Annotated[
    str | None,
    typer.Argument(metavar="CONFIG", help="YAML config file, or run directory with its config."),
]
ConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="CONFIG", help="The same as the argument CONFIG."),
]
OptionalConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="FILE", help="Evaluate best.pt of this config's run."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a config value, e.g. train.epochs=3. Repeatable.",
    ),
]
CacheFolderOption = Annotated[
    str | None,
    typer.Option(
        "--dir", metavar="FOLDER", help="Cache folder, as in features.dir (default: user cache)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


def one_config(command: str, argument: str | None, option: str | None) -> str:
    """Return the config that the argument or the option ``--config`` of a command names.

    Raises:
        ConfigError: Both are given, or none.
    """
    given = argument if option is None else option
    if given is None or None not in (argument, option):
        what = "needs a config" if given is None else "CONFIG and --config exclude each other"
        raise ConfigError(
            what,
            kind="config.missing_argument" if given is None else "config.conflict",
            source=command,
            to_do=f"`finetune init` writes one, for `finetune {command} pets.yaml`"
            if given is None
            else "remove one of them",
        )
    return given


def load(source: str, overrides: Sequence[str] | None = None) -> Config:
    """Load a config file, or the config of a run directory."""
    from finetune.config.load import load_config

    return load_config(config_file(source), overrides or ())


def config_file(source: str) -> str:
    """Return the config file of a run directory; any other path as it is."""
    from finetune.checkpoints.run_dir import CONFIG

    inside = Path(source) / CONFIG
    return str(inside) if inside.is_file() else source


def run_named(source: str) -> str:
    """Return the run directory of a config file; any other path as it is."""
    if is_config(source) and Path(source).is_file():
        from finetune.config.load import load_config

        return str(load_config(source).output_dir)
    return source


def is_config(source: str) -> bool:
    """Return whether a path is named like a config file."""
    return source.endswith((".yaml", ".yml"))


def name_of(source: str) -> str:
    """Return the name of a config file or run directory, for the files of a command."""
    return Path(source).stem
