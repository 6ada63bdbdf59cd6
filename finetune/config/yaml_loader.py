"""Strict YAML parser that records the line of every value; imports no torch.

Differences from PyYAML's YAML 1.1: ``1e-3`` is a number; only ``true`` and ``false`` are booleans;
``010`` is ten and ``1:30`` is text; duplicate keys, anchors and tags are reported as problems.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 1_000_000
TOO_LARGE = "is larger than 1 MB, the limit of a config file"
MAX_DEPTH = 20
MAX_EVENTS = 10_000
"""Largest number of parser events (one or two per value); parsing this many takes a second."""
_MOST_DIGITS = 300

Path = tuple[str | int, ...]

_QUOTE_HINT = 'put a pattern that starts with * or ! in quotes: "*", "!layer4.*"'


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""]
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$"),
    list("-+0123456789."),
)


_PLAIN_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class _UnreadError(Exception):
    """A scalar that cannot be read as a value."""

    def __init__(
        self, what: str, to_do: str = "", *, kind: str = "config.unreadable_value"
    ) -> None:
        super().__init__(what)
        self.kind, self.what, self.to_do = kind, what, to_do


@dataclass(frozen=True)
class Problem:
    """Problem in a config file: line, path of the key, kind, problem and remedy."""

    line: int | None
    path: Path
    kind: str
    what: str
    to_do: str = ""
    unread: bool = False
    """Whether the value at ``path`` could not be read, so that it cannot be validated."""


@dataclass
class Document:
    """Parsed file: plain values, the line of every path, and the problems found."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line_of(self, path: Path) -> int | None:
        """Return the line of ``path``, or of its nearest ancestor in the file."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


def parse(text: str) -> Document:
    """Parse one YAML document; problems are collected, not raised."""
    document = Document()
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        document.problems.append(Problem(None, (), "config.too_large", TOO_LARGE))
        return document
    try:
        if not _refuse_aliases(text, document):
            return document
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        document.problems.append(_syntax_problem(error, text))
        return document
    if node is not None:
        document.value = _construct(node, (), document)
    return document


def _refuse_aliases(text: str, document: Document) -> bool:
    """Return whether the text is free of anchors, aliases, deep nesting and too many values.

    Checked on the event stream before composing, so that an alias bomb or a thousand brackets cost
    nothing.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1 if event.start_mark else None
        if number > MAX_EVENTS:
            document.problems.append(
                Problem(
                    line,
                    (),
                    "config.too_large",
                    f"contains more than {MAX_EVENTS:,} keys and values up to here",
                    "a config is much shorter; was another file meant?",
                )
            )
            return False
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            document.problems.append(
                Problem(
                    line,
                    (),
                    "config.yaml_feature",
                    "anchors (&) and aliases (*) are not supported",
                    _QUOTE_HINT,
                )
            )
            return False
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            document.problems.append(
                Problem(line, (), "config.too_large", f"nested deeper than {MAX_DEPTH} levels")
            )
            return False
    return True


# Messages of the parser, and explanations for the author of a config.
_SYNTAX = {
    "expected <block end>": ("this line is indented unlike the lines around it", ""),
    "mapping values are not allowed": ("two colons in one line", "put each key on its own line"),
    "cannot start any token": ("unexpected character", "indent with spaces, not tabs"),
    "but found another document": ("contains two documents (---)", "keep one"),
}


def _syntax_problem(error: yaml.YAMLError, text: str) -> Problem:
    """Return a one-line problem for a parser error, preferring the most likely cause."""
    if isinstance(error, yaml.reader.ReaderError):
        stray = f"contains the control character U+{error.character:04X}"
        return Problem(text.count("\n", 0, error.position) + 1, (), "config.yaml_syntax", stray)
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else None
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    for number, content in enumerate(text.splitlines(), start=1):
        # An unquoted ! starts a tag, so the parser reports an error lines later.
        if re.search(r"(?:^|[\[,:\s-])[!*](?=[\w.*\],]|$)", _without_quoted(content)):
            return Problem(number, (), "config.yaml_syntax", "not valid YAML", _QUOTE_HINT)
    reason, to_do = next((ours for key, ours in _SYNTAX.items() if key in reason), (reason, ""))
    return Problem(line, (), "config.yaml_syntax", f"not valid YAML: {reason}", to_do)


def _without_quoted(line: str) -> str:
    return re.sub(r"\"[^\"]*\"|'[^']*'|(?:^|\s)#.*", "", line)


def _construct(node: yaml.Node, path: Path, document: Document) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN_TAGS:
        what = f"the YAML tag {node.tag} is not supported"
        document.problems.append(
            Problem(line, path, "config.yaml_feature", what, _QUOTE_HINT, unread=True)
        )
        return None
    if isinstance(node, yaml.MappingNode):
        return _construct_mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, i), document) for i, item in enumerate(node.value)]
    try:
        return _scalar(node)
    except _UnreadError as error:
        document.problems.append(
            Problem(line, path, error.kind, error.what, error.to_do, unread=True)
        )
        return None


def _scalar(node: yaml.Node) -> Any:
    kind = node.tag.rpartition(":")[2]
    text = str(node.value)
    if kind == "str":
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates such as \ud800
            raise _UnreadError(f"{text!a} contains half of a surrogate pair") from None
        return text
    if kind == "int":
        if len(text) > _MOST_DIGITS:
            raise _UnreadError(
                f"the number has {len(text)} digits; at most {_MOST_DIGITS} can be read"
            )
        return int(text)  # SafeLoader reads 010 as eight
    if kind == "float":
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    if kind == "bool":
        return text == "true"
    if kind == "null":
        return None
    what = f"the YAML tag {node.tag} is not supported"
    raise _UnreadError(what, _QUOTE_HINT, kind="config.yaml_feature")


def _construct_mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        before = len(document.problems)
        key = _construct(key_node, (*path, "?"), document)
        if not isinstance(key, Hashable) or key is None:
            if len(document.problems) == before:
                document.problems.append(
                    Problem(line, path, "config.yaml_syntax", "a key must be a word")
                )
            continue
        name = str(key_node.value)
        here = (*path, name)
        if name in value:
            first = document.lines[here]
            document.problems.append(
                Problem(
                    line,
                    here,
                    "config.duplicate_key",
                    f"given twice, first on line {first}",
                    "keep one",
                )
            )
            continue
        document.lines[here] = line
        value[name] = _construct(value_node, here, document)
    return value


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes text which YAML 1.1 or this module would not read as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def dump(value: Any) -> str:
    """Return ``value`` as YAML; `parse` restores it."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
