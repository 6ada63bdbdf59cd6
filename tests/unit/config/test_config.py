"""Tests of config files and overrides: parsing, defaults and error messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.messages import check_error, fails
from helpers.paths import REPOSITORY
from pydantic import ValidationError

from finetune.config import yaml_loader
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config
from finetune.core.errors import ConfigError, Problem

MINIMAL = "model: {name: resnet18}\ndata: {root: photos}\n"  # two lines: the rest starts on line 3

Load = Callable[..., Config]
Refuse = Callable[..., ConfigError]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Folder of a test's config file."""
    return tmp_path / "pets.yaml"


@pytest.fixture
def load(file: Path) -> Load:
    """Loads the minimal config with further lines, and overrides."""

    def load(more: str = "", *overrides: str) -> Config:
        file.write_text(MINIMAL + more, encoding="utf-8")
        return load_config(file, overrides)

    return load


@pytest.fixture
def refuse(load: Load, file: Path, monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """The error that refuses the minimal config with further lines, ``pets.yaml``.

    Its wording is that of the golden file.
    """
    monkeypatch.chdir(file.parent)

    def refuse(more: str = "", *overrides: str) -> ConfigError:
        file.write_text(MINIMAL + more, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_config(file.name, overrides)
        check_error(caught.value)
        return caught.value

    return refuse


def place(error: ConfigError | Problem) -> tuple[str, str | None, str | None]:
    """Kind and place of an error."""
    return error.kind, error.source, error.key


def value_of(text: str) -> Any:
    """What YAML text means here."""
    document = yaml_loader.parse(text)
    assert not document.problems
    return document.value


# YAML without surprises


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("010", 10),
        ("+3", 3),
        ("-07", -7),
    ],
)
def test_numbers_are_what_they_look_like(text: str, number: float) -> None:
    value = value_of(text)
    assert (value, type(value)) == (number, type(number))


@pytest.mark.parametrize(
    "text",
    ["on", "off", "yes", "no", "y", "n", "On", "NO", "True", "FALSE", "Null", "NULL"],
)
def test_words_stay_words(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize(
    "text", ["1:30", "1_000", "0x1F", "0o17", "2020-01-01", "1e", "1.2.3", "="]
)
def test_what_only_resembles_a_number_is_text(text: str) -> None:
    assert value_of(text) == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False)])
def test_true_and_false_are_booleans(text: str, value: bool) -> None:
    assert value_of(text) is value


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_is_nothing(text: str) -> None:
    assert value_of(f"key: {text}") == {"key": None}


def test_a_learning_rate_may_be_written_1e_3(load: Load) -> None:
    assert load("optimizer: {lr: 1e-3}").optimizer.lr == 0.001


@pytest.mark.parametrize("word", ["on", "off", "yes", "no"])
def test_set_reads_words_as_the_file_does(load: Load, word: str) -> None:
    assert load("", f"data.root={word}").data.root == word


@pytest.mark.parametrize("word", ["on", "yes", "True"])
def test_a_word_is_no_boolean_and_the_message_says_what_is(refuse: Refuse, word: str) -> None:
    override = f"model.aux_heads={word}"
    error = refuse("", override)
    assert place(error) == ("config.invalid_value", f"--set {override}", "model.aux_heads")


def test_a_duplicate_key_is_refused_with_both_lines(refuse: Refuse) -> None:
    error = refuse("train:\n  epochs: 3\nseed: 1\ntrain:\n  epochs: 4\n")
    assert place(error) == ("config.duplicate_key", "pets.yaml:6", "train")
    assert "line 3" in error.what


def test_a_duplicate_key_within_a_section_is_refused(refuse: Refuse) -> None:
    error = refuse("train:\n  epochs: 3\n  epochs: 3\n")
    assert place(error) == ("config.duplicate_key", "pets.yaml:5", "train.epochs")


@pytest.mark.parametrize(
    "more",
    [
        "seed: &one 1\n",
        "train: &t {epochs: 3}\n",
        "freeze: &f\n  patterns: []\n",
        "seed: *one\n",
    ],
)
def test_anchors_and_aliases_are_refused(refuse: Refuse, more: str) -> None:
    assert place(refuse(more)) == ("config.yaml_feature", "pets.yaml:3", None)


def test_an_alias_bomb_costs_nothing(refuse: Refuse) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 20)]
    assert refuse("\n".join(lines)).kind == "config.yaml_feature"


@pytest.mark.parametrize("tag", ["!!python/name:os.system x", "!!binary eA==", "!mine x", "!x"])
def test_tags_are_refused_in_one_message(refuse: Refuse, tag: str) -> None:
    error = refuse(f"output_dir: {tag}\n")
    assert place(error) == ("config.yaml_feature", "pets.yaml:3", "output_dir")


