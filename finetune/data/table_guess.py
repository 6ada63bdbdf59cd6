"""Columns, folder and suffix of a table that no config describes yet; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.config_data import TABLE_COLUMNS, TORCHVISION, DataConfig, TableConfig, is_table
from finetune.config_section import AUTO
from finetune.data.images import shown
from finetune.data.table import open_table
from finetune.data.table_columns import USUAL, column_of, flag_of, titles_of
from finetune.data.table_place import find_places, place_of
from finetune.data.table_text import Record, cleaned
from finetune.files import expand_user, is_folder
from finetune.progress import Progress, Silent

_SAMPLE = 20
_LABELS = (
    *("class", "labels", "class_name", "classname", "target", "category"),
    *("species", "breed", "diagnosis", "y"),
)


def guess_table(config: DataConfig, progress: Progress) -> DataConfig:
    """Name the columns, folder and suffix that a table needs, where exactly one choice fits.

    What the config says is kept as far as it fits the table. A table that leaves a choice is not
    guessed at: reading it says what is missing.

    Raises:
        DataError: the table cannot be read.
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
        progress.say(f"{shown(config.root)}: {', '.join(found)}")
    return config.model_copy(update=update)


def elsewhere(config: DataConfig, root: str, progress: Progress | None) -> DataConfig:
    """The same options for other data, without those that are about another kind of data.

    Another table may have another delimiter, which is seen in its first line, and other columns.

    Raises:
        DataError: ``root`` is a table that cannot be read.
    """
    update: dict[str, object] = {"root": root}
    if is_table(root):
        update["table"] = config.table.model_copy(update={"delimiter": AUTO})
    else:
        update |= dict.fromkeys(TABLE_COLUMNS) | {"table": TableConfig()}
    if not root.startswith(TORCHVISION):
        update |= {"folder": None, "download": None}
    return guess_table(config.model_copy(update=update), progress or Silent())


def _configured(
    config: DataConfig, key: str, titles: Sequence[str], *, strict: bool = False
) -> int | None:
    """The column that a config names, or else, unless ``strict``, the one with the usual name."""
    named: str | None = getattr(config, key)
    if named in titles:
        return titles.index(named)
    return None if named and strict else column_of(titles, USUAL[key])


def _places(
    config: DataConfig, records: Sequence[Record], at: int, titles: Sequence[str]
) -> list[TableConfig]:
    """Where the files of a column are: as the config has it if they are there, else near by."""
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
    """The column of labels: by its name, or the only one beside the path."""
    named = [at for at, title in enumerate(titles) if title.casefold() in _LABELS and at != path]
    if len(named) == 1:
        return named[0]
    others = [
        at
        for at, title in enumerate(titles)
        if at != path and title.casefold() not in USUAL.values() and flag_of(title) is None
    ]
    return others[0] if len(others) == 1 else None
