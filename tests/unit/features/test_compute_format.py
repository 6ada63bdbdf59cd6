"""Tests of the choice of the compute format by accuracy and timing."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.commands.dry_run import dry_run
from finetune.config.schema import Config, PreprocessingConfig, RuntimeConfig
from finetune.core import threads
from finetune.core.device import make_deterministic
from finetune.core.threads import one_thread_a_core
from finetune.features import compute_format
from finetune.features.autocast_module import AutocastModule
from finetune.features.compute_format import (
    TOLERANCE,
    ComputeFormat,
    FormatChoice,
    Runner,
    choose_format,
    distance,
)
from finetune.features.engine import _choose_for, _what_is_timed, trainable_runtime
from finetune.freezing import plan

pytestmark = pytest.mark.usefixtures("own_forms")
CPU = torch.device("cpu")
REFERENCE = torch.eye(4)


class Clock:
    """A machine on which each form takes what the test says."""

    def __init__(
        self,
        seconds: dict[str, float],
        *,
        off: dict[str, float] | None = None,
        first_s: float = 0.0,
        noise: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.now = 0.0
        self.first_s = first_s
        self.seconds = seconds
        self.off = off or {}
        self.noise = noise
        self.runs: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def runner(self) -> Runner:
        def prepare(candidate: ComputeFormat) -> Callable[[], Tensor]:
            def step() -> Tensor:
                self.runs.append(str(candidate))
                first = self.runs.count(str(candidate)) == 1
                self.now += self.seconds[str(candidate)] * self.noise() + first * self.first_s
                return REFERENCE * (1 + self.off.get(str(candidate), 0.0))

            return step

        return prepare


SECONDS = {
    "float32, contiguous": 0.2,
    "float32, channels_last": 0.1,
    "bfloat16, contiguous": 0.3,
    "bfloat16, channels_last": 0.05,
}


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FormatChoice]:
    def choosing(
        clock: Clock,
        config: RuntimeConfig | None = None,
        *,
        device: torch.device = CPU,
        work: int | None = 100,
    ) -> FormatChoice:
        for name in ("perf_counter", "process_time"):
            monkeypatch.setattr(compute_format.time, name, clock.perf_counter)
        return choose_format(
            config or RuntimeConfig(),
            clock.runner(),
            device=device,
            images=10,
            work=work,
            key="a network",
        )

    return choosing


def test_the_fastest_form_is_taken(choose: Callable[..., FormatChoice]) -> None:
    choice = choose(Clock(SECONDS))
    assert choice.form == ComputeFormat("bfloat16", "channels_last")
    assert choice.seconds["bfloat16, channels_last"] == pytest.approx(0.005)


def test_a_form_too_far_from_float32_is_not_taken(choose: Callable[..., FormatChoice]) -> None:
    off = {"bfloat16, channels_last": TOLERANCE * 1.01}
    assert choose(Clock(SECONDS, off=off)).form == ComputeFormat("float32", "channels_last")


def test_a_form_just_within_the_tolerance_is_taken(choose: Callable[..., FormatChoice]) -> None:
    off = {"bfloat16, channels_last": TOLERANCE * 0.99}
    assert choose(Clock(SECONDS, off=off)).form == ComputeFormat("bfloat16", "channels_last")


def test_distance_is_that_of_the_furthest_image() -> None:
    result = REFERENCE.clone()
    result[2, 2] = 1.5
    assert distance(result, REFERENCE) == pytest.approx(0.5)


def test_the_choice_is_remembered(choose: Callable[..., FormatChoice]) -> None:
    first = choose(Clock(SECONDS))
    again = Clock(dict.fromkeys(SECONDS, 1.0))
    assert choose(again) == first
    assert not again.runs


@pytest.mark.parametrize(
    ("times_as_fast", "taken"),
    [(1.0, ComputeFormat()), (1.2, ComputeFormat()), (1.3, ComputeFormat("bfloat16"))],
)
def test_a_form_replaces_a_safer_one_only_where_it_is_clearly_faster(
    choose: Callable[..., FormatChoice], times_as_fast: float, taken: ComputeFormat
) -> None:
    seconds = dict.fromkeys(SECONDS, 0.2) | {"bfloat16, contiguous": 0.2 / times_as_fast}
    assert choose(Clock(seconds)).form == taken


@pytest.mark.parametrize(
    ("others", "taken"), [(0.0095, ComputeFormat()), (0.006, ComputeFormat("bfloat16"))]
)
def test_noise_does_not_choose_the_form(
    choose: Callable[..., FormatChoice],
    monkeypatch: pytest.MonkeyPatch,
    others: float,
    taken: ComputeFormat,
) -> None:
    """Each time nothing is remembered, as in containers."""
    monkeypatch.setattr(compute_format, "_recall", lambda *_: None)
    # In the process of a whole test session, each of some thousand collections takes long.
    monkeypatch.setattr(compute_format, "release_memory", lambda: None)
    noise = random.Random(0)
    seconds = dict.fromkeys(SECONDS, others) | {"float32, contiguous": 0.01}
    # channels_last is never faster here, so that two forms are left to choose from.
    seconds |= {name: 0.012 for name in SECONDS if "channels_last" in name}
    chosen = {choose(Clock(seconds, noise=lambda: noise.uniform(1, 1.4))).form for _ in range(50)}
    assert chosen == {taken}


def test_the_kernels_that_a_first_run_generates_cost_no_form_its_chance(
    choose: Callable[..., FormatChoice],
) -> None:
    seconds = {name: second / 10 for name, second in SECONDS.items()}
    clock = Clock(seconds, first_s=0.2)
    assert choose(clock).form == ComputeFormat("bfloat16", "channels_last")


def test_a_form_far_behind_is_run_once(choose: Callable[..., FormatChoice]) -> None:
    clock = Clock(SECONDS | {"bfloat16, contiguous": 5.0})
    choose(clock)
    assert clock.runs.count("bfloat16, contiguous") == 1


@pytest.mark.parametrize(
    ("name", "crop", "timed"), [("shufflenet_v2_x0_5", 32, False), ("mobilenet_v2", 96, True)]
)
def test_a_prefix_is_timed_where_its_work_takes_time(
    make_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    crop: int,
    timed: bool,
) -> None:
    """Its work is counted: a timing near the limit would differ from run to run."""
    asked: list[list[ComputeFormat]] = []
    monkeypatch.setattr(
        compute_format,
        "_fastest",
        lambda config, *_: (
            asked.append(compute_format.candidates(config, CPU))
            or FormatChoice(ComputeFormat(), {})
        ),
    )
    preprocessing = {"resize": crop, "crop": crop}
    dry_run(make_config(model={"name": name, "preprocessing": preprocessing}))
    assert (len(asked[0]) > 1) is timed


def test_no_timing_decides_about_augmentation(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features of 768 bytes in float32 and of 384 in bfloat16."""
    monkeypatch.setattr(plan, "WORTH_KEEPING_BYTES", 500)
    config = make_config(freeze={"patterns": ["*", "!conv5.*"]})
    policies = set()
    for precision, seconds in (("float32", 1.0), ("bfloat16", 1e-9)):
        choice = FormatChoice(ComputeFormat(precision), {str(ComputeFormat(precision)): seconds})
        monkeypatch.setattr(compute_format, "_fastest", lambda *_, choice=choice: choice)
        policies.add(dry_run(config).config["augment"]["policy"])
    assert policies == {"crop_flip"}