@pytest.mark.parametrize("brackets", ["[" * 3000 + "]" * 3000, "[" * 3000, "{a: " * 3000])
def test_deep_nesting_is_refused(refuse: Refuse, brackets: str) -> None:
    assert place(refuse(f"x: {brackets}\n")) == ("config.too_large", "pets.yaml:3", None)


def test_a_file_of_two_megabytes_is_refused(refuse: Refuse) -> None:
    error = refuse("#" * 2_000_000)
    assert (error.kind, error.path) == ("config.too_large", "pets.yaml")


UNQUOTED = [
    "patterns: *\n",
    "patterns: !layer4.*\n",
    "patterns: [*]\n",
    "patterns: [*.bias]\n",
    "patterns: [*, fc.weight]\n",
    "patterns: [!layer4.*]\n",
    'patterns: ["*", !layer4.*]\n',
    "patterns:\n  - *\n",
    "patterns:\n  - !layer4.*\n",
    'patterns:\n  - "*"\n  - !layer4.*\n',
]


@pytest.mark.parametrize("patterns", UNQUOTED)
def test_an_unquoted_pattern_is_answered_with_the_quotes_it_needs(
    refuse: Refuse, patterns: str
) -> None:
    error = refuse(f"freeze:\n  {patterns.replace('  - ', '    - ')}")
    assert error.kind in ("config.yaml_syntax", "config.yaml_feature")
    assert '"*", "!layer4.*"' in (error.to_do or "")


@pytest.mark.parametrize("patterns", UNQUOTED)
def test_an_unquoted_pattern_is_one_problem(refuse: Refuse, patterns: str) -> None:
    assert len(refuse(f"freeze:\n  {patterns.replace('  - ', '    - ')}").problems) == 1


def test_an_unquoted_pattern_in_an_override_is_answered_with_quotes(refuse: Refuse) -> None:
    error = refuse("", "freeze.patterns=[*]")
    assert (error.source, error.key) == ("--set freeze.patterns=[*]", "freeze.patterns")
    assert '"*", "!layer4.*"' in (error.to_do or "")


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("train: {epochs: 3\n", 4),
        ("train: epochs: 3\n", 3),
        ("train:\n\tepochs: 3\n", 4),
        ("train:\n  epochs: 3\n seed: 1\n", 5),
    ],
)
def test_a_syntax_error_is_one_line_with_its_place(refuse: Refuse, more: str, line: int) -> None:
    assert place(refuse(more)) == ("config.yaml_syntax", f"pets.yaml:{line}", None)


def test_a_number_of_thousands_of_digits_is_no_tag(refuse: Refuse) -> None:
    assert refuse(f"seed: {'9' * 5000}\n").kind == "config.unreadable_value"


# Keys


