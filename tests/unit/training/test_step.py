"""Tests of an optimizer step: accumulation, out of memory, non-finite values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.messages import fails
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR

from finetune.checkpoints.train_progress import TrainProgress
from finetune.core.errors import NotFiniteError
from finetune.training.ema import EMA
from finetune.training.loop import Callbacks, EpochResult, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.metrics import Meter
from finetune.training.step import FiniteCheck, StepConfig

Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Sums in another order agree to the last few of sixteen digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(8) if norm else nn.ReLU()
    return nn.Sequential(nn.Linear(6, 8), middle, nn.Linear(8, 3))


def images(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator)
    return (inputs,), torch.randint(0, 3, (count,), generator=generator)


def in_batches(size: int, batch: Batch) -> list[Batch]:
    (inputs,), labels = batch
    return [
        ((one,), other) for one, other in zip(inputs.split(size), labels.split(size), strict=True)
    ]


def trained(
    model: nn.Module, batches: list[Batch], *, epochs: int = 2, **options: Any
) -> nn.Module:
    list(train(model, batches, epochs=epochs, **options))
    return model


def train(
    model: nn.Module, batches: list[Batch], *, epochs: int = 2, lr: float = 0.1, **options: Any
) -> Iterator[EpochResult]:
    """Train with options of `StepConfig`, `LossConfig`, `Callbacks` and `LoopState`."""

    def chosen(kind: Any) -> dict[str, Any]:
        return {name: options[name] for name in kind.__dataclass_fields__ if name in options}

    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = ConstantLR(optimizer, factor=1.0, total_iters=1)
    return train_epochs(
        LoopState(model, optimizer, schedule, num_classes=3, **chosen(LoopState)),
        lambda _: batches,
        epochs=epochs,
        step=StepConfig(seed=0, **chosen(StepConfig)),
        loss=LossConfig(**chosen(LossConfig)),
        callbacks=Callbacks(model.train, **chosen(Callbacks)),
    )


def assert_close(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


# Several batches, one step


@pytest.mark.parametrize("count", [12, 11, 10, 9, 8])  # the last step of an epoch is short
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"class_weights": [0.5, 1.0, 4.0]}])
def test_accumulated_batches_move_as_one_large_batch(count: int, options: dict[str, Any]) -> None:
    data = images(count)
    small = trained(network(), in_batches(2, data), accumulate=3, **options)
    large = trained(network(), in_batches(6, data), **options)
    assert_close(small, large)


def test_an_uneven_last_batch_weighs_as_what_it_holds() -> None:
    """Three batches of 4, 4 and 1: a mean of their means would count the last image four times."""
    data = images(9)
    small = trained(network(), in_batches(4, data), accumulate=3)
    assert_close(small, trained(network(), [data]))


def test_accumulation_counts_every_image_once() -> None:
    (result,) = train(network(), in_batches(4, images(10)), epochs=1, accumulate=2)
    assert result.num_images == 10


def test_the_schedule_steps_with_the_optimizer() -> None:
    progress = TrainProgress()
    list(train(network(), in_batches(2, images(10)), epochs=3, accumulate=2, progress=progress))
    assert (progress.steps, progress.batches, progress.epoch) == (9, 15, 4)


# Clipping


def test_a_long_gradient_is_cut_to_its_length_and_keeps_its_direction() -> None:
    data = images(8)
    free, clipped = network(), network()
    start = torch.cat([p.detach().flatten() for p in free.parameters()])
    moves = []
    for model, clip in ((free, None), (clipped, 1e-3)):
        trained(model, [data], epochs=1, clip_norm=clip)
        moves.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - start)
    assert float(moves[1].norm()) == pytest.approx(1e-3 * 0.1, rel=1e-3)
    assert float(F.cosine_similarity(*moves, dim=0)) == pytest.approx(1.0)


def test_a_short_gradient_is_left_as_it_is() -> None:
    data = images(8)
    one, other = trained(network(), [data]), trained(network(), [data], clip_norm=1e6)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# Averages of the weights


def test_the_average_is_what_its_definition_says() -> None:
    decay, tensor = 0.9, torch.zeros(4)
    average = EMA({"w": tensor}, decay)
    seen = []
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 30):
        tensor.copy_(torch.randn(4, generator=generator))
        seen.append(tensor.clone())
        average.update()
        weights = torch.tensor([decay ** (step - i) for i in range(1, step + 1)])
        expected = (weights[:, None] * torch.stack(seen)).sum(0) / weights.sum()
        torch.testing.assert_close(average.tensors["w"], expected, rtol=1e-12, atol=1e-14)


def test_the_loop_tells_the_average_of_each_step() -> None:
    model = network()
    average = EMA(dict(model.named_parameters()), 0.5)
    trained(model, in_batches(2, images(10)), epochs=3, accumulate=2, average=average)
    assert average.steps == 9


def test_counters_are_not_averaged() -> None:
    counter = torch.tensor(0)
    average = EMA({"n": counter, "w": torch.zeros(1)}, 0.9)
    for _ in range(5):
        counter += 1
        average.update()
    assert average.tensors["n"] == 5


def test_averages_stand_in_for_the_weights_and_leave_them_as_they_were() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = EMA({"w": weight}, 0.5)
    average.update()
    with torch.no_grad():
        weight.mul_(3)
    with average.in_place():
        assert weight.tolist() == [1.0, 2.0]
    assert weight.tolist() == [3.0, 6.0]
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert weight.tolist() == [3.0, 6.0]


# Memory that runs out


class Small(nn.Module):
    """A network whose device holds so many images."""

    def __init__(self, inner: nn.Module, most: int, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.inner, self.most, self.error = inner, most, error
        self.seen: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            raise self.error()
        self.seen.append(len(inputs))
        return self.inner(inputs)


ERRORS = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 4194304 bytes. Error code 12 (Cannot allocate memory)"
    ),
    lambda: RuntimeError("MPS backend out of memory (MPS allocated: 8.85 GB, max allowed: 9 GB)."),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
    lambda: RuntimeError("CUDA error: out of memory"),
    MemoryError,
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_out_of_memory_halves_what_is_computed_at_once_and_the_gradient_stays(
    error: Callable[[], BaseException], accumulate: int
) -> None:
    batches = in_batches(8, images(20))
    said: list[str] = []
    model = Small(network(), 3, error)
    progress = TrainProgress()
    trained(model, batches, accumulate=accumulate, progress=progress, warn=said.append)
    assert_close(model.inner, trained(network(), batches, accumulate=accumulate))
    assert [text.partition(" and ")[0] for text in said] == [
        "out of memory: continuing with micro-batches of 4 images",
        "out of memory: continuing with micro-batches of 2 images",
    ]
    assert max(model.seen) == 2
    assert min(model.seen) == 2
    assert progress.at_once == 2


def test_a_run_that_goes_on_computes_as_few_at_once_as_before() -> None:
    model = Small(network(), 4, MemoryError)
    said: list[str] = []
    progress = TrainProgress(at_once=4)
    trained(model, in_batches(8, images(16)), progress=progress, warn=said.append)
    assert said == []
    assert model.seen == [4] * 8


def test_no_piece_is_a_single_image() -> None:
    """Norm layers cannot train on one."""
    model = Small(network(norm=True), 3, MemoryError)
    trained(model, in_batches(5, images(15)), epochs=1)
    assert sorted(set(model.seen)) == [2, 3]


def test_memory_for_less_than_two_images_ends_the_run_with_what_to_do() -> None:
    with fails("machine.out_of_memory"):
        trained(Small(network(), 1, MemoryError), in_batches(8, images(8)))


def test_any_other_error_passes() -> None:
    with pytest.raises(RuntimeError, match="odd"):
        trained(Small(network(), 1, lambda: RuntimeError("odd")), in_batches(8, images(8)))


# Numbers that are none


def poisoned(at: int, value: float) -> list[Batch]:
    batches = in_batches(4, images(20))
    batches[at][0][0][1, 2] = value
    return batches


@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_image_stops_the_step_before_it_moves_a_weight(at: int, value: float) -> None:
    model = network()
    before: list[dict[str, Tensor]] = [copy.deepcopy(model.state_dict())]
    with pytest.raises(NotFiniteError) as caught:
        trained(
            model,
            poisoned(at, value),
            after_step=lambda: before.append(copy.deepcopy(model.state_dict())),
        )
    assert (caught.value.epoch, caught.value.batch, caught.value.lr) == (1, at + 1, 0.1)
    assert "the training loss is not a finite number, at a learning rate of 0.1" in str(
        caught.value
    )
    assert len(before) == at + 1
    assert all(torch.equal(v, before[-1][k]) for k, v in model.state_dict().items())


class Steep(torch.autograd.Function):
    """The same forwards; backwards, no number."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float("nan")


