"""Tests of ``finetune init``: the config trains without edits, and of its heuristics."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.messages import check_message, fails
from helpers.reporters import RecordingReporter
from PIL import Image

from finetune.cli import app
from finetune.commands.init import init
from finetune.commands.ladder import train_within
from finetune.config import yaml_loader
from finetune.config.data import DataConfig
from finetune.config.load import data_of, load_config, model_of
from finetune.config.schema import Config, GivenPreprocessing
from finetune.core.reporter import SilentReporter
from finetune.data.checks.summary import DatasetSummary, summarize_dataset
from finetune.freezing.plan import make_plan
from finetune.models.blocks import Block, blocks_of, last_block, listed
from finetune.recipes import heuristics
from finetune.report.layout import plain
from finetune.report.starting_config import render_starting_config, scalar
from finetune.training.setup import find_data

IMAGENET = GivenPreprocessing(resize=256, crop=224)


def seen(**changes: object) -> DatasetSummary:
    """The summary of 5,000 ordinary photos."""
    photos = DatasetSummary(
        root="photos",
        num_train=5_000,
        num_val=1_000,
        held_out=False,
        class_names=("cats", "dogs"),
        counts=(2_500, 2_500),
        median_size=(640, 480),
        median_aspect=1.33,
    )
    return replace(photos, **changes)


def config_of(text: str) -> Config:
    document = yaml_loader.parse(text)
    assert document.problems == []
    return Config.model_validate({**document.value, "output_dir": "runs/x"})


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    old, sys.argv = sys.argv, ["finetune", "init", *arguments]
    try:
        code = app._run()
    finally:
        sys.argv = old
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("split", [True, False])
def test_what_is_written_trains_as_it_stands(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], split: bool
) -> None:
    root = photos if split else photos / "train"
    code, out, err = run(capsys, str(root), "--weights", "bundled")
    assert code == 0, err
    file = tmp_path / "c.yaml"
    file.write_text(out, encoding="utf-8")
    config = load_config(file, [f"output_dir={tmp_path}/run", "train.budget=0.1s"])
    summary = train_within(config).train
    assert (summary.model, summary.weights) == ("shufflenet_v2_x0_5", "bundled")
    assert (summary.num_train, summary.num_val) == ((18, 10) if split else (14, 4))


def test_a_file_is_written_and_the_next_step_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my pets.yaml"
    code, out, _ = run(capsys, str(photos), "--weights", "none", "--output", str(file))
    assert code == 0
    assert f"finetune train '{file}'" in out
    assert load_config(file).data.root == str(photos)


def test_a_file_that_is_there_is_kept_without_overwrite(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("mine", encoding="utf-8")
    arguments = (str(photos), "--weights", "none", "--output", str(file))
    code, out, err = run(capsys, *arguments)
    assert (code, out, file.read_text(encoding="utf-8")) == (6, "", "mine")
    check_message(err)
    assert run(capsys, *arguments, "--overwrite")[0] == 0
    assert load_config(file).model.weights == "none"


def test_json_holds_the_config(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, str(photos), "--weights", "none", "--json")
    assert config_of(json.loads(out)["config"]).data.root == str(photos)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--model", "resnet5O"), 2, "--model: 'resnet5O' is not a torchvision"),
        (("--model", "mobilnet_v2"), 2, "Did you mean 'mobilenet_v2'?"),
        (
            ("--model", "resnet18", "--weights", "bundled"),
            2,
            "the bundled weights belong to shufflenet_v2_x0_5",
        ),
        (("--weights", "absent.pth"), 4, "absent.pth: no such file"),
        (("--model", "resnet18", "--weights", "IMAGENET1K_V9"), 4, "has no weights"),
    ],
)
def test_what_cannot_be_is_refused(
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    found, out, err = run(capsys, str(photos), *arguments)
    assert (found, out) == (code, "")
    assert words in err


def test_what_is_probably_not_meant_is_a_warning_for_init_and_training(photos: Path) -> None:
    (next(f for f in photos.rglob("*.png")).parent / "2.heic").touch()
    heard: list[str] = []

    class Listening(SilentReporter):
        def warn(self, text: str) -> None:
            heard.append(text)

    summarize_dataset(DataConfig(root=str(photos)), Listening())
    config = {"model": {"name": "resnet18"}, "data": {"root": str(photos)}, "output_dir": "run"}
    find_data(Config.model_validate(config), Listening())
    assert heard == [f"{photos}: 1 photo in an unsupported format (1 .heic): save it as JPEG"] * 2


def test_weights_of_another_network_are_refused(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, path)
    summary = summarize_dataset(DataConfig(root=str(photos)), SilentReporter())
    with fails("model.weights_do_not_fit", key="model.weights"):
        init(summary, model="resnet18", weights=str(path))


@pytest.mark.parametrize(
    "name",
    ["with space", "it's \"quoted\"", "colon: here", "# hash", "- dash", "yes", "1e3", "日本 ü",
     "{a}", "a\\b", "%x", "@x", "tab", "x" * 150],
)  # fmt: skip
def test_any_path_is_valid_yaml(name: str) -> None:
    text = init(seen(root=f"/p/{name}"), model="resnet18", weights="none").config
    assert config_of(text).data.root == f"/p/{name}"
    assert yaml_loader.parse(f"x: {scalar(name)}\n").value == {"x": name}


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_a_path_that_cannot_be_written_down_is_refused(name: bytes) -> None:
    with fails("config.unprintable"):
        data_of(os.fsdecode(name))
    with fails("config.invalid_value", key="--weights"):
        model_of("resnet18", os.fsdecode(name))


def test_unreadable_files_are_left_out_and_named(photos: Path) -> None:
    broken = photos / "train" / "class_0" / "0.png"
    broken.write_bytes(b"")
    reporter = RecordingReporter()
    summary = summarize_dataset(DataConfig(root=str(photos)), reporter)
    assert (summary.num_train, summary.num_unreadable) == (17, 1)
    assert any("1 file cannot be read: train/class_0/0.png" in line for line in reporter.warned)
    text = init(summary, model="resnet18", weights="none").config
    assert config_of(text).data.on_unreadable == "skip"
    assert "train/class_0/0.png" in text


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.new("RGB", (60 + index, 30)).save(tmp_path / name / f"{index}.png")
    summary = summarize_dataset(DataConfig(root=str(tmp_path)), SilentReporter())
    assert summary.median_size[1] == 30
    assert 60 <= summary.median_size[0] <= 64
    assert summary.held_out
    assert summary.median_aspect == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "densenet121", "regnet_y_400mf"])
def test_the_backbones_own_names_stand_in_comments_and_match(name: str) -> None:
    text = init(seen(), model=name, weights="none").config
    lines = [line.strip(" #").split() for line in text.splitlines() if line.startswith("#   ")]
    patterns = [pattern for pattern, *_ in lines if pattern != "finetune"]
    assert len(patterns) >= 5
    config = config_of(text)
    values = {"recipe": None, "train.budget": None, "freeze.patterns": tuple(patterns)}
    plan = make_plan(config.with_values(values), 2)
    assert all(d.frozen for d in plan.freeze.decisions if not plan.freeze.is_head(d.name))


def test_comments_are_no_wider_than_a_screen() -> None:
    summary = seen(median_aspect=2.5, median_size=(90, 36), counts=(10, 900), num_unreadable=3)
    text = init(summary, model="vit_b_16", weights="none").config
    assert max(len(line) for line in text.splitlines()) <= 100


def test_a_config_on_stdout_ends_without_an_empty_line() -> None:
    result = init(seen(), model="resnet18", weights="none")
    assert not plain(render_starting_config(result)).endswith("\n")


# The rules


@pytest.mark.parametrize(
    ("pass_s", "budget"), [(1.0, "1m"), (25.0, "5m"), (60.0, "10m"), (10**6, "8h")]
)
def test_the_budget_grows_with_the_predicted_feature_pass(pass_s: float, budget: str) -> None:
    assert heuristics.budget_for(pass_s) == budget


def test_the_network_is_trained_as_far_as_a_budget_allows() -> None:
    config = config_of(init(seen(), model="resnet18", weights="none").config)
    assert config.recipe == "auto"
    assert config.train.budget is not None


@pytest.mark.parametrize(
    ("num_train", "epochs"),
    [(50, 30), (3_251, 30), (11_400, 22), (19_999, 13), (20_000, 30), (400_000, 13), (10**7, 10)],
)
def test_length_follows_the_hyper_rule_within_bounds(num_train: int, epochs: int) -> None:
    assert heuristics.epochs_for(num_train) == epochs


@pytest.mark.parametrize(
    ("weights", "model"),
    [
        ("bundled", "shufflenet_v2_x0_5"),
        ("w/resnet50-11ad3fa6.pth", "resnet50"),
        ("w/vgg11_bn-6002323d.pth", "vgg11_bn"),
        ("w/mine.pth", "mobilenet_v2"),
        ("none", "mobilenet_v2"),
    ],
)
def test_the_backbone_suits_the_weights(weights: str, model: str) -> None:
    found = heuristics.backbone_of(weights)
    assert found is not None
    assert found[0] == model


def test_small_images_are_seen_at_128_pixels() -> None:
    small = seen(median_size=(32, 32))
    other = heuristics.preprocessing_for(IMAGENET, small, "resnet18", "DEFAULT")
    assert other is not None
    assert (other.resize, other.crop, other.mean) == (128, 128, IMAGENET.mean)


@pytest.mark.parametrize(
    ("model", "weights", "size"),
    [
        ("resnet18", "DEFAULT", (96, 96)),
        ("vit_b_16", "DEFAULT", (32, 32)),
        ("maxvit_t", "DEFAULT", (32, 32)),
        ("shufflenet_v2_x0_5", "bundled", (32, 32)),
    ],
)
def test_else_images_are_seen_at_the_weights_own_size(
    model: str, weights: str, size: tuple[int, int]
) -> None:
    summary = seen(median_size=size)
    assert heuristics.preprocessing_for(IMAGENET, summary, model, weights) is None


def test_another_size_comes_with_the_weights_own_colours() -> None:
    text = init(seen(median_size=(32, 32)), model="efficientnet_v2_l", weights="none").config
    given = config_of(text).model.preprocessing
    assert isinstance(given, GivenPreprocessing)
    assert (given.crop, given.mean, given.interpolation) == (128, (0.5, 0.5, 0.5), "bicubic")


@pytest.mark.parametrize(("aspect", "fit"), [(1.0, "crop"), (1.9, "crop"), (2.5, "pad")])
def test_long_photos_are_padded(aspect: float, fit: str) -> None:
    summary = seen(median_aspect=aspect)
    assert config_of(init(summary, model="resnet18", weights="none").config).data.fit == fit


@pytest.mark.parametrize(("counts", "balance"), [((10, 49), "none"), ((10, 50), "weights")])
def test_rare_classes_weigh_more(counts: tuple[int, int], balance: str) -> None:
    summary = seen(counts=counts)
    assert config_of(init(summary, model="resnet18", weights="none").config).data.balance == balance


def test_letters_are_not_mirrored() -> None:
    assert heuristics.policy_for(("b", "d"), "head")[0] == "none"
    assert heuristics.policy_for(("b", "dog"), "head")[0] == "auto"


def test_everything_that_trains_is_cropped() -> None:
    assert heuristics.policy_for(("cat", "dog"), "everything")[0] == "crop_flip"


@pytest.mark.parametrize("trains", ["head", "block", "everything"])
def test_transformers_are_trained_by_adamw(trains: str) -> None:
    assert heuristics.optimizer_for("swin_t", "DEFAULT", trains).name == "adamw"


@pytest.mark.parametrize(
    ("trains", "name"), [("head", "sgd"), ("block", "adamw"), ("everything", "adamw")]
)
def test_more_than_the_head_of_a_network_with_norm_layers_is_trained_by_adamw(
    trains: str, name: str
) -> None:
    assert heuristics.optimizer_for("resnet18", "DEFAULT", trains).name == name
    assert heuristics.optimizer_for("vgg11", "DEFAULT", trains).name == "sgd"


# Blocks

BACKBONE = [
    ("stem.weight", 10),
    ("features.0.weight", 40),
    ("features.1.conv.weight", 100),
    ("features.1.bn.weight", 20),
    ("features.2.conv.weight", 200),
    ("norm.weight", 2),
    ("scale", 1),
]


def test_what_holds_most_of_a_network_is_opened() -> None:
    names = [block.name for block in blocks_of(BACKBONE)]
    assert names == ["stem", "features.0", "features.1", "features.2.conv", "norm", "scale"]


def test_a_last_norm_alone_is_no_block() -> None:
    assert [block.pattern for block in last_block(blocks_of(BACKBONE))] == [
        "features.2.conv.*",
        "norm.*",
        "scale",
    ]


def test_very_many_blocks_share_lines() -> None:
    blocks = [Block(f"layers.{number}", 10, alone=False) for number in range(30)]
    assert listed(blocks) == [
        ("layers.0.*", 10),
        ("layers.1.* … layers.28.*", 280),
        ("layers.29.*", 10),
    ]