@pytest.mark.parametrize(
    ("more", "key", "meant"),
    [
        ("freez: {}\n", "freez", "freeze"),
        ("out_dir: x\n", "out_dir", "output_dir"),
        ("train: {epoch: 3}\n", "train.epoch", "train.epochs"),
        ("train: {Epochs: 3}\n", "train.Epochs", "train.epochs"),
        ("train: {lr: 0.1}\n", "train.lr", "optimizer.lr"),
        ("lr: 0.1\n", "lr", "optimizer.lr"),
        ("epochs: 3\n", "epochs", "train.epochs"),
        ("epoch: 3\n", "epoch", "train.epochs"),
        ("batchsize: 3\n", "batchsize", "data.batch_size"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_real_one(
    refuse: Refuse, more: str, key: str, meant: str
) -> None:
    error = refuse(more)
    assert place(error) == ("config.unknown_key", "pets.yaml:3", key)
    assert error.to_do == f"Did you mean '{meant}'?"


def test_an_unknown_key_of_a_preprocessing_is_refused_with_the_nearest_real_one(
    refuse: Refuse,
) -> None:
    section = "{resize: 36, crop: 32, interpolaton: bilinear}"
    error = refuse("", f"model.preprocessing={section}")
    assert (error.kind, error.key) == ("config.unknown_key", "model.preprocessing.interpolaton")
    assert "'model.preprocessing.interpolation'" in (error.to_do or "")


def test_a_key_near_to_nothing_is_refused_with_the_known_ones(refuse: Refuse) -> None:
    error = refuse("train: {zzz: 3}\n")
    assert place(error) == ("config.unknown_key", "pets.yaml:3", "train.zzz")
    assert "epochs, label_smoothing, monitor, " in (error.to_do or "")


def test_a_word_that_is_far_from_every_key_elsewhere_suggests_none(refuse: Refuse) -> None:
    first = next(
        problem
        for problem in refuse("stages: [{recipe: last_block}]\n").problems
        if problem.key == "stages.0.recipe"
    )
    assert first.kind == "config.unknown_key"
    assert "epochs, freeze, " in (first.to_do or "")


def test_a_key_that_is_not_a_word_is_refused(refuse: Refuse) -> None:
    assert place(refuse("? [a, b]\n: 1\n")) == ("config.yaml_syntax", "pets.yaml:3", None)


# Messages


def test_all_problems_come_in_one_message_with_path_and_line(refuse: Refuse) -> None:
    error = refuse("lr: 0.1\ntrain:\n  epochs: many\noptimizer:\n  lr: -1\nseed: 1\nseed: 2\n")
    assert (error.kind, error.path) == ("config.several_problems", "pets.yaml")
    assert [place(problem) for problem in error.problems] == [
        ("config.unknown_key", "pets.yaml:3", "lr"),
        ("config.invalid_value", "pets.yaml:5", "train.epochs"),
        ("config.invalid_value", "pets.yaml:7", "optimizer.lr"),
        ("config.duplicate_key", "pets.yaml:9", "seed"),
    ]


def test_problems_of_file_and_overrides_come_in_one_message(refuse: Refuse) -> None:
    error = refuse("seed: x\n", "train.epochs=0", "train.epoch=1")
    assert {place(problem) for problem in error.problems} == {
        ("config.invalid_value", "pets.yaml:3", "seed"),
        ("config.invalid_value", "--set train.epochs=0", "train.epochs"),
        ("config.unknown_key", "--set train.epoch=1", "train.epoch"),
    }


def test_required_keys_are_asked_for_together(file: Path) -> None:
    file.write_text("model: {}\n", encoding="utf-8")
    with fails("config.several_problems", path=file) as caught:
        load_config(file)
    missing = {(problem.kind, problem.key) for problem in caught.value.problems}
    assert missing == {("config.missing_key", "model.name"), ("config.missing_key", "data")}


@pytest.mark.parametrize("given", ["Adma", "3", "null"])
def test_an_unknown_optimizer_is_one_problem(refuse: Refuse, given: str) -> None:
    error = refuse(f"optimizer: {{name: {given}}}\n")
    assert (error.source, error.key) == ("pets.yaml:3", "optimizer.name")
    assert len(error.problems) == 1


def test_an_unknown_optimizer_is_refused_with_the_nearest(refuse: Refuse) -> None:
    error = refuse("optimizer: {name: RMSpop}\n")
    assert error.kind == "config.unknown_optimizer"
    assert "Did you mean 'rmsprop'?" in (error.to_do or "")


@pytest.mark.parametrize("given", ["AdamW", "ADAMW", "adamw"])
def test_an_optimizers_name_may_be_written_in_any_case(load: Load, given: str) -> None:
    assert load(f"optimizer: {{name: {given}}}\n").optimizer.name == "adamw"


@pytest.mark.parametrize("given", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_train_here_is_refused_with_the_reason(
    refuse: Refuse, given: str
) -> None:
    error = refuse(f"optimizer: {{name: {given}}}\n")
    assert place(error) == ("config.unsupported_optimizer", "pets.yaml:3", "optimizer.name")


@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum", "maximize", "params"])
def test_an_option_that_is_a_key_of_its_own_or_would_do_harm_is_refused(
    refuse: Refuse, key: str
) -> None:
    error = refuse(f"optimizer: {{options: {{{key}: 1}}}}\n")
    assert place(error) == ("config.invalid_value", "pets.yaml:3", "optimizer.options")
    assert key in error.what


def test_an_unknown_key_of_a_group_is_refused_with_the_nearest(refuse: Refuse) -> None:
    error = refuse("optimizer:\n  groups:\n    - {match: ['fc.*'], lr_scal: 2}\n")
    assert place(error) == ("config.unknown_key", "pets.yaml:5", "optimizer.groups.0.lr_scal")
    assert "lr_scale'?" in (error.to_do or "")


def test_a_group_that_says_nothing_is_refused_with_its_place(refuse: Refuse) -> None:
    error = refuse("optimizer:\n  groups:\n    - {match: ['fc.*'], lr: 1, lr_scale: 2}\n")
    assert place(error) == ("config.conflict", "pets.yaml:5", "optimizer.groups.0.lr_scale")


def test_an_unknown_choice_is_refused_with_the_nearest(refuse: Refuse) -> None:
    error = refuse("freeze:\n  norm_stats: keeep\n")
    assert place(error) == ("config.invalid_value", "pets.yaml:4", "freeze.norm_stats")
    assert error.to_do == "Did you mean 'keep'?"


def test_an_unknown_model_is_refused_with_the_nearest(refuse: Refuse) -> None:
    error = refuse("", "model.name=resnet81")
    assert (error.kind, error.key) == ("config.unknown_model", "model.name")
    assert "Did you mean 'resnet18'?" in (error.to_do or "")


@pytest.mark.parametrize("value", ["3", "[a]", "word"])
def test_a_section_that_is_none_is_refused_with_its_keys(refuse: Refuse, value: str) -> None:
    error = refuse(f"train: {value}\n")
    assert place(error) == ("config.not_a_section", "pets.yaml:3", "train")
    assert "epochs, label_smoothing, " in error.what


def test_an_empty_section_is_refused_with_its_keys(refuse: Refuse) -> None:
    error = refuse("train:\n")
    assert place(error) == ("config.empty_section", "pets.yaml:3", "train")
    assert "epochs, label_smoothing, " in (error.to_do or "")


def test_a_list_is_called_a_list(refuse: Refuse) -> None:
    error = refuse('freeze: {patterns: "layer4.*"}\n')
    assert place(error) == ("config.invalid_value", "pets.yaml:3", "freeze.patterns")


def test_a_problem_between_two_sections_names_a_line(refuse: Refuse) -> None:
    error = refuse("schedule:\n  warmup_epochs: 9\ntrain:\n  epochs: 3\n")
    assert place(error) == ("config.invalid_value", "pets.yaml:4", "schedule.warmup_epochs")


# --set


def test_set_overrides_the_file_and_leaves_its_neighbours(load: Load) -> None:
    config = load("train: {epochs: 3, label_smoothing: 0.1}\n", "train.epochs=4")
    assert (config.train.epochs, config.train.label_smoothing) == (4, 0.1)


def test_set_makes_a_section_that_the_file_lacks(load: Load) -> None:
    assert load("", "train.epochs=4").train.epochs == 4


def test_the_last_set_wins(load: Load) -> None:
    assert load("", "train.epochs=4", "train.epochs=5").train.epochs == 5


def test_set_takes_yaml(load: Load) -> None:
    config = load("", 'freeze.patterns=["*", "!layer4.*"]', "optimizer={name: adamw, lr: 1e-4}")
    assert config.freeze.patterns == ("*", "!layer4.*")
    assert (config.optimizer.name, config.optimizer.lr) == ("adamw", 0.0001)


def test_set_takes_a_value_with_an_equals_sign(load: Load) -> None:
    assert load("", "output_dir=runs/lr=0.1").output_dir == "runs/lr=0.1"


def test_set_can_give_what_the_file_lacks(file: Path) -> None:
    file.write_text("", encoding="utf-8")
    config = load_config(file, ["model.name=resnet18", "data.root=photos"])
    assert config.model.name == "resnet18"


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("train.epochs=three", "invalid_value"),
        ("train.epochs=0", "invalid_value"),
        ("train.epochs=", "invalid_value"),
        ("train.epochs=[1, 2", "yaml_syntax"),
        ("train.epoch=3", "unknown_key"),
        ("epochs=3", "unknown_key"),
        ("model.name.size=18", "not_a_section"),
        ("train=3", "not_a_section"),
        ("format=9", "newer_format"),
    ],
)
def test_set_passes_the_validation_of_the_file(refuse: Refuse, override: str, kind: str) -> None:
    error = refuse("", override)
    assert (error.kind, error.key) == (f"config.{kind}", override.partition("=")[0])


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", ".=3", ""])
def test_a_malformed_set_is_answered_with_an_example(refuse: Refuse, override: str) -> None:
    error = refuse("", override)
    assert (error.kind, error.source) == ("config.invalid_override", f"--set {override}")


@pytest.mark.parametrize(
    ("text", "override", "default"),
    [
        ("train: {epochs: 3}\n", "train.epochs=null", ("train", "epochs")),
        ("train: {clip_norm: 3}\n", "train.clip_norm=~", ("train", "clip_norm")),
        ('freeze: {patterns: ["!fc.*"]}\n', "freeze.patterns=null", ("freeze", "patterns")),
        ("optimizer: {name: adamw, lr: 1}\n", "optimizer=null", ("optimizer", "name")),
        ("stages: [{epochs: 3}]\n", "stages=null", ("stages",)),
    ],
)
def test_setting_null_resets_a_key_to_its_default(
    load: Load, text: str, override: str, default: tuple[str, ...]
) -> None:
    def value(config: Any) -> Any:
        for key in default:
            config = getattr(config, key)
        return config

    assert value(load(text)) != value(load(""))
    assert value(load(text, override)) == value(load(""))


def test_a_stage_whose_key_is_set_to_null_takes_that_of_the_base(load: Load) -> None:
    text = "optimizer: {lr: 0.5}\nstages: [{optimizer: {lr: 0.1}}, {}]\n"
    assert load(text, "stages.0.optimizer.lr=null").stages[0].optimizer.lr == 0.5


@pytest.mark.parametrize("override", ["train.epoch=null", "trian.epochs=null", "data.root=null"])
def test_only_a_key_with_a_default_can_be_reset(refuse: Refuse, override: str) -> None:
    assert refuse("", override).kind in ("config.unknown_key", "config.missing_key")


LADDER = "recipe: auto\ntrain: {budget: 15m}\n"


def test_a_recipe_that_is_set_replaces_what_the_file_trains(load: Load) -> None:
    assert load(LADDER, "recipe=full").train.budget is None
    assert load('freeze: {patterns: ["*"]}\n', "recipe=full").recipe == "full"
    assert load("stages: [{epochs: 1}]\n", "recipe=full").stages == ()
    config = load('freeze: {patterns: ["*"]}\n', "recipe=auto", "train.budget=5m")
    assert (config.recipe, config.train.budget) == ("auto", "5m")


def test_patterns_or_stages_that_are_set_replace_the_recipe_of_the_file(load: Load) -> None:
    config = load(LADDER, 'freeze.patterns=["*"]')
    assert (config.recipe, config.train.budget, config.freeze.patterns) == (None, None, ("*",))
    assert load(LADDER, "stages=[{epochs: 1}]").recipe is None
    assert load("recipe: full\n", 'freeze={patterns: ["*"]}').recipe is None


def test_settings_that_exclude_each_other_are_refused(refuse: Refuse) -> None:
    error = refuse("", "recipe=full", 'freeze.patterns=["*"]')
    assert error.kind == "config.conflict"


def test_a_problem_of_an_override_names_the_override(refuse: Refuse) -> None:
    error = refuse("train: {epochs: 3}\n", "train.epochs=x")
    assert str(error).startswith("--set train.epochs=x: must be ")


def test_a_problem_within_an_override_of_a_section_names_its_path(refuse: Refuse) -> None:
    error = refuse("", "optimizer={name: sgd, lr: high}")
    override = "--set optimizer={name: sgd, lr: high}"
    assert place(error) == ("config.invalid_value", override, "optimizer.lr")


def test_a_problem_of_the_file_is_not_blamed_on_a_neighbouring_override(refuse: Refuse) -> None:
    error = refuse("optimizer: {name: adamw, momentum: 0.9}\n", "optimizer.lr=0.1")
    assert place(error) == ("config.no_effect", "pets.yaml:3", "optimizer.momentum")


# Strictness


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ("train: {epochs: true}\n", "train.epochs"),
        ("train: {epochs: '3'}\n", "train.epochs"),
        ("train: {epochs: 3.0}\n", "train.epochs"),
        ("train: {epochs: 1:30}\n", "train.epochs"),
        ("train: {epochs: null}\n", "train.epochs"),
        ("optimizer: {lr: true}\n", "optimizer.lr"),
        ("optimizer: {lr: '0.1'}\n", "optimizer.lr"),
        ("optimizer: {lr: .nan}\n", "optimizer.lr"),
        ("optimizer: {lr: .inf}\n", "optimizer.lr"),
        ("optimizer: {lr: 1e400}\n", "optimizer.lr"),
        ("optimizer: {lr: 0}\n", "optimizer.lr"),
        ("schedule: {warmup_epochs: -.inf}\n", "schedule.warmup_epochs"),
        ("augment: {policy: true}\n", "augment.policy"),
        ("seed: -1\n", "seed"),
        ("seed: 9223372036854775808\n", "seed"),
        ("freeze: {patterns: '*'}\n", "freeze.patterns"),
        ("freeze: {patterns: [1]}\n", "freeze.patterns.0"),
        ("freeze: {patterns: ['']}\n", "freeze.patterns"),
        ("freeze: {patterns: ['!']}\n", "freeze.patterns"),
        ("output_dir: 3\n", "output_dir"),
        ("output_dir: ''\n", "output_dir"),
        ('output_dir: "a\\nb"\n', "output_dir"),
        ('output_dir: "a\\0b"\n', "output_dir"),
    ],
)
def test_a_value_of_another_kind_is_refused(refuse: Refuse, more: str, path: str) -> None:
    error = refuse(more)
    assert place(error) == ("config.invalid_value", "pets.yaml:3", path)


