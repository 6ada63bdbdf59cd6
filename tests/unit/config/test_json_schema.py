"""Tests of the JSON Schema of the config, by a validator that editors use too."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.command_line import CommandLine
from helpers.paths import REPOSITORY
from jsonschema import Draft202012Validator

from finetune.config.json_schema import json_schema
from finetune.config.load import load_config

SCHEMA = json_schema()
CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    Draft202012Validator.check_schema(SCHEMA)
    return Draft202012Validator(SCHEMA)


def keys() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Section, key and schema of every key."""
    for name, section in {"Config": SCHEMA, **SCHEMA["$defs"]}.items():
        for key, value in section["properties"].items():
            yield name, key, value


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_is_valid(
    path: Path, validator: Draft202012Validator
) -> None:
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(given)] == []
    written = json.loads(json.dumps(load_config(path).plain()))
    assert [error.message for error in validator.iter_errors(written)] == []


def test_every_key_has_a_description_an_example_and_a_default_or_is_required() -> None:
    required = {
        (name, key)
        for name, section in {"Config": SCHEMA, **SCHEMA["$defs"]}.items()
        for key in section.get("required", ())
    }
    for name, key, value in keys():
        assert len(value["description"]) > 10, (name, key)
        assert "``" not in value["description"], (name, key)
        assert "default" in value or (name, key) in required, (name, key)


def test_every_example_and_every_default_is_valid(validator: Draft202012Validator) -> None:
    for name, key, value in keys():
        alone = validator.evolve(schema=value | {"$defs": SCHEMA["$defs"]})
        for example in (*value["examples"], *([value["default"]] if "default" in value else [])):
            assert [*alone.iter_errors(example)] == [], (name, key, example)


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        (("train", "epoch"), 3, ["train"]),
        (("train", "epochs"), "many", ["train", "epochs"]),
        (("data", "on_unreadable"), "ignore", ["data", "on_unreadable"]),
        (("optimizr",), {}, []),
        (("freeze", "patterns"), "*", ["freeze", "patterns"]),
        (("data", "val_fraction"), 2, ["data", "val_fraction"]),
    ],
)
def test_mistakes_are_found_at_their_place(
    validator: Draft202012Validator, path: tuple[str, ...], value: object, place: list[str]
) -> None:
    config: dict[str, Any] = {"model": {"name": "mobilenet_v2"}, "data": {"root": "photos"}}
    assert validator.is_valid(config)
    wrong = copy.deepcopy(config)
    holder = wrong
    for key in path[:-1]:
        holder = holder.setdefault(key, {})
    holder[path[-1]] = value
    (error,) = validator.iter_errors(wrong)
    assert list(error.path) == place


def test_the_command_prints_the_schema(command_line: CommandLine) -> None:
    done = command_line("schema")
    assert json.loads(done.out) == json.loads(json.dumps(SCHEMA))


def test_a_config_of_init_names_the_schema_beside_it(
    command_line: CommandLine, photos: Path, tmp_path: Path
) -> None:
    file = tmp_path / "pets.yaml"
    command_line("init", str(photos), "--weights", "none", "--output", str(file))
    (named,) = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", file.read_text(), re.M)
    assert json.loads((tmp_path / named).read_text()) == json.loads(json.dumps(SCHEMA))
    given = yaml.safe_load(file.read_text())
    assert Draft202012Validator(SCHEMA).is_valid(given)
