"""Freeze patterns: which parameters are frozen, and by which pattern; imports no torch.

A plan is made from the parameter names of the pretrained model, before its head is replaced.
Patterns are case-sensitive globs in which ``*`` also matches dots; the last pattern that matches a
name decides; ``!`` unfreezes. The new head is always trained.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate

from finetune.core.errors import ConfigError, Problem
from finetune.core.text import nearest


@dataclass(frozen=True)
class Decision:
    """Freeze decision for one parameter of the pretrained model."""

    name: str
    frozen: bool
    pattern: str | None
    """Last pattern that matched, or None."""


@dataclass(frozen=True)
class PatternMatch:
    """Parameters matched by one pattern."""

    pattern: str
    matched: tuple[str, ...]
    """Names that the pattern matches."""
    decided: tuple[str, ...]
    """Matched names that no later pattern matches."""


@dataclass(frozen=True)
class FreezePlan:
    """Decision for every parameter; head parameters are included, but are always trained."""

    decisions: tuple[Decision, ...]
    matches: tuple[PatternMatch, ...]
    heads: tuple[str, ...]
    warnings: tuple[str, ...]

    def is_head(self, name: str) -> bool:
        """Whether a parameter belongs to a replaced layer (head)."""
        return _is_under(name, self.heads)

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the parameters that require no gradient."""
        return frozenset(d.name for d in self.decisions if d.frozen)


def plan_freeze(
    names: Sequence[str], patterns: Sequence[str], *, heads: Sequence[str] = ()
) -> FreezePlan:
    """Decide for each name whether it is frozen.

    Args:
        names: Parameter names of the pretrained model, in order.
        heads: Paths of the modules that are replaced; their parameters are always trained.

    Raises:
        ConfigError: A pattern matches nothing; the message lists every such pattern.
    """
    heads = tuple(heads)
    state = dict.fromkeys(names, False)
    decided_by: dict[str, int] = {}
    before: list[dict[str, bool]] = []
    matched: list[tuple[str, ...]] = []
    for index, pattern in enumerate(patterns):
        matches = re.compile(translate(pattern.removeprefix("!"))).match
        hits = tuple(name for name in names if matches(name))
        matched.append(hits)
        before.append({name: state[name] for name in hits})
        for name in hits:
            state[name] = not pattern.startswith("!")
            decided_by[name] = index
    idle = [pattern for pattern, hits in zip(patterns, matched, strict=True) if not hits]
    if idle:
        key = "freeze.patterns"
        raise ConfigError.of(
            [idle_problem(key, glob, names, without=f"{key}=[]") for glob in idle],
            kind="config.several_problems",
        )
    decisions = tuple(
        Decision(
            name,
            state[name] and not _is_under(name, heads),
            patterns[decided_by[name]] if name in decided_by else None,
        )
        for name in names
    )
    matches_by_pattern = tuple(
        PatternMatch(pattern, hits, tuple(n for n in hits if decided_by[n] == index))
        for index, (pattern, hits) in enumerate(zip(patterns, matched, strict=True))
    )
    warnings = tuple(
        warning
        for match, old in zip(matches_by_pattern, before, strict=True)
        if (warning := _warning(match, old, heads))
    )
    return FreezePlan(decisions, matches_by_pattern, heads, warnings)


def _is_under(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _warning(match: PatternMatch, before: dict[str, bool], heads: tuple[str, ...]) -> str | None:
    pattern = match.pattern
    freezes = not pattern.startswith("!")
    backbone = [name for name in match.matched if not _is_under(name, heads)]
    if not backbone:
        return (
            f"freeze.patterns: {pattern!r} has no effect: it matches only the head, "
            "which is replaced and always trained"
        )
    if all(before[name] == freezes for name in backbone):
        state = (
            "frozen already" if freezes else "trainable already; to freeze the rest, put '*' first"
        )
        return f"freeze.patterns: {pattern!r} has no effect: all it matches was {state}"
    if not any(not _is_under(name, heads) for name in match.decided):
        return f"freeze.patterns: {pattern!r} has no effect: later patterns override all of it"
    return None


def idle_problem(key: str, pattern: str, names: Sequence[str], *, without: str) -> Problem:
    """Problem of a pattern that matches nothing, with suggestions.

    Args:
        key: Config key that has the pattern.
        without: ``--set`` override that removes such patterns from the config.
    """
    glob = pattern.removeprefix("!")
    mark = pattern[: len(pattern) - len(glob)]
    near = [f"{mark}{choice}" for choice in _suggestions(glob, names)]
    hint = f"Did you mean {' or '.join(repr(choice) for choice in near)}? " if near else ""
    return Problem(
        "config.pattern_matches_nothing",
        f"{pattern!r} matches no parameter",
        f"{hint}Top-level modules: {', '.join(top_level(names))}. "
        f"`finetune freeze-report --set {without} --verbose --config FILE` lists all names",
        key=key,
    )


def _suggestions(glob: str, names: Sequence[str]) -> list[str]:
    """Patterns similar to ``glob`` that match: as a module, in another case, or respelled."""
    modules = {part for name in names for part in _parents(name)}
    if glob.rstrip(".") in modules:
        return [f"{glob.rstrip('.')}.*"]
    folded = re.compile(translate(glob), re.IGNORECASE).match
    if any(folded(name) for name in names):
        by_case = {module.lower(): module for module in sorted(modules)}
        stem = glob.removesuffix(".*").removesuffix("*")
        if stem.lower() in by_case:
            return [by_case[stem.lower()] + glob[len(stem) :]]
    stem = glob.removesuffix("*").removesuffix(".")
    near_modules = nearest(stem, sorted(modules), limit=2)
    near_names = nearest(stem, names, limit=2)
    if near_names and (not near_modules or "weight" in stem or "bias" in stem):
        return near_names
    return [f"{module}.*" for module in near_modules]


def _parents(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def top_level(names: Sequence[str]) -> list[str]:
    """First components of the names, without duplicates, in order."""
    return list(Counter(name.partition(".")[0] for name in names))
