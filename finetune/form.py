"""The form of arithmetic: precision and memory format, chosen by timing this model here.

No form wins everywhere: channels_last is three times faster for one network and slower for the
next, bfloat16 is fast on one processor and emulated on another. So each candidate is timed, in
turn, on one batch, and one whose result stays near float32's is taken where it is clearly faster.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from finetune.config import RuntimeConfig
from finetune.errors import OutputError
from finetune.files import user_cache, write_text
from finetune.runtime import large_apart, release_memory, versions

TOLERANCE = 0.05
"""Largest distance of one image's result from float32's, relative to its norm.

bfloat16 keeps 8 bits, so that each layer adds up to 0.4 % of rounding: after MobileNetV2's 52
convolutions with ImageNet weights an image's features were 3.7 % away at most (2.8 % for
SqueezeNet), which changed no decision of a head trained on them. A form that is broken for a
network is further off by orders of magnitude.
"""

MARGIN = 1.25
"""A form replaces a safer one only where it is this many times as fast.

Forms differ in the last bits of their results. Between two of about the same speed the noise of the
timing would choose, and the same run would give one result today and another tomorrow wherever the
choice is not remembered.
"""

_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 10
_ROUNDS_S = 0.3
_CLOSE = 2.0
_FAR_BEHIND = 4.0
_PREPARING_S = 0.5
"""Generous for what the first run of a form takes longer: kernels are generated for it."""
_COMPILING_REPAYS_S = 600.0


@dataclass(frozen=True)
class Form:
    """How the frozen prefix computes; without a prefix, how everything does."""

    precision: str = "float32"
    memory_format: str = "contiguous"
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and features."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def layout(self) -> torch.memory_format:
        """Of images and of convolutions' weights."""
        if self.memory_format == "channels_last":
            return torch.channels_last
        return torch.contiguous_format

    def arrange(self, module: nn.Module, *, cast: bool) -> nn.Module:
        """Lay the module's weights out in this form, in place; ``cast`` also changes their type."""
        module.to(memory_format=self.layout)
        return module.to(self.dtype) if cast else module

    def compile(self, module: nn.Module) -> nn.Module:
        """The module as this form calls it; its parameters stay those of the module."""
        if not self.compiled:
            return module
        return cast(nn.Module, torch.compile(module))

    def __str__(self) -> str:
        return f"{self.precision}, {self.memory_format}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class Choice:
    """The form taken, and what each candidate took.

    Attributes:
        seconds: For one image, by form; candidates too far from float32 are left out. On a CPU
            the processor's time, in which all threads count.
    """

    form: Form
    seconds: dict[str, float]


Runner = Callable[[Form], Callable[[], Tensor]]
"""Prepares a form and returns what runs it once, giving its result: a row for each image."""


def lacks(device: torch.device, precision: str) -> bool:
    """Whether a device cannot compute in this precision."""
    if precision != "bfloat16":
        return False
    if device.type == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "mps"


def candidates(config: RuntimeConfig, device: torch.device) -> list[Form]:
    """The forms that the config leaves open, float32 contiguous first if it is among them."""
    precisions = ["float32", "bfloat16"] if config.precision == "auto" else [config.precision]
    able = [precision for precision in precisions if not lacks(device, precision)]
    formats = (
        ["contiguous", "channels_last"]
        if config.memory_format == "auto"
        else [config.memory_format]
    )
    return [Form(precision, layout) for precision in able for layout in formats] or [
        Form("float32", formats[0])
    ]


def choose_form(
    config: RuntimeConfig,
    run: Runner,
    *,
    device: torch.device,
    images: int,
    key: str,
    work: int | None = None,
) -> Choice:
    """Time the open candidates; take the first, unless one near enough to float32 beats `MARGIN`.

    Args:
        images: Images in one run of the runner.
        work: Images that the whole training will compute; None for what is not compiled.
        key: What the choice depends on beside the machine and versions; it is remembered, so that
            the same training, evaluated or run again, computes in the same form.
    """
    choice = _fastest(config, run, device, images, key, work)
    if work is not None and config.compile == "on":
        return replace(choice, form=replace(choice.form, compiled=True))
    return choice


def _fastest(
    config: RuntimeConfig,
    run: Runner,
    device: torch.device,
    images: int,
    key: str,
    work: int | None,
) -> Choice:
    forms = candidates(config, device)
    may_compile = work is not None and config.compile == "auto" and device.type == "cuda"
    if len(forms) == 1 and not may_compile:
        return Choice(forms[0], {})
    path: Path | None
    try:
        path = _memory(f"{key} {device.type} {images} {may_compile and work}", forms)
    except OSError:  # no home folder
        path = None
    remembered = _recall(path, forms) if path else None
    if remembered is not None:
        return remembered
    choice = _time(forms, run, images, on_cpu=device.type == "cpu")
    if may_compile and work is not None:
        choice = _with_compiled(choice, run, images, work)
    try:
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(asdict(choice)))
    except (OSError, OutputError):
        pass  # remembering is a convenience; the resolved config states the choice as well
    return choice


