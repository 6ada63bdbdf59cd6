"""Tests of the layout of text output: no line is wider than it may be, and none loses a word."""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
from rich.cells import cell_len

from finetune.report.catalog import render_cache, render_models
from finetune.report.check_data import render_check
from finetune.report.depth_probes import render_depths
from finetune.report.dry_run import render_dry_run
from finetune.report.embeddings import render_embed
from finetune.report.evaluation import render_comparison, render_eval
from finetune.report.freeze_report import render_freeze_report
from finetune.report.ladder import render_ladder
from finetune.report.layout import (
    Bar,
    Command,
    Document,
    Fields,
    Paragraph,
    Table,
    View,
    document,
    lines,
    plain,
    shorten,
    styled,
    wrapped,
)
from finetune.report.prediction import render_export, render_page_result, render_predictions
from finetune.report.show_batch import render_shown_batch
from finetune.report.starting_config import render_starting_config
from finetune.report.suspects import render_suspects
from finetune.report.train import render_train
from finetune.report.tuning import render_lr_range, render_tune
from finetune.results.catalog import CacheList, ModelList
from finetune.results.check import CheckReport
from finetune.results.data import ShownBatch, StartingConfig
from finetune.results.evaluation import (
    Comparison,
    EmbedResult,
    EvalResult,
    ExportResult,
    PageResult,
    Prediction,
    PredictSummary,
    Unreadable,
)
from finetune.results.freeze import DepthReport, FreezeReport, StagedFreezeReport
from finetune.results.suspects import SuspectsReport
from finetune.results.train import DryRun, LadderSummary, TrainSummary
from finetune.results.tuning import LrRange, TuneResult

WIDTHS = (40, 60, 79, 80, 120, 200)
PATH = "photos/" + "a_folder/" * 13 + "no"
assert len(PATH) == 126
NAMES = (
    PATH,
    "樱花" * 40,
    "two words",
    "x" * 300,
    "photos of " + "many words " * 20,
    "файл" * 12 + ".jpg",
)
KNOWN = {
    "found_by": ("features", "hash", "both"),
    "kind": ("leak", "selection", "few_photos"),
    "level": ("error", "warning", "note"),
    "monitor": ("macro_f1",),
    "metric": ("macro_f1",),
    "what": ("last_part",),
    "format": ("onnx",),
    "statistics": ("kept", "updated", "none"),
    "searched": ("head",),
    "number": (1,),
    "chosen": (1,),
    "norm_stats": ("update",),
    "earliest": ("樱花",),
    "best": ("樱花",),
    "block": ("樱花",),
}
"""Values of the fields that are no free text."""

MANY = 1_000


class Filling:
    """Fills a result with names that are hard to lay out."""

    def __init__(self, many: frozenset[str] = frozenset()) -> None:
        self.many = many
        self.names = itertools.cycle(NAMES)
        self.known = {name: itertools.cycle(values) for name, values in KNOWN.items()}

    def __call__(self, kind: Any, name: str = "") -> Any:
        if is_dataclass(kind):
            hints = typing.get_type_hints(kind)
            return kind(
                **{one.name: self(hints[one.name], one.name) for one in fields(kind) if one.init}
            )
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return self(inner[0], name)
        if origin is tuple and inner[-1] is ...:
            number = MANY if name in self.many else 3
            return tuple(self(inner[0], name) for _ in range(number))
        if origin is tuple:
            return tuple(self(one, name) for one in inner)
        if origin is dict:
            return {self(str): self(inner[1]) for _ in range(3)}
        if name in self.known and kind in (str, int):
            return next(self.known[name])
        return {str: next(self.names), bool: True, int: 1_234_567, float: 0.123456}.get(
            kind, next(self.names)
        )


def predictions() -> Document:
    fill = Filling()
    answers = [fill(Prediction), fill(Unreadable), replace(fill(Prediction), unsure=False)] * 5
    return render_predictions(answers, fill(PredictSummary))


RENDERED: dict[str, Callable[[], Document]] = {
    "cache": lambda: render_cache(replace(Filling()(CacheList), removed=False)),
    "cache clear": lambda: render_cache(Filling()(CacheList)),
    "check": lambda: render_check(Filling()(CheckReport)),
    "check of many": lambda: render_check(Filling(frozenset({"classes"}))(CheckReport), PATH),
    "compare": lambda: render_comparison(Filling()(Comparison)),
    "depths": lambda: render_depths(Filling()(DepthReport)),
    "dry run": lambda: render_dry_run(Filling()(DryRun)),
    "embed": lambda: render_embed(Filling()(EmbedResult)),
    "eval": lambda: render_eval(Filling()(EvalResult)),
    "eval of many": lambda: render_eval(Filling(frozenset({"per_class"}))(EvalResult)),
    "export": lambda: render_export(Filling()(ExportResult)),
    "freeze report": lambda: render_freeze_report(Filling()(FreezeReport)),
    "ladder": lambda: render_ladder(Filling()(LadderSummary)),
    "learning rates": lambda: render_lr_range(Filling()(LrRange)),
    "models": lambda: render_models(Filling()(ModelList)),
    "page": lambda: render_page_result(Filling()(PageResult)),
    "predict": predictions,
    "show batch": lambda: render_shown_batch(Filling()(ShownBatch)),
    "stages": lambda: render_freeze_report(Filling()(StagedFreezeReport)),
    "start": lambda: render_starting_config(Filling()(StartingConfig)),
    "suspects": lambda: render_suspects(Filling()(SuspectsReport)),
    "train": lambda: render_train(Filling()(TrainSummary)),
    "tune": lambda: render_tune(Filling()(TuneResult)),
}


