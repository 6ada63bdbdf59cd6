"""Compute format: precision and memory format, chosen by timing the model on this machine.

No format is always fastest: channels_last is three times faster for one network and slower for the
next, bfloat16 is fast on one processor and emulated on another. Each candidate is timed on one
batch, and the fastest is chosen if it is clearly faster and its result is close to float32's.
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

from finetune.config.schema import RuntimeConfig
from finetune.core.device import versions
from finetune.core.errors import OutputError
from finetune.core.files import user_cache, write_text
from finetune.core.memory import large_apart, release_memory

TOLERANCE = 0.05
"""Largest distance of one image's result from float32's, relative to the norm of the latter.

bfloat16 has 8 bits of precision, so each layer adds a rounding error of up to 0.4 %: after
MobileNetV2's 52 convolutions with ImageNet weights the largest distance of an image's features was
3.7 % (2.8 % for SqueezeNet), which changed no prediction of a head trained on them. The distance of
a format that does not work for a network is larger by orders of magnitude.
"""

MARGIN = 1.25
"""Speedup that a format needs over a safer one to be chosen.

Formats differ in the last bits of their results. Without a margin, timing noise would choose
between formats of similar speed, and repeating a run without a stored choice could change its
result.
"""

_FEWEST_ROUNDS, _MOST_ROUNDS = 2, 10
_ROUNDS_S = 0.3
_CLOSE = 2.0
_FAR_BEHIND = 4.0
_PREPARING_S = 0.5
"""Upper bound of the extra time of a format's first run, in which its kernels are generated."""
_COMPILING_REPAYS_S = 600.0


@dataclass(frozen=True)
class ComputeFormat:
    """Compute format (dtype, memory format, compile flag) of one part of the network."""

    precision: str = "float32"
    memory_format: str = "contiguous"
    compiled: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and features."""
        dtype: torch.dtype = getattr(torch, self.precision)
        return dtype

    @property
    def layout(self) -> torch.memory_format:
        """Memory format of images and convolution weights."""
        if self.memory_format == "channels_last":
            return torch.channels_last
        return torch.contiguous_format

    def arrange(self, module: nn.Module, *, cast: bool) -> nn.Module:
        """Convert the weights to the memory format, in place; with ``cast`` also to the dtype."""
        module.to(memory_format=self.layout)
        return module.to(self.dtype) if cast else module

    def compile(self, module: nn.Module) -> nn.Module:
        """Return the module, compiled if the format says so; its parameters are shared."""
        if not self.compiled:
            return module
        return cast(nn.Module, torch.compile(module))

    def __str__(self) -> str:
        return f"{self.precision}, {self.memory_format}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class FormatChoice:
    """Chosen compute format, with the timings of the candidates.

    Attributes:
        form: Chosen format.
        seconds: Seconds per image, by format, without candidates too far from float32. On a CPU
            this is process time, summed over all threads.
    """

    form: ComputeFormat
    seconds: dict[str, float]


Runner = Callable[[ComputeFormat], Callable[[], Tensor]]
"""Function from a compute format to a function that runs it once and returns one row per image."""


def lacks(device: torch.device, precision: str) -> bool:
    """Return whether a device does not support a precision."""
    if precision == "float16":
        return device.type != "cuda"
    if precision == "bfloat16":
        if device.type == "cuda":
            return not torch.cuda.is_bf16_supported(including_emulation=False)
        return device.type == "mps"
    return False


def candidates(
    config: RuntimeConfig, device: torch.device, *, is_frozen: bool = False
) -> list[ComputeFormat]:
    """Return the formats that the config permits, float32 contiguous first if it is permitted.

    Args:
        is_frozen: Whether the part is frozen. With auto it may then compute in float16 on GPUs
            without bfloat16; gradients would lose their small values.
    """
    precisions = ["float32", "bfloat16"] if config.precision == "auto" else [config.precision]
    if is_frozen and config.precision == "auto" and lacks(device, "bfloat16"):
        precisions.append("float16")
    able = [precision for precision in precisions if not lacks(device, precision)]
    formats = (
        ["contiguous", "channels_last"]
        if config.memory_format == "auto"
        else [config.memory_format]
    )
    return [ComputeFormat(precision, layout) for precision in able for layout in formats] or [
        ComputeFormat("float32", formats[0])
    ]


def choose_format(
    config: RuntimeConfig,
    run: Runner,
    *,
    device: torch.device,
    images: int,
    key: str,
    work: int | None = None,
    is_frozen: bool = False,
) -> FormatChoice:
    """Time the permitted formats; choose the first unless another is faster by more than `MARGIN`.

    Args:
        run: Runner that prepares a format.
        images: Number of images in one run of the runner.
        key: Key under which the choice is stored for this machine and these versions, so that the
            same training is repeated and evaluated in the same format.
        work: Number of images that the whole training will process; None for a part that is never
            compiled.
        is_frozen: Whether the part is frozen.
    """
    choice = _fastest(config, run, device, images, key, work, is_frozen)
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
    is_frozen: bool,
) -> FormatChoice:
    forms = candidates(config, device, is_frozen=is_frozen)
    may_compile = work is not None and config.compile == "auto" and device.type == "cuda"
    if len(forms) == 1 and not may_compile:
        return FormatChoice(forms[0], {})
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
        pass  # storing is optional: the resolved config also contains the choice
    return choice


def _time(forms: list[ComputeFormat], run: Runner, images: int, *, on_cpu: bool) -> FormatChoice:
    """Time the formats and choose one of them."""
    took = _seconds_of(forms, run, on_cpu=on_cpu)
    release_memory()  # free all copies of the module
    taken = clearly_fastest({form: took[form] for form in forms if form in took})
    return FormatChoice(taken, {str(form): seconds / images for form, seconds in took.items()})


def clearly_fastest(took: dict[ComputeFormat, float]) -> ComputeFormat:
    """Return the first format, unless a later one is faster by more than `MARGIN`.

    Args:
        took: Seconds by format, in the order of `candidates`, the safest first.
    """
    taken = next(iter(took), ComputeFormat())
    for form, seconds in took.items():
        if seconds * MARGIN < took[taken]:
            taken = form
    return taken


def _seconds_of(
    forms: list[ComputeFormat], run: Runner, *, on_cpu: bool
) -> dict[ComputeFormat, float]:
    """Time every format once, then repeat those close to the fastest in turn.

    They are repeated in turn because a machine's speed varies over time; short runs are repeated
    more often, because noise is a larger part of them.

    On a CPU, process time is measured, because other processes affect it less than wall time, and a
    format whose first run is much slower is dropped at once. On a GPU a first run is not
    informative.
    """
    clock = time.process_time if on_cpu else time.perf_counter
    plain = ComputeFormat()
    step = run(plain)
    with large_apart():
        reference = step()
    took = {plain: _timed(step, clock)} if plain in forms else {}
    steps = {plain: step}
    # In reverse: the format that is usually fastest comes first, so that slow ones are dropped
    # early.
    for form in reversed([form for form in forms if form != plain]):
        step = run(form)
        start = clock()
        with large_apart():
            result = step()
        first = clock() - start
        if not distance(result, reference) <= TOLERANCE:  # or not a number
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
    """Return the largest distance of an image from its reference, relative to the latter's norm."""
    difference = (result.float() - reference.float()).flatten(1).norm(dim=1)
    norm = reference.float().flatten(1).norm(dim=1).clamp(min=1e-12)
    return float((difference / norm).max())


