"""Performance goals, and whether the measurements reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from cases import COLD, EVAL_EPOCHS, FEATURES, PLAIN, TIMM_BF16, WARM
from figures import Row, beyond_imports_s, ratio, row_of
from tables import markdown, number

OPEN = "still to be measured"
Document = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """One performance goal.

    Attributes:
        case: Name of the case whose runs decide the goal.
        epochs: Minimum number of epochs of these runs.
        limit: Minimum of a ratio or maximum of a time.
        figure: Function from the measurements to the value that is compared with the limit.
        unit: Unit of the value: ``x`` for a ratio, ``s`` for seconds.
        strictly: Whether the ratio must exceed the limit.
        no_less_accurate_than: Contender whose best accuracy must be reached too.
    """

    text: str
    case: str
    epochs: int
    limit: float
    figure: Callable[[Document], float | None]
    unit: str = "x"
    strictly: bool = False
    no_less_accurate_than: str | None = None

    def reached(self, value: float) -> bool:
        """Whether a value reaches the goal."""
        if self.unit == "s":
            return value <= self.limit
        return value > self.limit if self.strictly else value >= self.limit

    @property
    def wanted(self) -> str:
        """Description of the limit."""
        if self.unit == "s":
            return f"at most {self.limit:g} s"
        if self.strictly:
            return f"more than {self.limit:g} x"
        return f"{self.limit:g} x or more"


def _row(document: Document, case: str, contender: str) -> Row | None:
    return row_of(document["cases"].get(case), contender, document["num_images"]["val"])


def _ratio(case: str, reference: str, of: str) -> Callable[[Document], float | None]:
    def figure(document: Document) -> float | None:
        theirs, ours = _row(document, case, reference), _row(document, case, COLD)
        return ratio(getattr(theirs, of, None), getattr(ours, of, None))

    return figure


def _evaluation(document: Document) -> float | None:
    plain = _row(document, "head", PLAIN)
    runs = document["cases"].get("head", {}).get("evaluations", ())
    speeds = [run["images_per_s"] for run in runs if run["contender"] == EVAL_EPOCHS]
    ours = median(speeds) if speeds else None
    return ratio(ours, plain.evaluated_per_s if plain else None)


def _beyond_imports(document: Document) -> float | None:
    return beyond_imports_s(document["cases"].get("head"), WARM, document["num_images"]["val"])


GOALS = (
    Goal(
        "Head only, 25 epochs, whole process, relative to the plain loop, at no loss of accuracy",
        *("head", 25, 40, _ratio("head", PLAIN, "wall_s")),
        no_less_accurate_than=PLAIN,
    ),
    Goal(
        "The same with a warm cache, minus `import torch, torchvision`",
        *("head", 25, 1.5, _beyond_imports),
        unit="s",
    ),
    Goal(
        "The same with an empty cache, relative to features and logistic regression",
        *("head", 25, 1, _ratio("head", FEATURES, "wall_s")),
        strictly=True,
    ),
    Goal(
        "Last two blocks and head, an epoch after the first, relative to the plain loop",
        *("last_two_blocks", 3, 30, _ratio("last_two_blocks", PLAIN, "epoch_s")),
    ),
    Goal(
        "All parameters, an epoch after the first, relative to the plain loop",
        *("everything", 3, 4, _ratio("everything", PLAIN, "epoch_s")),
    ),
    Goal(
        "All parameters, an epoch after the first, relative to timm (bfloat16, channels_last)",
        *("everything", 3, 1.1, _ratio("everything", TIMM_BF16, "epoch_s")),
    ),
    Goal(
        "Evaluation speed with every feature computed, relative to the plain loop",
        *("head", 3, 4, _evaluation),
    ),
    Goal(
        "Peak anonymous memory, head only: reduction relative to the plain loop",
        *("head", 3, 2, _ratio("head", PLAIN, "peak_mib")),
    ),
    Goal(
        "Head only, ResNet-18 with random weights: not slower than the plain loop",
        *("random_weights", 3, 1, _ratio("random_weights", PLAIN, "wall_s")),
    ),
)


def reach_table(document: Document) -> str:
    """Return a table of the goals, the measured values and whether they are reached."""
    rows = [[goal.text, goal.wanted, _verdict(goal, document), OPEN] for goal in GOALS]
    return markdown(["", "goal", "processor", "GPU"], rows)


def _verdict(goal: Goal, document: Document) -> str:
    value = goal.figure(document)
    if value is None:
        return OPEN
    shown = f"{number(value)} {goal.unit}"
    epochs = document["cases"][goal.case]["epochs"]
    if epochs < goal.epochs:
        return f"{OPEN}; {shown} with {epochs} epochs"
    accurate = _is_accurate(goal, document)
    if not accurate:
        return f"{shown}: **not reached**, less accurate"
    return f"{shown}: {'reached' if goal.reached(value) else '**not reached**'}"


def _is_accurate(goal: Goal, document: Document) -> bool:
    if goal.no_less_accurate_than is None:
        return True
    theirs = _row(document, goal.case, goal.no_less_accurate_than)
    ours = _row(document, goal.case, COLD)
    return theirs is None or ours is None or ours.best >= theirs.best
