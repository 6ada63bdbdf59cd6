"""From a config file and ``--set`` overrides to a `Config`, every problem named at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune import __version__, yaml_text
from finetune.config import FORMAT, Config
from finetune.errors import ConfigError, did_you_mean
from finetune.yaml_text import Problem

_UNION_TAGS = frozenset({"word", "section"})


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config file.

    Args:
        overrides: ``key.path=value`` texts; they pass the same validation as the file.

    Raises:
        ConfigError: names every problem with its line and dotted path.
    """
    path = Path(path)
    document = yaml_text.parse(_read(path))
    problems = list(document.problems)
    data: Any = document.value
    if data is None and not problems:
        data = {}
    if not isinstance(data, dict):
        problems = problems or [Problem(1, (), "expected sections such as model: and data:")]
        raise ConfigError(_message(path, problems, {}))
    origins = _apply_overrides(data, overrides, problems)
    _refuse_newer_format(path, data)
    data.setdefault("output_dir", str(Path("runs") / path.stem))
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        for problem in _problems_of(error):
            line = document.line_of(problem.path)
            problems.append(Problem(line, problem.path, problem.text))
    else:
        if not problems:
            return config
    raise ConfigError(_message(path, problems, origins))


def to_yaml(config: Config) -> str:
    """The config as a file that `load_config` reads back equal."""
    return yaml_text.dump(config.plain())


def _read(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; --config takes a YAML file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = did_you_mean(path.name, (other.name for other in _siblings(path)))
        raise ConfigError(f"{path}: no such config file.{near}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None


def _siblings(path: Path) -> Iterable[Path]:
    return path.parent.glob("*.y*ml") if path.parent.is_dir() else ()


def _apply_overrides(
    data: dict[str, Any], overrides: Sequence[str], problems: list[Problem]
) -> dict[yaml_text.Path, str]:
    """Put each override into ``data``; returns which text set which path."""
    origins: dict[yaml_text.Path, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        path: yaml_text.Path = tuple(key.strip().split("."))
        origins[path] = f"--set {override}"
        if not equals or not all(path):
            problems.append(Problem(None, path, "expected key.path=value, as in train.epochs=3"))
            continue
        document = yaml_text.parse(text)
        if document.problems:
            problems += [Problem(None, path, problem.text) for problem in document.problems]
            continue
        section = data
        for part in path[:-1]:
            inner = section.setdefault(str(part), {})
            if not isinstance(inner, dict):
                problems.append(Problem(None, path, f"{part} is no section"))
                break
            section = inner
        else:
            section[str(path[-1])] = document.value
    return origins


def _refuse_newer_format(path: Path, data: dict[str, Any]) -> None:
    given = data.get("format")
    if type(given) is int and given > FORMAT:
        raise ConfigError(
            f"{path}: format {given} is newer than this finetune ({__version__}), which reads "
            f"format {FORMAT}; upgrade finetune-vision"
        )


def _problems_of(error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors():
        path = tuple(part for part in detail["loc"] if part not in _UNION_TAGS)
        yield Problem(None, path, _words(detail, path))


def _words(detail: Any, path: yaml_text.Path) -> str:
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key.{_nearest_key(path)}"
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected a section of keys ({_keys_of(path)}), not {given!r}"
    if kind == "literal_error":
        choices = [word.strip(" '") for word in _choices(detail["ctx"]["expected"])]
        near = did_you_mean(given, choices) if isinstance(given, str) else ""
        return f"must be one of {', '.join(choices)}, not {given!r}.{near}"
    text = str(detail["msg"]).replace("Input should be", "must be").replace("valid ", "")
    text = text.replace("a integer", "a whole number").replace("a string", "text")
    hint = ""
    if isinstance(given, str) and given.lower() in ("on", "off", "yes", "no", "true", "false"):
        hint = "; only true and false are booleans"
    return f"{text[:1].lower()}{text[1:]}, not {given!r}{hint}"


def _choices(expected: str) -> list[str]:
    return expected.replace(" or ", ",").split(",")


def _section_at(path: yaml_text.Path) -> type[BaseModel] | None:
    section: type[BaseModel] = Config
    for part in path:
        field = section.model_fields.get(str(part))
        if field is None:
            return None
        annotation = field.annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        section = annotation
    return section


def _keys_of(path: yaml_text.Path) -> str:
    section = _section_at(path)
    return ", ".join(section.model_fields) if section else "…"


def _dotted_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _dotted_keys(field.annotation, f"{prefix}{name}.")


def _nearest_key(path: yaml_text.Path) -> str:
    """The key meant: in the same section first, else the same word in another section."""
    word = str(path[-1])
    section = _section_at(path[:-1])
    near = did_you_mean(word, section.model_fields) if section else ""
    elsewhere = [key for key in _dotted_keys() if key.rpartition(".")[2] == word]
    if elsewhere:
        return f" Did you mean {' or '.join(repr(key) for key in elsewhere)}?"
    if near:
        return near
    known = _keys_of(path[:-1])
    return f" Known here: {known}."


def _message(path: Path, problems: list[Problem], origins: dict[yaml_text.Path, str]) -> str:
    lines = []
    for problem in sorted(problems, key=lambda problem: (problem.line or 0, str(problem.path))):
        dotted = ".".join(map(str, problem.path))
        text = f"{dotted}: {problem.text}" if dotted else problem.text
        origin = _origin(problem.path, origins)
        if origin is not None:
            lines.append(f"{origin}: {problem.text}")
        elif problem.line is not None:
            lines.append(f"{path}:{problem.line}: {text}")
        else:
            lines.append(f"{path}: {text}")
    if len(lines) == 1:
        return lines[0]
    return "\n".join([f"{path}: {len(lines)} problems", *(f"  {line}" for line in lines)])


def _origin(path: yaml_text.Path, origins: dict[yaml_text.Path, str]) -> str | None:
    """The override that gave ``path``, a part of it, or the section that holds it."""
    for given, text in origins.items():
        shared = min(len(given), len(path))
        if shared and given[:shared] == path[:shared]:
            return text
    return None