@pytest.mark.parametrize(
    "data",
    ["workers: true", "workers: many", "workers: -1", "val_fraction: -0.1", "val_fraction: 1"],
)
def test_a_value_out_of_range_is_refused(refuse: Refuse, data: str) -> None:
    key, _, value = data.partition(": ")
    error = refuse("", f"data.{key}={value}")
    assert (error.kind, error.key) == ("config.invalid_value", f"data.{key}")


def test_a_whole_number_may_stand_for_a_float(load: Load) -> None:
    assert load("optimizer: {lr: 1}\n").optimizer.lr == 1.0


@pytest.mark.parametrize("std", ["[0, 1, 1]", "[1, 1, 1, 1]", "0.5"])
def test_a_std_that_cannot_divide_is_refused(refuse: Refuse, std: str) -> None:
    error = refuse("", f"model.preprocessing={{resize: 4, crop: 4, std: {std}}}")
    assert (error.kind, error.key) == ("config.invalid_value", "model.preprocessing.std")


def test_a_std_of_two_channels_lacks_the_third(refuse: Refuse) -> None:
    error = refuse("", "model.preprocessing={resize: 4, crop: 4, std: [1, 1]}")
    assert (error.kind, error.key) == ("config.missing_key", "model.preprocessing.std.2")


@pytest.mark.parametrize("value", ["0", "true", "1.0", "one", "null"])
def test_a_format_that_is_not_the_number_1_is_refused(refuse: Refuse, value: str) -> None:
    assert place(refuse(f"format: {value}\n")) == ("config.invalid_value", "pets.yaml:3", "format")


