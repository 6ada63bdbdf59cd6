"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", metavar="FILE", help="YAML config file.")
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