@pytest.mark.parametrize("name", RENDERED)
def test_no_line_is_wider_than_the_width(name: str) -> None:
    rendered = RENDERED[name]()
    for width, verbose in itertools.product(WIDTHS, (False, True)):
        for line in plain(rendered, width=width, verbose=verbose).split("\n"):
            assert cell_len(line) <= width, (width, line)


@pytest.mark.parametrize("name", RENDERED)
def test_no_word_is_broken(name: str) -> None:
    """A word is whole or shortened in the middle; a command may go on after a backslash."""
    rendered = RENDERED[name]()
    whole = set(plain(rendered).split())
    for width in (60, 80):
        text = plain(rendered, width=width)
        without_commands = [
            line
            for before, line in itertools.pairwise(["", *text.split("\n")])
            if not line.endswith("\\") and not before.endswith("\\")
        ]
        words = {word for line in without_commands for word in line.split()}
        bars = {word for word in words if not word.strip("█")}
        assert [word for word in words - whole - bars if "…" not in word] == []


def test_prose_has_a_hanging_indent_and_names_are_shortened_in_the_middle() -> None:
    result = document(Fields([("Saved", f"in {PATH} with more words"), ("Next", Command("a b"))]))
    assert plain(result, width=40) == (
        "  Saved   in\n"
        "          photos/a_folder/a…/a_folder/no\n"
        "          with more words\n"
        "  Next    a b"
    )


def test_a_shortened_path_keeps_the_name_of_the_file() -> None:
    assert shorten("photos/" + "deep/" * 20 + "IMG_0001.jpg", 24) == "photos/dee…/IMG_0001.jpg"
    assert cell_len(shorten("樱花" * 40, 21)) <= 21


def test_a_pipe_wraps_prose_and_shortens_nothing() -> None:
    result = document(
        Paragraph("word " * 30), Table(("path", "n"), [(PATH, "1")], right=(1,), names=(0,))
    )
    text = "\n".join(line.plain for line in lines(result, View(80)))
    assert PATH in text
    assert max(map(len, text.split("\n")[:2])) <= 80


def test_details_are_shown_on_request() -> None:
    table = Table(("a", "b"), [("1", "x"), ("2", "y")], brief=[("1", "x")], details=(1,))
    assert plain(document(table), verbose=False) == "  a\n  1"
    assert plain(document(table)) == "  a   b\n  1   x\n  2   y"


def test_a_table_that_does_not_fit_repeats_its_first_column() -> None:
    header = ("key", *(f"run_{number}" for number in range(4)))
    table = Table(header, [("loss", *["0.123456789"] * 4)], right=(1, 2, 3, 4))
    blocks = plain(document(table), width=40).split("\n\n")
    assert [block.split()[0] for block in blocks] == ["key", "key"]


def test_a_command_that_does_not_fit_can_be_pasted() -> None:
    command = f"finetune eval '{PATH} and more' --json"
    text = plain(document(Fields([("Next", Command(command))])), width=60)
    joined = "".join(line.removesuffix("\\") for line in text.removeprefix("  Next   ").split("\n"))
    assert " ".join(joined.replace("''", "").split()) == command


@pytest.mark.parametrize(
    "text",
    [
        "stopped. Resume with: finetune train --resume runs/x",
        "write a new one with `finetune init a b`",
    ],
)
def test_a_command_in_prose_stays_on_one_line_where_it_fits(text: str) -> None:
    shown = plain(document(Paragraph(text, hanging=0)), width=40).split("\n")
    assert len(shown) == 2
    assert shown[1].strip().strip("`").startswith("finetune ")


def test_a_command_in_prose_is_not_shortened() -> None:
    command = f"finetune train --resume {PATH}"
    assert PATH in plain(document(Paragraph(f"Resume with: {command}")), width=60)


def test_bars_take_the_room_that_is_left() -> None:
    table = Table(("class", ""), [("a" * 20, Bar(1.0)), ("b", Bar(0.5))], names=(0,))
    full = plain(document(table), width=40).split("\n")
    assert [line.count("█") for line in full[1:]] == [16, 8]


def test_styles_do_not_change_the_text() -> None:
    text = plain(document(Fields([("Accuracy", styled("94 %\x1b[31m", "result"))])))
    assert text == "  Accuracy   94 %\\x1b[31m"


def test_an_indented_line_is_continued_below_its_indent() -> None:
    text = (
        "2 problems\n  c.yaml:4: data.val: unknown key. Did you mean 'data.val_fraction'?\n  next"
    )
    made = [line.plain for line in wrapped(text, View(40, shortens=True))]
    assert [len(line) - len(line.lstrip()) for line in made] == [0, 4, 6, 4]
    assert max(map(len, made)) <= 40
