"""Tests of freeze patterns: frozen names, and messages about patterns without effect."""

from __future__ import annotations

import pytest
from helpers.messages import fails

from finetune.freezing.patterns import plan_freeze

NAMES = [
    "conv1.weight",
    "bn1.weight",
    "bn1.bias",
    "layer1.0.conv1.weight",
    "layer10.0.conv1.weight",
    "layer4.0.conv1.weight",
    "layer4.0.bn1.bias",
    "fc.weight",
    "fc.bias",
]


def test_star_crosses_dots_and_freezes_all_but_the_head() -> None:
    plan = plan_freeze(NAMES, ["*"], heads=["fc"])
    assert plan.frozen == set(NAMES[:-2])


def test_no_patterns_freeze_nothing() -> None:
    assert not plan_freeze(NAMES, [], heads=["fc"]).frozen


def test_last_match_wins() -> None:
    plan = plan_freeze(NAMES, ["*", "!layer4.*", "*.bn1.bias"], heads=["fc"])
    assert "layer4.0.conv1.weight" not in plan.frozen
    assert "layer4.0.bn1.bias" in plan.frozen


def test_a_dot_in_a_pattern_is_a_dot() -> None:
    assert plan_freeze(NAMES, ["layer1.*"]).frozen == {"layer1.0.conv1.weight"}


def test_a_glob_is_matched_against_the_whole_name() -> None:
    assert plan_freeze(NAMES, ["layer1*"]).frozen == {
        "layer1.0.conv1.weight",
        "layer10.0.conv1.weight",
    }


def test_decisions_name_the_pattern_that_decided() -> None:
    plan = plan_freeze(NAMES, ["*", "!layer4.*"])
    decided = {decision.name: decision.pattern for decision in plan.decisions}
    assert decided["conv1.weight"] == "*"
    assert decided["layer4.0.conv1.weight"] == "!layer4.*"


def test_matches_count_what_each_pattern_matched_and_kept() -> None:
    plan = plan_freeze(NAMES, ["*", "!layer4.*"])
    assert [(len(m.matched), len(m.decided)) for m in plan.matches] == [(9, 7), (2, 2)]


@pytest.mark.parametrize(
    ("pattern", "suggestion"),
    [
        ("layer4", "'layer4.*'"),
        ("Layer4.*", "'layer4.*'"),
        ("LAYER4", "'layer4.*'"),
        ("layr4.*", "'layer4.*'"),
        ("!layer4", "'!layer4.*'"),
        ("bn1.wieght", "'bn1.weight'"),
    ],
)
def test_idle_pattern_is_an_error_that_offers_the_nearest(pattern: str, suggestion: str) -> None:
    with fails("config.pattern_matches_nothing", key="freeze.patterns") as caught:
        plan_freeze(NAMES, [pattern])
    assert repr(pattern) in caught.value.what
    assert f"Did you mean {suggestion}" in (caught.value.to_do or "")


def test_every_idle_pattern_is_named_at_once() -> None:
    with fails("config.several_problems") as caught:
        plan_freeze(NAMES, ["nothing.*", "*", "nowhere.*"])
    kinds = [problem.kind for problem in caught.value.problems]
    assert kinds == ["config.pattern_matches_nothing"] * 2


@pytest.mark.parametrize(
    ("patterns", "idle", "reason"),
    [
        (["*", "layer4.*"], "layer4.*", "all it matches was frozen already"),
        (["!layer4.*"], "!layer4.*", "all it matches was trainable already"),
        (["layer4.*", "*", "!bn1.*"], "layer4.*", "later patterns override all of it"),
        (["*", "fc.*"], "fc.*", "it matches only the head"),
        (["*", "!fc.*"], "!fc.*", "it matches only the head"),
    ],
)
def test_pattern_without_effect_is_a_warning(patterns: list[str], idle: str, reason: str) -> None:
    warnings = plan_freeze(NAMES, patterns, heads=["fc"]).warnings
    assert len(warnings) == 1
    assert f"{idle!r} has no effect" in warnings[0]
    assert reason in warnings[0]


def test_patterns_with_effect_give_no_warning() -> None:
    assert not plan_freeze(NAMES, ["*", "!layer4.*", "*.bias"], heads=["fc"]).warnings
