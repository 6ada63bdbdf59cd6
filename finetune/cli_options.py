"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigOption = Annotated[
    str, typer.Option("--config", "-c", metavar="FILE", help="The config file, in YAML.")
]
OptionalConfigOption = Annotated[
    str | None,
    typer.Option("--config", "-c", metavar="FILE", help="The config file: its run's best.pt."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the config, as in train.epochs=3. Repeatable.",
    ),
]
CacheFolderOption = Annotated[
    str | None,
    typer.Option("--dir", metavar="FOLDER", help="As features.dir; default: the user's cache."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