def test_a_newer_format_is_refused_by_name_before_its_unknown_keys(refuse: Refuse) -> None:
    error = refuse("format: 2\nnew_section: {}\n")
    assert place(error) == ("config.newer_format", "pets.yaml", "format")
    assert "new_section" not in str(error)


@pytest.mark.parametrize(
    ("more", "kind", "key"),
    [
        ("optimizer: {name: adamw, momentum: 0.9}\n", "no_effect", "optimizer.momentum"),
        ("schedule: {name: cosine, gamma: 0.1}\n", "no_effect", "schedule.gamma"),
        (
            "schedule: {name: one_cycle, warmup_epochs: 1}\n",
            "no_effect",
            "schedule.warmup_epochs",
        ),
        ("schedule: {name: plateau, gamma: 1}\n", "invalid_value", "schedule.gamma"),
        ("schedule: {name: cosine, patience: 3}\n", "no_effect", "schedule.patience"),
        ("optimizer: {name: rprop, weight_decay: 0.1}\n", "no_effect", "optimizer.weight_decay"),
        ("optimizer: {name: auto, options: {eps: 1}}\n", "conflict", "optimizer.options"),
        ("schedule: {name: constant, step_epochs: 3}\n", "no_effect", "schedule.step_epochs"),
    ],
)
def test_an_option_without_effect_is_refused(
    refuse: Refuse, more: str, kind: str, key: str
) -> None:
    assert place(refuse(more)) == (f"config.{kind}", "pets.yaml:3", key)