def _time(forms: list[Form], run: Runner, images: int, *, on_cpu: bool) -> Choice:
    """Time the forms and take one of them."""
    took = _seconds_of(forms, run, on_cpu=on_cpu)
    release_memory()  # of all copies
    taken = clearly_fastest({form: took[form] for form in forms if form in took})
    return Choice(taken, {str(form): seconds / images for form, seconds in took.items()})


def clearly_fastest(took: dict[Form, float]) -> Form:
    """The first form, unless a later one is faster than those before it by more than `MARGIN`.

    Args:
        took: Seconds by form, in the order of `candidates`: the safest first.
    """
    taken = next(iter(took), Form())
    for form, seconds in took.items():
        if seconds * MARGIN < took[taken]:
            taken = form
    return taken


def _seconds_of(forms: list[Form], run: Runner, *, on_cpu: bool) -> dict[Form, float]:
    """Every form once, and those close to the best in turn, since a machine's speed changes from
    one second to the next. Short runs are repeated more often: noise is a larger part of them.

    On a CPU the processor's time counts, which other processes do not lengthen as they do the time
    that passes; and a form whose first run is far behind is left at once. On a GPU a first run says
    nothing.
    """
    clock = time.process_time if on_cpu else time.perf_counter
    plain = Form()
    step = run(plain)
    with large_apart():
        reference = step()
    took = {plain: _timed(step, clock)} if plain in forms else {}
    steps = {plain: step}
    # From the end: the form that wins most often first, so that the others are soon left.
    for form in reversed([form for form in forms if form != plain]):
        step = run(form)
        start = clock()
        with large_apart():
            result = step()
        first = clock() - start
        if distance(result, reference) > TOLERANCE:
            continue
        bound = _FAR_BEHIND * min(took.values(), default=math.inf) + _PREPARING_S
        if first < bound or not on_cpu:
            first = _timed(step, clock)
        steps[form], took[form] = step, first
        close = _CLOSE * min(took.values())
        steps = {form: step for form, step in steps.items() if took.get(form, math.inf) <= close}
        del step
        release_memory()
    start = clock()
    for number in range(_MOST_ROUNDS):
        bound = _CLOSE * min(took.values(), default=0.0)
        close_forms = [form for form in steps if took.get(form, math.inf) <= bound]
        repeats = len(close_forms) > 1 and clock() - start < _ROUNDS_S
        if number >= _FEWEST_ROUNDS and not repeats:
            break
        for form in close_forms:
            took[form] = min(took[form], _timed(steps[form], clock))
    return took


def distance(result: Tensor, reference: Tensor) -> float:
    """Of the image that is furthest from its reference, relative to the reference's norm."""
    difference = (result.float() - reference.float()).flatten(1).norm(dim=1)
    norm = reference.float().flatten(1).norm(dim=1).clamp(min=1e-12)
    return float((difference / norm).max())


def _with_compiled(choice: Choice, run: Runner, images: int, work: int) -> Choice:
    """The best form compiled, where the run is long enough to repay the attempt.

    On two CPU cores torch.compile took 100 s for MobileNetV2's training step and made it slower
    (torch 2.15: 14 against 44 images/s), so that it is tried on CUDA only.
    """
    seconds = choice.seconds.get(str(choice.form))
    if seconds is None or seconds * work < _COMPILING_REPAYS_S:
        return choice
    form = replace(choice.form, compiled=True)
    reference = run(Form())()
    step = run(form)
    try:
        result = step()
    except Exception:  # no compiler here, or none that can do this network
        return choice
    if distance(result, reference) > TOLERANCE:
        return choice
    compiled = min(_timed(step, time.perf_counter) for _ in range(1 + _FEWEST_ROUNDS)) / images
    timed = choice.seconds | {str(form): compiled}
    return Choice(form if compiled * MARGIN < seconds else choice.form, timed)


def _timed(step: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    wait_for_device()
    start = clock()
    step()
    wait_for_device()
    return clock() - start


def wait_for_device() -> None:
    """Until all that a GPU was given is done: it works while Python goes on."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _memory(key: str, forms: list[Form]) -> Path:
    machine = [platform.machine(), platform.processor(), _processor(), torch.get_num_threads()]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    text = json.dumps([key, machine, versions(), [str(form) for form in forms]])
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return user_cache() / "forms" / f"{name}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("model name")), "")


def _recall(path: Path, forms: list[Form]) -> Choice | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form = Form(**content["form"])
        seconds = {str(name): float(value) for name, value in content["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Choice(form, seconds) if replace(form, compiled=False) in forms else None
