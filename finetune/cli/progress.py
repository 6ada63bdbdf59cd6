"""Progress on the terminal: what is being done, a bar, and the time left."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

_PER_SECOND = 5


class _Time(ProgressColumn):
    """Time left of a bar that can be estimated, else the time taken."""

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        if left is not None and task.completed:
            return Text(f"{_short(left)} left", style="dim")
        return Text(_short(task.elapsed or 0), style="dim")


class _Bar(BarColumn):
    """Bar of a task whose length is known."""

    def render(self, task: Task) -> Any:
        return Text() if task.total is None else super().render(task)


class _Done(ProgressColumn):
    """Number of steps done."""

    def render(self, task: Task) -> Text:
        return Text() if task.total is None else Text(f"{task.completed:,.0f}/{task.total:,.0f}")


def begin(console: Console) -> Progress:
    """Begin to show progress on a terminal; what was shown is cleared at the end."""
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        _Bar(bar_width=24),
        _Done(),
        _Time(),
        console=console,
        refresh_per_second=_PER_SECOND,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    progress.start()
    return progress


def _short(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds))).removeprefix("0:").removeprefix("0")