def test_bundled_weights_of_another_model_are_refused(refuse: Refuse) -> None:
    error = refuse("", "model.weights=bundled")
    assert (error.kind, error.key) == ("config.conflict", "model.weights")
    assert "shufflenet_v2_x0_5" in (error.to_do or "")


@pytest.mark.parametrize("weights", ["null", "none", "~"])
def test_weights_null_means_none(load: Load, weights: str) -> None:
    assert load("", f"model.weights={weights}").model.weights == "none"


def test_a_config_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().train.epochs = 3


# Defaults


def test_model_and_root_alone_make_a_run(load: Load) -> None:
    assert load().plain() == {
        "format": 1,
        "model": {
            "name": "resnet18",
            "weights": "DEFAULT",
            "keep_head": "none",
            "preprocessing": "auto",
            "aux_heads": False,
            "average_mirror": False,
        },
        "freeze": {"patterns": ["*"], "norm_stats": "keep", "may_differ": False},
        "data": {
            "root": "photos",
            "table": {},
            "val_fraction": 0.2,
            "on_unreadable": "fail",
            "balance": "none",
            "fit": "crop",
            "levels": "auto",
            "batch_size": 32,
            "workers": "auto",
        },
        "augment": {
            "policy": "auto",
            "crop_scale": 0.35,
            "color_jitter": 0.0,
            "erasing": 0.0,
            "mixup": 0.0,
            "cutmix": 0.0,
            "views": 0,
        },
        "train": {
            "epochs": "auto",
            "label_smoothing": 0.0,
            "monitor": "top1",
            "accumulate": 1,
            "checkpoint_minutes": 10.0,
        },
        "optimizer": {
            "name": "auto",
            "lr": "auto",
            "weight_decay": "auto",
            "decay_norms_and_biases": False,
            "groups": [],
        },
        "schedule": {"name": "cosine", "warmup_epochs": "auto"},
        "features": {"cache": "auto", "known_by": "time"},
        "runtime": {
            "device": "auto",
            "precision": "auto",
            "memory_format": "auto",
            "live_precision": "auto",
            "live_memory_format": "auto",
            "compile": "auto",
            "norms": "together",
        },
        "output_dir": "runs/pets",
        "seed": 0,
    }


