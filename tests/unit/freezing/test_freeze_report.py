"""Tests of the freeze report: consistent figures that agree with the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.messages import fails
from torchvision import models

from finetune.commands.freeze_report import freeze_report
from finetune.config.schema import Config
from finetune.report.freeze_report import render_freeze_report
from finetune.report.layout import plain
from finetune.results.freeze import FreezeReport

Make = Callable[..., Config]


def report(name: str, patterns: list[str], **sections: object) -> FreezeReport:
    config = Config.model_validate(
        {
            "model": {"name": name},
            "freeze": {"patterns": patterns},
            "data": {"root": "absent"},
            "output_dir": "unwritten",
            **sections,
        }
    )
    return freeze_report(config, num_classes=5)


def test_totals_equal_the_sum_of_rows() -> None:
    result = report("resnet18", ["*", "!layer4.*", "*.bn1.*"])
    rows, totals = result.parameters, result.totals
    assert totals.parameters == sum(row.numel for row in rows)
    assert totals.frozen == sum(row.numel for row in rows if row.frozen)
    assert totals.trainable + totals.frozen == totals.parameters
    assert totals.trainable_tensors + totals.frozen_tensors == totals.tensors == len(rows)
    taken = sum(row.tensors for row in result.patterns)
    assert taken == sum(row.pattern is not None for row in rows)


def test_parameters_are_those_of_the_network_with_its_new_head() -> None:
    result = report("resnet18", ["*"])
    model = models.resnet18(num_classes=5)
    assert [(row.name, row.shape) for row in result.parameters] == [
        (name, tuple(p.shape)) for name, p in model.named_parameters()
    ]


def test_patterns_account_for_what_they_took() -> None:
    result = report("mobilenet_v2", ["features.1*", "!features.18.*"])
    rows = {row.pattern: row for row in result.patterns}
    assert rows["features.1*"].matched_tensors == 81
    assert rows["features.1*"].tensors == 78
    assert rows["!features.18.*"].tensors == 3
    assert not rows["!features.18.*"].freezes


def test_norm_layers_by_mode() -> None:
    result = report("resnet18", ["*", "!layer4.*"])
    modes = {row.name: (row.frozen, row.mode, row.statistics) for row in result.norm_layers}
    assert modes["bn1"] == (True, "eval", "kept")
    assert modes["layer4.0.bn1"] == (False, "train", "updated")
    updating = report("resnet18", ["*"], freeze={"patterns": ["*"], "norm_stats": "update"})
    assert {row.statistics for row in updating.norm_layers} == {"updated"}


def test_the_boundary_is_where_the_backward_pass_ends() -> None:
    boundary = report("resnet18", ["*", "!layer4.*"]).backward_boundary
    assert boundary.last_without_backward == "layer3.1.relu"
    assert boundary.first_with_backward == "layer4.0.conv1"
    assert report("resnet18", []).backward_boundary.last_without_backward is None


def test_operations_of_a_known_network() -> None:
    """torchvision publishes 1.814 G for resnet18 with 1,000 classes."""
    work = report("resnet18", ["*"]).operations
    assert work.forward == pytest.approx(1.814e9, rel=1e-3)
    assert work.forward_frozen + work.forward_trainable == work.forward
    assert work.forward_trainable == 512 * 5
    assert work.backward == 512 * 5  # the gradient of the head's weight, and no other


def test_backward_of_grouped_convolutions_costs_at_most_twice_the_forward() -> None:
    work = report("mobilenet_v2", []).operations
    assert work.backward == work.backward_if_all_trained
    assert 1.8 * work.forward < work.backward < 2 * work.forward


def test_memory_follows_the_optimizer() -> None:
    probe = report("resnet18", ["*"]).memory
    assert probe.gradient_bytes == (512 * 5 + 5) * 4
    assert probe.optimizer_bytes == probe.gradient_bytes
    adamw = report("resnet18", ["*"], optimizer={"name": "adamw"}).memory
    assert adamw.optimizer_bytes_saved == 2 * adamw.gradient_bytes_saved
    plain = report("resnet18", ["*"], optimizer={"momentum": 0.0}).memory
    assert plain.optimizer_bytes_saved == 0


def test_classes_are_counted_where_the_data_is_there(make_config: Make) -> None:
    assert freeze_report(make_config()).num_classes == 2


def test_without_data_the_number_of_classes_must_be_given(tmp_path: Path) -> None:
    config = Config.model_validate(
        {"model": {"name": "resnet18"}, "data": {"root": "absent"}, "output_dir": "x"}
    )
    with fails("config.unknown_num_classes"):
        freeze_report(config)


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("densenet201", ["*"]),
        ("densenet201", ["*", "!*.bias"]),
        ("efficientnet_v2_l", ["*", "!features.*1*"]),
        ("resnet152", ["*", "!layer*1*"]),
        ("resnet152", []),
    ],
)
def test_the_text_stays_readable_for_hundreds_of_layers(name: str, patterns: list[str]) -> None:
    text = plain(render_freeze_report(report(name, patterns)), verbose=False)
    assert len(text.splitlines()) < 90
    assert max(map(len, text.splitlines())) < 140


def test_verbose_lists_every_parameter_with_the_pattern_that_decided() -> None:
    text = plain(render_freeze_report(report("resnet18", ["*", "!layer4.*"])))
    line = next(row for row in text.splitlines() if "layer4.1.conv2.weight" in row)
    assert line.split()[-1] == "!layer4.*"
    assert text.count("(new head)") >= 2