def test_a_form_that_the_config_fixes_is_not_timed(choose: Callable[..., FormatChoice]) -> None:
    clock = Clock(SECONDS)
    config = RuntimeConfig(precision="float32", memory_format="channels_last")
    assert choose(clock, config).form == ComputeFormat("float32", "channels_last")
    assert not clock.runs


@pytest.mark.parametrize(("work", "compiled"), [(1_000, False), (1_000_000, True)])
def test_a_form_is_compiled_on_cuda_where_the_run_repays_it(
    choose: Callable[..., FormatChoice], monkeypatch: pytest.MonkeyPatch, work: int, compiled: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    clock = Clock(SECONDS | {"bfloat16, channels_last, compiled": 0.01})
    choice = choose(clock, device=torch.device("cuda"), work=work)
    assert choice.form == ComputeFormat("bfloat16", "channels_last", compiled)


def test_what_is_computed_once_is_not_compiled(
    choose: Callable[..., FormatChoice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert not choose(Clock(SECONDS), device=torch.device("cuda"), work=None).form.compiled


def test_compiling_on_request_is_compiling_the_fastest_form(
    choose: Callable[..., FormatChoice],
) -> None:
    choice = choose(Clock(SECONDS), RuntimeConfig(compile="on"))
    assert choice.form == ComputeFormat("bfloat16", "channels_last", compiled=True)


def test_forms_are_timed_on_cuda_also_where_a_batch_takes_no_time(
    choose: Callable[..., FormatChoice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes whole batches of a network in a millisecond, many times."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    clock = Clock({name: seconds / 1000 for name, seconds in SECONDS.items()})
    choice = choose(clock, device=torch.device("cuda"))
    assert choice.form == ComputeFormat("bfloat16", "channels_last")


@pytest.mark.parametrize(("room", "timed"), [(64, [64]), (63, [64, 8]), (8, [64, 8])])
def test_forms_are_timed_on_few_images_where_a_batch_does_not_fit(
    room: int, timed: list[int]
) -> None:
    asked: list[int] = []

    def choose(rows: int) -> FormatChoice:
        asked.append(rows)
        if rows > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FormatChoice(ComputeFormat(), {})

    _choose_for(64, choose)
    assert asked == timed


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_a_compilation_that_fails_or_computes_something_else_is_not_taken(
    choose: Callable[..., FormatChoice], monkeypatch: pytest.MonkeyPatch, off: float
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    compiled = "bfloat16, channels_last, compiled"
    seconds = SECONDS | ({compiled: 0.001} if off else {})  # else it raises KeyError
    clock = Clock(seconds, off={compiled: off})
    choice = choose(clock, device=torch.device("cuda"), work=10**6)
    assert choice.form == ComputeFormat("bfloat16", "channels_last")


def test_a_slow_first_run_on_cuda_costs_no_form_its_chance(
    choose: Callable[..., FormatChoice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads kernels there."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    clock = Clock(SECONDS, first_s=5.0)
    assert choose(clock, device=torch.device("cuda")).form == ComputeFormat(
        "bfloat16", "channels_last"
    )


def test_compiling_is_not_tried_on_a_cpu(choose: Callable[..., FormatChoice]) -> None:
    assert not choose(Clock(SECONDS), work=10**9).form.compiled


@pytest.mark.parametrize(("is_frozen", "half"), [(True, ["float16"]), (False, [])])
def test_a_gpu_without_bfloat16_may_compute_what_is_frozen_in_float16(
    monkeypatch: pytest.MonkeyPatch, is_frozen: bool, half: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    config = RuntimeConfig(memory_format="contiguous")
    forms = compute_format.candidates(config, torch.device("cuda"), is_frozen=is_frozen)
    assert [form.precision for form in forms] == ["float32", *half]


def test_float16_of_the_frozen_part_leaves_the_trainable_part_in_float32() -> None:
    assert trainable_runtime(RuntimeConfig(precision="float16")).precision == "float32"


def test_a_form_whose_result_is_not_a_number_is_not_taken(
    choose: Callable[..., FormatChoice],
) -> None:
    clock = Clock(SECONDS, off={"bfloat16, channels_last": math.nan})
    assert choose(clock).form != ComputeFormat("bfloat16", "channels_last")


def test_a_device_without_bfloat16_computes_in_float32(choose: Callable[..., FormatChoice]) -> None:
    config = RuntimeConfig(precision="bfloat16", memory_format="contiguous")
    assert choose(Clock(SECONDS), config, device=torch.device("mps")).form == ComputeFormat()


def test_what_trains_follows_the_common_keys_unless_its_own_are_given() -> None:
    common = trainable_runtime(RuntimeConfig(precision="float32", memory_format="channels_last"))
    assert (common.precision, common.memory_format) == ("float32", "channels_last")
    own = trainable_runtime(RuntimeConfig(precision="float32", live_precision="bfloat16"))
    assert own.precision == "bfloat16"


def test_weights_and_logits_of_a_half_precision_live_part_are_float32() -> None:
    trainable_part = AutocastModule(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)), HALF, CPU
    )
    logits = trainable_part(torch.randn(2, 3, 4, 4))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert {p.dtype for p in trainable_part.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in trainable_part.parameters() if p.grad is not None} == {
        torch.float32
    }


HALF = ComputeFormat("bfloat16", "channels_last")


def test_a_large_live_part_evaluates_in_pieces_to_the_same_logits() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(16, 2))
    whole = AutocastModule(module, ComputeFormat(), CPU).eval()
    pieces = AutocastModule(module, ComputeFormat(), CPU, large=True).eval()
    images = torch.randn(19, 3, 4, 4)
    sizes: list[int] = []
    module[0].register_forward_hook(lambda _m, inputs, _o: sizes.append(len(inputs[0])))
    with torch.no_grad():
        logits = pieces(images)
        assert sorted(sizes) == [3, 8, 8]
        torch.testing.assert_close(logits, whole(images))
    assert pieces(images).requires_grad
    assert sizes[-1] == 19


def test_several_tensors_are_split_into_pieces_together() -> None:
    class Sum(nn.Module):
        def forward(self, one: Tensor, other: Tensor) -> Tensor:
            return one + other

    both = torch.randn(10, 3), torch.randn(10, 3)
    with torch.no_grad():
        assert torch.equal(
            AutocastModule(Sum(), ComputeFormat(), CPU, large=True).eval()(*both), sum(both)
        )


def test_a_pool_computes_in_one_thread_each_and_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_thread_a_core() as pool:
            inside = list(pool.map(lambda _: torch.get_num_threads(), range(8)))
        assert set(inside) == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_pool_has_no_more_threads_than_pieces() -> None:
    with one_thread_a_core(1) as pool:
        assert pool._max_workers == 1


def test_an_interruption_while_a_pool_starts_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = ThreadPoolExecutor.submit
    submitted = []

    def interrupted(self: ThreadPoolExecutor, *arguments: Any) -> Any:
        submitted.append(arguments)
        if len(submitted) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(threads, "available_cores", lambda: 3)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt), one_thread_a_core():
        pass


def test_networks_that_differ_in_shape_or_input_do_not_share_a_form() -> None:
    small, large = (
        PreprocessingConfig(resize=64, crop=64),
        PreprocessingConfig(resize=256, crop=224),
    )
    networks = [
        (nn.Linear(3, 2), small),
        (nn.Linear(3, 2), large),
        (nn.Linear(4, 2), small),
        (nn.Linear(3, 2).requires_grad_(False), small),
    ]
    assert len({_what_is_timed(*network) for network in networks}) == 4


@pytest.mark.parametrize(("device", "enabled"), [("cpu", False), ("cuda", True)])
def test_cuda_takes_deterministic_kernels_where_there_are_some(device: str, enabled: bool) -> None:
    """Those that have none run all the same."""
    with warnings.catch_warnings():
        try:
            make_deterministic(torch.device(device))
            assert torch.are_deterministic_algorithms_enabled() is enabled
            assert torch.is_deterministic_algorithms_warn_only_enabled() is enabled
        finally:
            torch.use_deterministic_algorithms(False)
            torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