def test_no_patterns_are_not_the_default_patterns(load: Load) -> None:
    assert load("freeze: {patterns: []}\n").freeze.patterns == ()


def test_the_run_folder_is_named_after_the_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "my.pets.yml"
    path.parent.mkdir()
    path.write_text(MINIMAL, encoding="utf-8")
    assert load_config(path).output_dir == str(Path("runs") / "my.pets")


def test_each_optimizer_has_its_own_defaults(load: Load) -> None:
    adamw = load("optimizer: {name: adamw}\n").optimizer
    assert (adamw.lr, adamw.weight_decay, adamw.momentum) == ("auto", "auto", None)
    with_rate = load("optimizer: {name: adamw, lr: 0.1}\n").optimizer
    assert (with_rate.lr, with_rate.weight_decay) == (0.1, 0.01)
    rmsprop = load("optimizer: {name: rmsprop}\n").optimizer
    assert (rmsprop.lr, rmsprop.momentum) == (0.01, 0.0)


def test_the_step_schedule_has_its_own_defaults(load: Load) -> None:
    step = load("schedule: {name: step}\n").schedule
    assert (step.step_epochs, step.gamma) == (7, 0.1)


# to_yaml

ODD = [
    "off",
    "Yes",
    "true",
    "True",
    "null",
    "~",
    "1e-3",
    "010",
    "1:30",
    "1_000",
    "0x1F",
    ".inf",
    "2020-01-01",
    "*",
    "!x",
    "&a",
    "- a",
    "a: b",
    "# a",
    "'a'",
    '"a"',
    "[a, b",
    "{a",
    "@a",
    "%a",
    "?",
    "=",
    "<<",
    "---",
    " a ",
    "C:\\photos",
    "Fotos für Zoë/日本/\N{CAT FACE}",
    "a " * 200,
]


@pytest.mark.parametrize("text", ODD)
def test_to_yaml_keeps_every_text(load: Load, file: Path, text: str) -> None:
    plain = load().plain()
    plain["data"]["root"] = plain["output_dir"] = plain["model"]["weights"] = text
    plain["freeze"]["patterns"] = [text, f"!{text}", "*"]
    config = Config.model_validate(plain)
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config


@pytest.mark.parametrize("text", ODD)
def test_other_readers_of_yaml_see_the_same_text(load: Load, text: str) -> None:
    plain = load().plain()
    plain["data"]["root"] = text
    config = Config.model_validate(plain)
    assert yaml.safe_load(to_yaml(config))["data"]["root"] == text


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.name=adamw", "optimizer.lr=1e-05"],
        ["schedule={name: step, step_epochs: 3, gamma: 0.5}", "seed=9223372036854775807"],
        ["freeze.patterns=[]", "freeze.norm_stats=update", "data.workers=0"],
        ["model.preprocessing={resize: 36, crop: 32, mean: [0, 0, 0], std: [1, 0.1, 1e-3]}"],
        ["model.preprocessing=IMAGENET1K_V1", "model.weights=none"],
        ["optimizer={name: auto, lr: auto, weight_decay: auto}", "train.epochs=auto"],
        ["schedule={name: plateau, warmup_epochs: auto}", "train.early_stopping={patience: 5}"],
        [
            'optimizer.groups=[{match: ["*.bias", "fc.*"], lr_scale: 2}]',
            "optimizer.layer_decay=0.7",
        ],
        ["optimizer={name: adafactor, options: {eps: [null, 0.001], d: 1.5}}"],
    ],
)
def test_to_yaml_keeps_every_section(load: Load, file: Path, overrides: list[str]) -> None:
    config = load("", *overrides)
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config


# Files


def refused_file(kind: str, path: Path) -> ConfigError:
    """The error of this kind that refuses a file."""
    with fails(kind, path=path) as caught:
        load_config(path)
    assert isinstance(caught.value, ConfigError)
    return caught.value


