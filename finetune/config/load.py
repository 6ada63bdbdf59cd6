"""Load a config file and ``--set`` overrides into a `Config`, reporting all problems at once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.config import yaml_loader
from finetune.config.base import AUTO
from finetune.config.error_messages import has_default, problems_of
from finetune.config.schema import FORMAT, Config, DataConfig, ModelConfig
from finetune.config.stage_inheritance import stage_problems, taken_over
from finetune.config.yaml_loader import Problem
from finetune.core import errors
from finetune.core.errors import ConfigError, worded
from finetune.core.files import exists, is_folder, nearest_path
from finetune.core.text import printable
from finetune.core.version import __version__

_MOST_SHOWN, _MOST_WORDED = 20, 60
_LONGEST_LINE, _LONGEST_FIELD = 800, 240


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a config file.

    Args:
        path: Path of the YAML file.
        overrides: Overrides of the form ``key.path=value``, validated like the file.

    Raises:
        ConfigError: The config is invalid; the message lists every problem with its line and
            dotted path.
    """
    path = Path(path)
    document = yaml_loader.parse(_read(path))
    problems = list(document.problems)
    data: Any = document.value
    if data is None and not problems:
        data = {}
    if not isinstance(data, dict):
        problems = problems or [
            Problem(
                1, (), "config.not_a_section", "must consist of sections such as model: and data:"
            )
        ]
        raise _error(path, problems, {})
    return _validated(path, document, data, overrides)


