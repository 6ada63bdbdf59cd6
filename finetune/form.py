"""The form of arithmetic: precision and memory format, chosen by timing this model here.

No form wins everywhere: channels_last is three times faster for one network and slower for the
next, bfloat16 is fast on one processor and emulated on another. So each candidate is timed, in
turn, on one batch, and the fastest whose result stays near float32's is taken.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import torch
from torch import Tensor, nn

from finetune.config import RuntimeConfig
from finetune.errors import OutputError
from finetune.files import write_text
from finetune.runtime import versions

TOLERANCE = 0.02
"""Largest distance from float32's result, relative to its norm."""

_ROUNDS = 2
_MUCH_SLOWER = 4.0


@dataclass(frozen=True)
class Form:
    """How the frozen prefix computes; without a prefix, how everything does."""

    precision: str = "float32"
    memory_format: str = "contiguous"

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

    def __str__(self) -> str:
        return f"{self.precision}, {self.memory_format}"


@dataclass(frozen=True)
class Choice:
    """The form taken, and what each candidate took.

    Attributes:
        seconds: For one image, by form; candidates too far from float32 are left out.
    """

    form: Form
    seconds: dict[str, float]


def candidates(config: RuntimeConfig) -> list[Form]:
    """The forms that the config leaves open, float32 contiguous first if it is among them."""
    precisions = ["float32", "bfloat16"] if config.precision == "auto" else [config.precision]
    formats = (
        ["contiguous", "channels_last"]
        if config.memory_format == "auto"
        else [config.memory_format]
    )
    return [Form(precision, layout) for precision in precisions for layout in formats]


def choose_form(
    config: RuntimeConfig,
    run: Callable[[Form], Callable[[], Tensor]],
    *,
    images: int,
    key: str,
) -> Choice:
    """Time the open candidates and take the fastest that is near enough to float32.

    Args:
        run: Prepares a form and returns what runs it once, giving its result.
        images: Images in that run.
        key: What the choice depends on beside the machine and versions; it is remembered, so that
            the same training, evaluated or run again, computes in the same form.
    """
    forms = candidates(config)
    if len(forms) == 1:
        return Choice(forms[0], {})
    path = _memory(key, forms)
    remembered = _recall(path, forms)
    if remembered is not None:
        return remembered
    choice = _time(forms, run, images)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(choice)))
    except (OSError, OutputError):
        pass  # remembering is a convenience; the resolved config states the choice as well
    return choice


def _time(forms: list[Form], run: Callable[[Form], Callable[[], Tensor]], images: int) -> Choice:
    reference = run(Form())()
    scale = float(reference.float().norm()) or 1.0
    seconds: dict[str, float] = {}
    best: tuple[float, Form] | None = None
    for form in forms:
        step = run(form)
        start = time.perf_counter()
        result = step()
        first = time.perf_counter() - start
        if float((result.float() - reference.float()).norm()) / scale > TOLERANCE:
            continue
        if best is not None and first > _MUCH_SLOWER * best[0]:
            seconds[str(form)] = first / images
            continue
        took = min(_timed(step) for _ in range(_ROUNDS))
        seconds[str(form)] = took / images
        if best is None or took < best[0]:
            best = (took, form)
    return Choice(best[1] if best else Form(), seconds)


def _timed(step: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _memory(key: str, forms: list[Form]) -> Path:
    machine = [platform.machine(), platform.processor(), _processor(), torch.get_num_threads()]
    if torch.cuda.is_available():
        machine.append(torch.cuda.get_device_name())
    text = json.dumps([key, machine, versions(), [str(form) for form in forms]])
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("finetune") / "forms" / f"{name}.json"


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
    return Choice(form, seconds) if form in forms else None


def forward_runner(prefix: nn.Module, images: Tensor) -> Callable[[Form], Callable[[], Tensor]]:
    """For `choose_form`: the prefix's forward pass on copies of it."""

    def prepare(form: Form) -> Callable[[], Tensor]:
        module = form.arrange(copy.deepcopy(prefix), cast=True)
        batch = images.to(form.dtype).contiguous(memory_format=form.layout)

        def step() -> Tensor:
            features = module(batch)
            return features if isinstance(features, Tensor) else features[-1]

        return step

    return prepare


def training_runner(model: nn.Module, images: Tensor) -> Callable[[Form], Callable[[], Tensor]]:
    """For `choose_form`: forward and backward of copies of a model without a prefix."""

    def prepare(form: Form) -> Callable[[], Tensor]:
        module = form.arrange(copy.deepcopy(model), cast=False)
        batch = images.contiguous(memory_format=form.layout)

        def step() -> Tensor:
            torch.manual_seed(0)
            with torch.autocast(
                batch.device.type, torch.bfloat16, enabled=form.precision == "bfloat16"
            ):
                output = module(batch)
            logits: Tensor = output if isinstance(output, Tensor) else output[0]
            logits.float().square().sum().backward()  # type: ignore[no-untyped-call]
            module.zero_grad(set_to_none=True)
            return logits.detach()

        return step

    return prepare