def test_every_config_of_the_repository_loads() -> None:
    paths = list((REPOSITORY / "configs").rglob("*.y*ml"))
    assert len(paths) >= 1
    for path in paths:
        load_config(path)


def test_a_missing_file_is_refused_with_the_nearest_name(file: Path) -> None:
    file.write_text(MINIMAL, encoding="utf-8")
    error = refused_file("config.not_found", file.with_name("pet.yaml"))
    assert error.to_do == f"Did you mean '{file}'?"


def test_a_file_in_no_folder_is_refused(tmp_path: Path) -> None:
    refused_file("config.not_found", tmp_path / "gone" / "pets.yaml")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    refused_file("config.unreadable", tmp_path / f"{'x' * 300}.yaml")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refused_file("config.not_a_file", tmp_path)


@pytest.mark.parametrize("content", [b"model: \xff", MINIMAL.encode("utf-16")])
def test_a_file_that_is_not_utf8_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refused_file("config.not_text", file)


def test_a_byte_order_mark_is_no_part_of_the_first_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load_config(file).model.name == "resnet18"


@pytest.mark.parametrize("text", ["", "\n", "# a comment\n", "---\n"])
def test_an_empty_file_is_asked_for_what_a_run_needs(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    error = refused_file("config.several_problems", file)
    missing = {(problem.kind, problem.key) for problem in error.problems}
    assert missing == {("config.missing_key", "model"), ("config.missing_key", "data")}


@pytest.mark.parametrize("text", ["- model\n- data\n", "some text\n", "3\n"])
def test_a_file_without_keys_is_refused(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
    with fails("config.not_a_section", source=f"{file}:1"):
        load_config(file)


def test_two_documents_are_refused(file: Path) -> None:
    file.write_text(f"{MINIMAL}---\n{MINIMAL}", encoding="utf-8")
    with fails("config.yaml_syntax", source=f"{file}:3") as caught:
        load_config(file)
    assert "two documents" in caught.value.what


@pytest.mark.parametrize("policy", ["auto", "none", "flip"])
def test_views_are_refused_where_none_is_drawn(refuse: Refuse, policy: str) -> None:
    error = refuse(f"augment: {{policy: {policy}, views: 3}}\n")
    assert place(error) == ("config.no_effect", "pets.yaml:3", "augment.views")


@pytest.mark.parametrize("drawn", ["policy: trivial", "erasing: 0.1", "color_jitter: 0.1"])
def test_views_bound_whatever_is_drawn(load: Load, drawn: str) -> None:
    assert load(f"augment: {{{drawn}, views: 3}}\n").augment.views == 3


@pytest.mark.parametrize("mixing", ["mixup", "cutmix"])
def test_views_are_refused_where_every_batch_is_mixed_anew(refuse: Refuse, mixing: str) -> None:
    error = refuse(f"augment: {{policy: trivial, {mixing}: 0.2, views: 3}}\n")
    assert place(error) == ("config.no_effect", "pets.yaml:3", "augment.views")


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_random_crops_of_photos_that_are_to_stay_whole_are_refused(
    refuse: Refuse, fit: str
) -> None:
    data = f"{{root: photos, fit: {fit}}}"
    error = refuse("augment: {policy: crop_flip}\n", f"data={data}")
    assert (error.kind, error.key) == ("config.conflict", "augment.policy")


@pytest.mark.parametrize("word", ["off", "disk", "memory", "auto"])
def test_the_cache_is_named_by_a_word(load: Load, word: str) -> None:
    assert load(f"features: {{cache: {word}}}\n").features.cache == word


@pytest.mark.parametrize(
    ("setting", "most"),
    [
        ("optimizer: {lr: 1.0e+39}", "1e+30"),
        ("optimizer: {weight_decay: 1.0e+300}", "1e+06"),
        ("optimizer: {groups: [{match: ['*'], lr: 1.0e+39}]}", "1e+30"),
        ("optimizer: {groups: [{match: ['*'], lr_scale: 1.0e+39}]}", "1e+06"),
    ],
)
def test_a_rate_that_torch_cannot_compute_with_is_refused(
    refuse: Refuse, setting: str, most: str
) -> None:
    error = refuse(setting)
    assert error.kind == "config.invalid_value"
    assert most in error.what


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_an_alpha_too_small_to_draw_from_is_refused(refuse: Refuse, key: str) -> None:
    error = refuse(f"augment: {{{key}: 1.0e-300}}")
    assert place(error) == ("config.invalid_value", "pets.yaml:3", f"augment.{key}")