def _with_compiled(choice: FormatChoice, run: Runner, images: int, work: int) -> FormatChoice:
    """Try the chosen format compiled, if the run is long enough to amortise the compilation.

    On two CPU cores torch.compile took 100 s for MobileNetV2's training step and made it slower
    (torch 2.15: 14 instead of 44 images/s), so it is tried on CUDA only.
    """
    seconds = choice.seconds.get(str(choice.form))
    if seconds is None or seconds * work < _COMPILING_REPAYS_S:
        return choice
    form = replace(choice.form, compiled=True)
    reference = run(ComputeFormat())()
    step = run(form)
    try:
        result = step()
    except Exception:  # no compiler is installed, or it does not support this network
        return choice
    if not distance(result, reference) <= TOLERANCE:
        return choice
    compiled = min(_timed(step, time.perf_counter) for _ in range(1 + _FEWEST_ROUNDS)) / images
    timed = choice.seconds | {str(form): compiled}
    return FormatChoice(form if compiled * MARGIN < seconds else choice.form, timed)


def _timed(step: Callable[[], Tensor], clock: Callable[[], float]) -> float:
    wait_for_device()
    start = clock()
    step()
    wait_for_device()
    return clock() - start


def wait_for_device() -> None:
    """Wait for all kernels queued on a GPU, which run asynchronously."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _memory(key: str, forms: list[ComputeFormat]) -> Path:
    return machine_file(key, [str(form) for form in forms])


def machine_file(*key: object) -> Path:
    """Return the file for what was found out on this machine with these versions.

    Raises:
        OSError: There is no home folder.
    """
    machine = [platform.machine(), platform.processor(), _processor(), torch.get_num_threads()]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    text = json.dumps([key, machine, versions()])
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return user_cache() / "forms" / f"{name}.json"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("model name")), "")


def _recall(path: Path, forms: list[ComputeFormat]) -> FormatChoice | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        form = ComputeFormat(**content["form"])
        seconds = {str(name): float(value) for name, value in content["seconds"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return FormatChoice(form, seconds) if replace(form, compiled=False) in forms else None
