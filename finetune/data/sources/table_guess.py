"""Guesses of the columns, folder and suffix of a table without a config; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.config.data import TABLE_COLUMNS, TORCHVISION, DataConfig, TableConfig, is_table
from finetune.core.files import expand_user, is_folder
from finetune.core.reporter import Reporter, SilentReporter
from finetune.data.images import shown
from finetune.data.sources.table import open_table
from finetune.data.sources.table_columns import USUAL, column_of, flag_of, titles_of
from finetune.data.sources.table_paths import find_places, place_of
from finetune.data.sources.table_text import Record, cleaned

_SAMPLE = 20
_LABELS = (
    *("class", "labels", "class_name", "classname", "target", "category"),
    *("species", "breed", "diagnosis", "y"),
)


def guess_table(config: DataConfig, reporter: Reporter) -> DataConfig:
    """Return a config with the columns, folder and suffix of a table, if one choice fits.

    Settings of the config are kept if they fit the table. If more than one choice fits, nothing is
    guessed: reading the table reports what is missing.

    Raises:
        DataError: The table cannot be read.
    """
    if not is_table(config.root) or is_folder(expand_user(config.root)):
        return config
    header, records = open_table(config)
    titles = titles_of(header)
    update: dict[str, object] = {
        key: None
        for key in ("split_column", "group_column")
        if getattr(config, key) and getattr(config, key) not in titles
    }
    path, label = (_configured(config, key, titles) for key in ("path_column", "label_column"))
    columns = range(len(titles)) if path is None else [path]
    places = [(at, place) for at in columns for place in _places(config, records, at, titles)]
    if len(places) != 1:
        return config.model_copy(update=update)
    at, table = places[0]
    label = _label(titles, at) if label is None else label
    if label is None or label == at:
        return config.model_copy(update=update)
    for key, column in (("path_column", at), ("label_column", label)):
        if _configured(config, key, titles, strict=True) != column:
            update[key] = titles[column]
    if table != config.table:
        update["table"] = table
    if update:
        found = [f"paths from column {titles[at]!r}", f"labels from column {titles[label]!r}"]
        found += [f"files below {table.folder}/"] if table.folder else []
        found += [f"with the suffix {table.suffix}"] if table.suffix else []
        reporter.say(f"{shown(config.root)}: {', '.join(found)}")
    return config.model_copy(update=update)


def elsewhere(config: DataConfig, root: str, reporter: Reporter | None) -> DataConfig:
    """Return the config for other data, without options that do not apply to its kind.

    Another table may have another delimiter, which is detected in its first line, and other
    columns.

    Raises:
        DataError: ``root`` is a table that cannot be read.
    """
    update: dict[str, object] = {"root": root, "corrections": None}
    if is_table(root):
        update["table"] = config.table.with_values({"delimiter": None})
    else:
        update |= dict.fromkeys(TABLE_COLUMNS) | {"table": TableConfig()}
    if not root.startswith(TORCHVISION):
        update |= {"folder": None, "download": None}
    return guess_table(config.model_copy(update=update), reporter or SilentReporter())


def _configured(
    config: DataConfig, key: str, titles: Sequence[str], *, strict: bool = False
) -> int | None:
    """Return the column that a config names or, unless ``strict``, the one with the usual name."""
    named: str | None = getattr(config, key)
    if named in titles:
        return titles.index(named)
    return None if named and strict else column_of(titles, USUAL[key])


def _places(
    config: DataConfig, records: Sequence[Record], at: int, titles: Sequence[str]
) -> list[TableConfig]:
    """Return the table configs that find the files of a column, the given one if it does."""
    parent = expand_user(config.root).parent
    values = [fields[at] for _, fields in records[:_SAMPLE] if len(fields) == len(titles)]
    values = [value for value in values if cleaned(value)]
    if not values:
        return []
    if place_of(parent, config.table).holds(values):
        return [config.table]
    return [
        config.table.model_copy(update={"folder": folder or None, "suffix": suffix or None})
        for folder, suffix in find_places(parent, values)
    ]


def _label(titles: Sequence[str], path: int) -> int | None:
    """Return the label column: by its name, or the only one besides the path."""
    named = [at for at, title in enumerate(titles) if title.casefold() in _LABELS and at != path]
    if len(named) == 1:
        return named[0]
    others = [
        at
        for at, title in enumerate(titles)
        if at != path and title.casefold() not in USUAL.values() and flag_of(title) is None
    ]
    return others[0] if len(others) == 1 else None
