"""Inheritance of config values by ``stages``, on plain values before validation; no torch.

A stage takes its missing keys from the base, key by key, so the base can state what all stages
share. A key of the base that every stage overrides has no effect and is reported as a problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from finetune.config.yaml_loader import Path, Problem

SECTIONS = ("freeze", "optimizer", "schedule", "augment", "features", "runtime")
"""Sections of the base that a stage may override."""

_OF_THE_RUN = {
    "freeze": frozenset({"may_differ"}),
    "features": frozenset({"dir", "known_by"}),
    "runtime": frozenset({"device"}),
}
"""Keys of these sections that stages do not have."""

_OF_A_NAME = {
    "optimizer": ("sgd", frozenset({"lr", "weight_decay", "momentum", "options"})),
    "schedule": ("cosine", frozenset({"step_epochs", "gamma", "patience", "rise"})),
}
"""Default ``name`` of a section, and the keys that only apply to one name."""


def filled(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a config with each stage completed from the base."""
    stages = base.get("stages")
    if not isinstance(stages, list | tuple):
        return dict(base)
    return {**base, "stages": [_filled(stage, base) for stage in stages]}


def _filled(stage: Any, base: Mapping[str, Any]) -> Any:
    if not isinstance(stage, Mapping):
        return stage
    whole = dict(stage)
    for section in SECTIONS:
        own = stage.get(section, {})
        if isinstance(own, Mapping):
            whole[section] = {**_taken(section, base, stage), **own}
    if "epochs" not in stage and "epochs" in _section(base, "train"):
        whole["epochs"] = _section(base, "train")["epochs"]
    return whole


def _taken(section: str, base: Mapping[str, Any], stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a stage takes from a section of the base.

    If the stage names another optimizer or schedule, keys specific to the base's are not taken: a
    momentum or learning rate that suits one optimizer says nothing about another.
    """
    given, own = _section(base, section), _section(stage, section)
    other: frozenset[str] = _OF_THE_RUN.get(section, frozenset())
    if section in _OF_A_NAME and "name" in own:
        default, of_a_name = _OF_A_NAME[section]
        if _folded(own["name"]) != _folded(given.get("name", default)):
            other |= of_a_name
            if any(of_a_name & group.keys() for group in _groups(given)):
                other |= {"groups"}
    return {key: value for key, value in given.items() if key not in own and key not in other}


def _groups(section: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = section.get("groups")
    groups = groups if isinstance(groups, list | tuple) else ()
    return [group for group in groups if isinstance(group, Mapping)]


def _folded(name: Any) -> Any:
    return name.lower() if isinstance(name, str) else name


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    if isinstance(section, BaseModel):  # a config constructed in Python
        section = section.model_dump(exclude_unset=True)
    return section if isinstance(section, Mapping) else {}


def stage_problems(base: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the problems of a file's stages as a whole: an empty list, base keys without effect."""
    if "stages" not in base:
        return
    stages = base["stages"]
    if stages is None or stages == []:
        yield Problem(
            None,
            ("stages",),
            "config.empty_section",
            "is empty",
            "give it a stage, or remove the line",
        )
    if isinstance(stages, list) and stages and all(isinstance(one, dict) for one in stages):
        for section, key in _idle(base, stages):
            own = "epochs" if section == "train" else f"{section}.{key}"
            other = f", or another {section}" if section in _OF_A_NAME else ""
            yield Problem(
                None,
                (section, key),
                "config.no_effect",
                f"has no effect: every stage has its own {own}{other}",
                f"remove it here, or in the stages (the first stage has stages.0.{own})",
            )


def _idle(
    base: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield section and key of each base value that no stage takes."""
    for section in SECTIONS:
        taken = {key for stage in stages for key in _taken(section, base, stage)}
        for key in _section(base, section):
            # A name that every stage repeats still determines which other keys are valid.
            used = key in taken or (key == "name" and taken)
            if not used and key not in _OF_THE_RUN.get(section, ()):
                yield section, key
    if "epochs" in _section(base, "train") and all("epochs" in stage for stage in stages):
        yield "train", "epochs"


def without_base(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config without the base values that its stages override."""
    kept = dict(values)
    for section in SECTIONS:
        of_the_run = _OF_THE_RUN.get(section, frozenset())
        kept[section] = {k: v for k, v in kept[section].items() if k in of_the_run}
    kept["train"] = {k: v for k, v in kept["train"].items() if k != "epochs"}
    return {key: value for key, value in kept.items() if value != {}}


def taken_over(base: Mapping[str, Any], path: Path) -> Path | None:
    """Return the path in the base of a value that a stage takes from it; None for its own values.

    Args:
        base: Values of the config before inheritance.
        path: Path of the value in the stage.
    """
    match path:
        case ("stages", int(number), "epochs"):
            stage = base["stages"][number]
            return None if "epochs" in stage else ("train", "epochs")
        case ("stages", int(number), str(section), str(key), *_):
            stage = base["stages"][number]
            return None if key in _section(stage, section) else path[2:]
    return None
