"""JSON Schema of the config, for editors: a description, default and example of every key.

Descriptions are the docstrings of the fields, which are read from the source. pydantic can do that
too (``use_attribute_docstrings``), but then reads the source of each section whenever it is
imported, which would slow down every command.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from finetune.config.base import AUTO, Section
from finetune.config.schema import Config
from finetune.core.files import write_text

FILE = "finetune.schema.json"
"""Name of the schema beside a config that `finetune init` writes."""
MODELINE = f"# yaml-language-server: $schema={FILE}"
"""First line of a config, by which editors find the schema beside it."""
_DIALECT = "https://json-schema.org/draft/2020-12/schema"

_EXAMPLES: Mapping[str, Any] = {
    "Config.model": {"name": "mobilenet_v2"},
    "Config.recipe": "last_block",
    "Config.freeze": {"patterns": ["*", "!features.18.*"]},
    "Config.adapt": {"lora": {"rank": 8}},
    "Config.data": {"root": "photos/pets"},
    "Config.augment": {"policy": "flip"},
    "Config.train": {"epochs": 20},
    "Config.optimizer": {"name": "adamw", "lr": 0.001},
    "Config.schedule": {"name": "cosine", "warmup_epochs": 1},
    "Config.stages": [{"epochs": 5}, {"epochs": 10, "freeze": {"patterns": []}}],
    "Config.features": {"cache": "disk"},
    "Config.runtime": {"device": "cpu"},
    "Config.tune": {"trials": 50},
    "Config.track": {"to": ["tensorboard"]},
    "Config.output_dir": "runs/pets",
    "AdaptConfig.lora": {"rank": 8},
    "DataConfig.root": "photos/pets",
    "DataConfig.folder": "datasets",
    "DataConfig.download": True,
    "DataConfig.path_column": "image",
    "DataConfig.label_column": "species",
    "DataConfig.split_column": "is_valid",
    "DataConfig.group_column": "patient",
    "DataConfig.table": {"delimiter": "semicolon"},
    "DataConfig.group_pattern": r"person\d+",
    "DataConfig.corrections": "corrections.csv",
    "EarlyStoppingConfig.patience": 5,
    "FeaturesConfig.dir": "cache/features",
    "GivenPreprocessing.resize": 256,
    "GivenPreprocessing.crop": 224,
    "GroupConfig.match": ["features.18.*"],
    "GroupConfig.lr": 0.0001,
    "GroupConfig.lr_scale": 0.1,
    "GroupConfig.weight_decay": 0.0,
    "ModelConfig.name": "mobilenet_v2",
    "ModelConfig.leave_out": ["classifier.*"],
    "ModelConfig.preprocessing": {"resize": 256, "crop": 224},
    "OptimizerConfig.groups": [{"match": ["classifier.*"], "lr_scale": 10}],
    "OptimizerConfig.lr": 0.001,
    "OptimizerConfig.weight_decay": 0.05,
    "OptimizerConfig.momentum": 0.9,
    "OptimizerConfig.layer_decay": 0.75,
    "OptimizerConfig.options": {"nesterov": True},
    "Range.min": 0.0001,
    "Range.max": 0.1,
    "ScheduleConfig.step_epochs": 10,
    "ScheduleConfig.gamma": 0.1,
    "ScheduleConfig.patience": 3,
    "ScheduleConfig.rise": 0.3,
    "StageConfig.freeze": {"patterns": ["*"]},
    "StageConfig.optimizer": {"lr": 0.005},
    "StageConfig.schedule": {"warmup_epochs": 1},
    "StageConfig.augment": {"policy": "flip"},
    "StageConfig.features": {"cache": "off"},
    "StageConfig.runtime": {"precision": "float32"},
    "TableConfig.delimiter": "semicolon",
    "TableConfig.folder": "images",
    "TableConfig.suffix": ".jpg",
    "TrackConfig.to": ["tensorboard", "mlflow"],
    "TrackConfig.name": "pets, all layers",
    "TrainConfig.early_stopping": {"patience": 5},
    "TrainConfig.clip_norm": 1.0,
    "TrainConfig.ema": 0.999,
    "TrainConfig.budget": "15m",
    "TuneConfig.trials": 50,
    "TuneConfig.metric": "balanced_accuracy",
    "TuneConfig.lr": {"min": 0.0001, "max": 0.1},
    "TuneConfig.weight_decay": [0.0, 0.0001],
    "TuneConfig.label_smoothing": [0.0, 0.1],
    "TuneConfig.batch_size": [32, 64],
    "TuneConfig.epochs": [10, 30],
}
"""Example of each key that has neither a default nor a list of permitted words."""


_FILLED = {"output_dir": "runs/NAME", "lr": AUTO, "weight_decay": AUTO}
"""Default of each required key that is filled in before validation; NAME is that of the file."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file (draft 2020-12)."""
    schema = Config.model_json_schema()
    sections = {section.__name__: section for section in _sections(Config)}
    definitions = {"Config": schema, **schema["$defs"]}
    for name, definition in definitions.items():
        described = _docstrings(sections[name])
        required = definition.pop("required", ())
        if needed := [key for key in required if key not in _FILLED]:
            definition["required"] = needed
        for key, value in definition["properties"].items():
            own = described.get(key) or _described(value, definitions)
            value["description"] = own
            value.pop("title", None)
            if key in _FILLED and key in required:
                value["default"] = _FILLED[key]
            elif "default" not in value:
                default = _default(sections[name], key)
                if default is not None:
                    value["default"] = default
            value["examples"] = [_example(name, key, value)]
        definition.pop("title", None)
        definition["description"] = definition["description"].replace("``", "`")
    return {
        "$schema": _DIALECT,
        "title": "Config of finetune",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def schema_text() -> str:
    """Return the JSON Schema as text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def write_schema(folder: Path) -> Path:
    """Write the schema beside a config, for its modeline, and return its path.

    Raises:
        OutputError: The file cannot be written.
    """
    path = folder / FILE
    write_text(path, schema_text())
    return path


def _sections(section: type[Section]) -> Iterator[type[Section]]:
    """Yield a section and all sections in its fields."""
    yield section
    for field in section.model_fields.values():
        for inner in _types_in(field.annotation):
            yield from _sections(inner)


def _types_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)


def _docstrings(section: type[Section]) -> dict[str, str]:
    """Return the docstring of each field of a section."""
    found: dict[str, str] = {}
    for base in reversed(section.__mro__):
        if not issubclass(base, Section) or base is Section:
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
            ):
                found[field.target.id] = " ".join(str(text.value.value).split()).replace("``", "`")
    return found


def _described(value: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return the description of the section that a key refers to."""
    name = value["$ref"].rpartition("/")[2]
    return str(definitions[name]["description"])


def _default(section: type[Section], key: str) -> Any:
    """Return the plain default of a section that is built when it is missing; None without one."""
    field = section.model_fields[key]
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True)
    if not isinstance(default, Section):
        return None
    return default.model_dump(mode="json", exclude_none=True)


def _example(section: str, key: str, value: Mapping[str, Any]) -> Any:
    given = _EXAMPLES.get(f"{section}.{key}") or _EXAMPLES.get(f"{_parent(section)}.{key}")
    if given is not None:
        return given
    words = [word for word in value.get("enum", ()) if word != value.get("default")]
    return words[0] if words else value["default"]


def _parent(section: str) -> str:
    """Return the section whose examples another one shares."""
    return {"FreezeConfig": "StageFreeze", "FeaturesConfig": "StageFeatures"}.get(section, section)