class WithSteep(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = Steep.apply(self.inner(inputs))
        return output


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_gradient_that_is_no_number_moves_no_weight(clip_norm: float | None) -> None:
    model = WithSteep(network())
    before = copy.deepcopy(model.state_dict())
    with fails("result.not_finite"):
        trained(model, in_batches(4, images(8)), clip_norm=clip_norm)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_label_weight_that_is_no_number_stops_the_first_step() -> None:
    weights = [1.0, float("nan"), 1.0]
    with fails("result.not_finite"):
        trained(network(), in_batches(10, images(20)), class_weights=weights)


def test_in_a_step_of_several_batches_the_one_is_named() -> None:
    with pytest.raises(NotFiniteError) as caught:
        trained(network(), poisoned(3, float("nan")), accumulate=2)
    assert caught.value.batch == 4


@pytest.mark.parametrize("classes", [3, 7])
def test_a_meter_asks_a_device_for_nothing(classes: int) -> None:
    """On the meta device there are no values: whatever asks for one fails."""
    device = torch.device("meta")
    logits = torch.empty(4, classes, device=device)
    labels = torch.empty(4, dtype=torch.int64, device=device)
    Meter(classes, device).add(logits, labels, loss=torch.empty((), device=device))


def test_another_device_is_asked_for_many_steps_at_once() -> None:
    """No GPU is at hand: the device's values are the CPU's, and what is counted is the asking."""
    watch = FiniteCheck(torch.device("cuda"))
    error = [NotFiniteError("x", epoch=1, batch=batch, lr=0.1) for batch in range(100)]
    for batch in range(63):
        watch.add(torch.tensor(float("nan") if batch == 4 else 1.0), error[batch])
    with pytest.raises(NotFiniteError) as caught:
        watch.add(torch.tensor(1.0), error[63])
    assert caught.value.batch == 4
    watch.add(torch.tensor(float("inf")), error[70])
    with pytest.raises(NotFiniteError):
        watch.check()
    watch.check()