def config_of(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Validate a config that is given as plain values, with the same messages as a file.

    Args:
        values: Sections and keys, as in a file. ``output_dir`` is by default named after the data.
        overrides: As in `load_config`.

    Raises:
        ConfigError: The config is invalid.
    """
    data = copy.deepcopy(dict(values))
    section = data.get("data")
    root = section.get("root") if isinstance(section, dict) else None
    name = Path(str(root or "run")).stem
    return _validated(Path(name), yaml_loader.Document(data), data, overrides)


def _validated(
    path: Path,
    document: yaml_loader.Document,
    data: dict[str, Any],
    overrides: Sequence[str],
) -> Config:
    """Validate plain values.

    Args:
        path: File of the values, in messages; its stem is the name of the default output folder.
    """
    problems = list(document.problems)
    origins = _apply_overrides(data, overrides, problems)
    _refuse_newer_format(path, data)
    data.setdefault("output_dir", str(Path("runs") / path.stem))
    found = [*stage_problems(data)]
    reported = {one.path for one in found}
    reported |= {problem.path for problem in document.problems if problem.unread}
    more = 0
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        more = max(error.error_count() - _MOST_WORDED, 0)
        invalid = [*itertools.islice(problems_of(error), _MOST_WORDED)]
        found += _only_once(invalid, data, reported)
    else:
        if not problems and not found:
            return config
    problems += [replace(one, line=document.line_of(one.path)) for one in found]
    raise _error(path, problems, origins, more=more)


def data_of(root: str) -> DataConfig:
    """Return a section ``data`` for a root given on the command line.

    Raises:
        ConfigError: The root is invalid.
    """
    if not root.isprintable():
        raise ConfigError(
            "contains a character that is unprintable or not UTF-8, so that no config can hold it",
            kind="config.unprintable",
            path=ascii(root),
            to_do="rename it",
        )
    try:
        return DataConfig(root=root)
    except ValidationError as error:
        raise _error_of_option(error, {}, path=ascii(root)) from None


def model_of(name: str, weights: str) -> ModelConfig:
    """Return a section ``model`` for a name and weights given on the command line.

    Raises:
        ConfigError: The name or the weights are invalid.
    """
    try:
        return ModelConfig(name=name, weights=weights)
    except ValidationError as error:
        raise _error_of_option(error, {"name": "--model", "weights": "--weights"}) from None


def _error_of_option(
    error: ValidationError, options: dict[str, str], *, path: str | None = None
) -> ConfigError:
    """Return the first problem of a section that was given on the command line.

    Args:
        error: Pydantic's error.
        options: Option that sets each key of the section.
        path: Path given on the command line, if that is the problem's place.
    """
    first = next(problems_of(error))
    key = options.get(".".join(map(str, first.path)))
    return ConfigError(first.what, kind=first.kind, key=key, path=path, to_do=first.to_do)


def to_yaml(config: Config) -> str:
    """Return the config as YAML; `load_config` restores it, except base values that all stages
    override."""
    return yaml_loader.dump(config.plain())


def _read(path: Path) -> str:
    if is_folder(path):
        raise ConfigError(
            "is a folder", kind="config.not_a_file", path=path, to_do="--config takes a YAML file"
        )
    try:
        with path.open("rb") as file:
            content = file.read(yaml_loader.MAX_BYTES + 1)  # a device file may be endless
        if len(content) > yaml_loader.MAX_BYTES:
            raise ConfigError(yaml_loader.TOO_LARGE, kind="config.too_large", path=path)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        near = nearest_path(path, _is_config)
        raise ConfigError(
            "no such config file",
            kind="config.not_found",
            path=path,
            to_do=f"Did you mean {str(near)!r}?" if near else None,
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            "is not a text file in UTF-8", kind="config.not_text", path=path
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error}", kind="config.unreadable", path=path) from None


def _is_config(path: Path) -> bool:
    """Return whether a path is that of a config file, or of a run, which contains one."""
    return (
        exists(path / "config.yaml") if is_folder(path) else path.match("*.y*ml") and exists(path)
    )


def _only_once(
    problems: list[Problem], data: dict[str, Any], reported: set[yaml_loader.Path]
) -> list[Problem]:
    """Remove problems that were reported already, or that a stage inherited from the base."""
    known = {problem.path for problem in problems} | reported
    return [
        problem
        for problem in problems
        if problem.path not in reported and taken_over(data, problem.path) not in known
    ]


def _apply_overrides(
    data: dict[str, Any], overrides: Sequence[str], problems: list[Problem]
) -> dict[yaml_loader.Path, str]:
    """Apply each override to ``data`` in place; return the override that set each path."""
    origins: dict[yaml_loader.Path, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        keys = key.strip().split(".")
        path: yaml_loader.Path = tuple(keys)
        origin = f"--set {override}"
        origins[path] = origin
        if not equals or not all(path):
            problems.append(
                Problem(
                    None,
                    path,
                    "config.invalid_override",
                    "must be key.path=value, as in train.epochs=3",
                )
            )
            continue
        document = yaml_loader.parse(text)
        if document.problems:
            problems += [
                replace(problem, line=None, path=path, unread=False)
                for problem in document.problems
            ]
            continue
        try:
            holder, place = _place(data, keys)
        except LookupError as error:
            problems.append(Problem(None, path, "config.not_a_section", str(error.args[0])))
            continue
        origins[place] = origin
        if document.value is None and text.strip() and has_default(place):
            holder.pop(place[-1], None)
        else:
            holder[place[-1]] = document.value
    _drop_excluded(data, {place: _value_at(data, place) for place in origins})
    return origins


def _drop_excluded(data: dict[str, Any], given: dict[yaml_loader.Path, Any]) -> None:
    """Remove values of the file that a ``recipe``, patterns or stages given by overrides exclude.

    Args:
        given: Value at each path that an override has set.
    """
    patterns, stages, budget = ("freeze", "patterns"), ("stages",), ("train", "budget")
    others: list[yaml_loader.Path] = []
    if given.get(("recipe",)) is not None:
        others = [patterns, stages]
        others += [budget] if given["recipe",] != AUTO else []
    elif any(given.get(path) is not None for path in (patterns, stages, ("freeze",))):
        others = [("recipe",), budget]
    for *sections, key in others:
        holder = _value_at(data, tuple(sections))
        if isinstance(holder, dict) and (*sections, key) not in given:
            holder.pop(key, None)


def _value_at(data: Any, path: yaml_loader.Path) -> Any:
    """Return the value at a path, or None."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data


def _place(data: dict[str, Any], keys: Sequence[str]) -> tuple[Any, yaml_loader.Path]:
    """Return the container and the path of the value at dotted keys; missing sections are created.

    In the path, indices of lists are integers.

    Raises:
        LookupError: A key names a value that is not a section, or an index is out of range.
    """
    holder: Any = data
    path: list[str | int] = []
    for key in keys[:-1]:
        path.append(_key_in(holder, key))
        inner = holder.setdefault(key, {}) if isinstance(holder, dict) else holder[path[-1]]
        if not isinstance(inner, dict | list):
            raise LookupError(f"{key} is not a section")
        holder = inner
    return holder, (*path, _key_in(holder, keys[-1]))


def _key_in(holder: dict[str, Any] | list[Any], key: str) -> str | int:
    if isinstance(holder, dict):
        return key
    number = int(key) if key.isdecimal() and len(key) < 6 else len(holder)
    if number >= len(holder):
        raise LookupError(f"the list has no item {key}: its {len(holder)} items count from 0")
    return number


def _refuse_newer_format(path: Path, data: dict[str, Any]) -> None:
    given = data.get("format")
    if type(given) is int and given > FORMAT:
        raise ConfigError(
            f"{given} is newer than this finetune ({__version__}), which reads {FORMAT}",
            kind="config.newer_format",
            source=str(path),
            key="format",
            to_do="upgrade finetune-vision",
        )


def _error(
    path: Path, problems: list[Problem], origins: dict[yaml_loader.Path, str], *, more: int = 0
) -> ConfigError:
    """Return one error for all problems, one per line; long lists and long lines are shortened.

    Args:
        path: Path of the config file.
        problems: Problems to list.
        origins: Override that set each path.
        more: Number of further problems that are not in ``problems``.
    """
    ordered = sorted(problems, key=lambda p: (p.line or 0, str(p.path)))
    listed = tuple(_placed(path, problem, origins) for problem in ordered)
    total = len(listed) + more
    if total == 1:
        (only,) = listed
        return ConfigError.of([only], kind=only.kind)
    lines = [_short(worded(problem)) for problem in listed[:_MOST_SHOWN]]
    if len(lines) < total:
        lines.append(f"… and {total - len(lines):,} more")
    what = "\n".join([f"{total} problems", *(f"  {line}" for line in lines)])
    error = ConfigError(what, kind="config.several_problems", path=path)
    return error.at(problems=listed)


def _short(line: str, most: int = _LONGEST_LINE) -> str:
    """Escape unprintable characters and shorten a very long line in the middle."""
    half = most // 2
    return printable(line if len(line) <= most else f"{line[:half]} … {line[-half:]}")


def _placed(path: Path, problem: Problem, origins: dict[yaml_loader.Path, str]) -> errors.Problem:
    """Return the problem with the place where its value was given: the file, or an override."""
    key = ".".join(map(str, problem.path))
    place = str(path) if problem.line is None else f"{path}:{problem.line}"
    for given, origin in origins.items():
        # At an overridden key, inside an overridden section, or in a section that an override
        # created.
        inside = problem.path[: len(given)] == given
        if inside or (problem.line is None and given[: len(problem.path)] == problem.path):
            place = origin
            break
    what, to_do, place, key = (
        _short(text, _LONGEST_FIELD) for text in (problem.what, problem.to_do, place, key)
    )
    return errors.Problem(problem.kind, what, to_do or None, place, key or None)
