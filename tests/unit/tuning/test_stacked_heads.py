"""Tests that heads trained in parallel end as in separate training loops."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from finetune.config.schema import ModelConfig, OptimizerConfig, PreprocessingConfig, ScheduleConfig
from finetune.features.source import FeatureBatch
from finetune.freezing.graph_split import split_model
from finetune.freezing.train_mode import set_train_mode
from finetune.models.build import build_untrained, resolve_model
from finetune.results.features import FeatureCounts
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.lr_schedulers import build_schedule
from finetune.training.optimizers import build_optimizer
from finetune.training.step import StepConfig
from finetune.tuning.parallel_trials import run_in_parallel
from finetune.tuning.shared_dropout import SharedDropout, share_dropout
from finetune.tuning.stacked_heads import lone_head, score_heads, train_heads
from finetune.tuning.stacked_optimizers import HeadSettings

CLASSES = 3
SEED = 5


class Batches:
    """Three batches of random features, the last one shorter; others in each epoch."""

    counts: FeatureCounts | None = None

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int = 0) -> Iterator[FeatureBatch]:
        draws = torch.Generator().manual_seed(epoch)
        for size in (8, 8, 5):
            labels = torch.randint(CLASSES, (size,), generator=draws)
            features = torch.randn(size, *self.shape, generator=draws)
            features[:, 0] += labels.float().reshape(-1, *[1] * (len(self.shape) - 1))
            yield (features,), labels


class Dense(nn.Module):
    """What a linear probe leaves: a dropout and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.drop(features))


class Convolved(nn.Module):
    """squeezenet's end: its head is a convolution, with a ReLU and pooling behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Conv2d(4, CLASSES, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.head(self.drop(features))).mean(dim=(2, 3))


def optimizer(name: str, **options: float) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"name": name, "lr": 0.01, **options})


SETTINGS = [
    HeadSettings(optimizer("sgd", lr=0.3, weight_decay=0.01), 4, 0.1),
    HeadSettings(optimizer("adamw", lr=0.05, weight_decay=0.3), 2, 0.0),
    HeadSettings(optimizer("sgd", lr=0.03, momentum=0.5), 2, 0.0),
    HeadSettings(optimizer("adamw", lr=0.005), 4, 0.2),
    HeadSettings(optimizer("sgd", lr=0.1, momentum=0.0), 3, 0.05),
]


def alone(
    network: nn.Module,
    one: HeadSettings,
    batches: Batches,
    schedule: ScheduleConfig,
    class_weights: Sequence[float] | None,
) -> nn.Module:
    """What the ordinary loop makes of a network."""
    network = copy.deepcopy(network)
    moves = build_optimizer(network.named_parameters(), one.optimizer)
    plan = build_schedule(moves, schedule, epochs=one.epochs, steps_per_epoch=len(batches))
    for _ in train_epochs(
        LoopState(network, moves, plan, num_classes=CLASSES),
        batches.epoch,
        epochs=one.epochs,
        step=StepConfig(seed=SEED),
        loss=LossConfig(label_smoothing=one.label_smoothing, class_weights=class_weights),
        callbacks=Callbacks(lambda: network.train() and None),
    ):
        pass
    return network


@pytest.mark.parametrize("class_weights", [None, [0.5, 1.0, 2.0]])
@pytest.mark.parametrize(
    ("network", "shape"), [(Dense, (6,)), (Convolved, (4, 3, 3))], ids=["linear", "conv"]
)
@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "cosine", "warmup_epochs": 1},
        {"name": "step", "step_epochs": 1, "warmup_epochs": 0.0},
    ],
)
def test_each_head_is_what_the_loop_makes_of_it_alone(
    network: type[nn.Module],
    shape: tuple[int, ...],
    schedule: dict[str, object],
    class_weights: list[float] | None,
) -> None:
    torch.manual_seed(0)
    start = network().train()
    plan = ScheduleConfig.model_validate(schedule)
    batches = Batches(*shape)
    seen = []
    for ended, heads in train_heads(
        start,
        "head",
        SETTINGS,
        batches=batches,
        schedule=plan,
        seed=SEED,
        class_weights=class_weights,
    ):
        scores = score_heads(heads, batches.epoch(9)) if ended else []
        for column, (index, score) in enumerate(zip(ended, scores, strict=True)):
            expected = alone(start, SETTINGS[index], batches, plan, class_weights)
            for name, weight in expected.head.named_parameters():
                mine = heads.layer.get_parameter(name).unflatten(0, (len(ended), CLASSES))[column]
                torch.testing.assert_close(mine, weight, rtol=2e-5, atol=2e-6)
            figures = evaluate(expected, batches.epoch(9), num_classes=CLASSES)
            assert (score.num_images, score.top1) == (figures.num_images, figures.top1)
            assert score.balanced_accuracy == pytest.approx(figures.balanced_accuracy)
            assert score.macro_f1 == pytest.approx(figures.macro_f1)
            assert score.loss == pytest.approx(figures.loss, rel=1e-5)
            seen.append(index)
    assert sorted(seen) == list(range(len(SETTINGS)))


COSINE = ScheduleConfig.model_validate({"name": "cosine", "warmup_epochs": 0.0})


def test_the_first_network_stays_as_it_was() -> None:
    start = Dense().train()
    before = copy.deepcopy(start.state_dict())
    for _ in train_heads(start, "head", SETTINGS, batches=Batches(6), schedule=COSINE, seed=SEED):
        pass
    assert all(torch.equal(start.state_dict()[name], before[name]) for name in before)


def test_a_head_that_diverges_takes_no_other_with_it() -> None:
    torch.manual_seed(0)
    start = Dense().train()
    wild = HeadSettings(optimizer("sgd", lr=1e30, weight_decay=1.0), 4, 0.0)
    plain: dict[int, float] = {}
    with_wild: dict[int, float] = {}
    for settings, found in ((SETTINGS, plain), ([*SETTINGS, wild], with_wild)):
        for ended, heads in train_heads(
            start, "head", settings, batches=Batches(6), schedule=COSINE, seed=SEED
        ):
            if ended:
                scores = score_heads(heads, Batches(6).epoch(9))
                found |= {at: score.loss for at, score in zip(ended, scores, strict=True)}
    assert not torch.isfinite(torch.tensor(with_wild.pop(len(SETTINGS))))
    assert with_wild == pytest.approx(plain, rel=1e-5)


def live_of(name: str, crop: int, *, thawed: str = "") -> nn.Module:
    """Trainable part of a linear probe, or of a network with one more trainable tensor."""
    preprocessing = PreprocessingConfig(resize=crop, crop=crop)
    spec = resolve_model(ModelConfig(name=name, weights="none", preprocessing=preprocessing))
    model = build_untrained(spec, CLASSES, seed=0)
    for key, parameter in model.named_parameters():
        head = key.startswith(f"{spec.family.head}.")
        parameter.requires_grad_(head or (bool(thawed) and key.startswith(thawed)))
    set_train_mode(model)
    return split_model(model, crop=crop).trainable_part


@pytest.mark.parametrize(
    ("name", "crop", "path"),
    [
        ("shufflenet_v2_x0_5", 32, "graph.fc"),
        ("mobilenet_v2", 32, "graph.classifier.1"),
        ("squeezenet1_1", 32, "graph.classifier.1"),
        ("swin_t", 32, "graph.head"),
    ],
)
def test_a_probe_is_a_lone_head(name: str, crop: int, path: str) -> None:
    assert lone_head(live_of(name, crop)) == path


def test_squeezenets_own_end_is_widened_as_it_is() -> None:
    trainable_part = live_of("squeezenet1_1", 64)
    path = lone_head(trainable_part)
    assert path is not None
    one = [HeadSettings(optimizer("sgd", lr=0.1), 1, 0.0)] * 2
    *_, (ended, heads) = train_heads(
        trainable_part, path, one, batches=Batches(512, 3, 3), schedule=COSINE, seed=SEED
    )
    assert ended == [0, 1]
    features = torch.randn(4, 512, 3, 3)
    expected = alone(trainable_part, one[0], Batches(512, 3, 3), COSINE, None).eval()
    logits = heads.eval()(features)
    torch.testing.assert_close(logits[:, 0], expected(features), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[:, 0], logits[:, 1])


def test_more_than_a_head_is_none() -> None:
    assert lone_head(live_of("mobilenet_v2", 32, thawed="features.18.")) is None
    assert lone_head(nn.Linear(2, 2)) is None


# Beside each other


def test_a_shared_dropout_draws_what_torchs_own_draws() -> None:
    inputs = torch.randn(16, 40)
    shared = SharedDropout(0.3).train()
    shared.begin(11)
    torch.manual_seed(11)
    assert torch.equal(shared(inputs), nn.Dropout(0.3).train()(inputs))
    assert torch.equal(shared.eval()(inputs), inputs)


def test_copies_of_a_shared_dropout_draw_once_for_each_step_and_shape() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Identity()).train()
    assert share_dropout(network)
    other = copy.deepcopy(network)
    ones = torch.ones(4, 8)
    masks = []
    for seed in (1, 2):
        for one in (network, other):
            one[0].begin(seed)
            masks.append((one(ones), one(ones[:3])))
    for first, second in ((0, 1), (2, 3)):
        assert torch.equal(masks[first][0], masks[second][0])
        assert torch.equal(masks[first][1], masks[second][1])
    assert not torch.equal(masks[0][0], masks[2][0])


def test_where_two_dropouts_draw_they_stay_torchs_own() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)).train()
    assert not share_dropout(network)
    assert all(type(module) is nn.Dropout for module in network)
    assert share_dropout(network.eval())


def counting(number: int, seen: list[int]) -> Iterator[None]:
    for _ in range(number):
        seen.append(number)
        yield


@pytest.mark.parametrize("threads", [1, 2])
def test_what_runs_beside_each_other_runs_to_its_end(threads: int) -> None:
    seen: list[int] = []
    steps = run_in_parallel([counting(3, seen), counting(5, seen)], threads)
    assert len(list(steps)) == 8
    assert sorted(seen) == [3] * 3 + [5] * 5


def test_an_error_in_one_ends_all_and_is_raised() -> None:
    def failing() -> Iterator[None]:
        yield
        raise ValueError("broken")

    def endless(started: threading.Event) -> Iterator[None]:
        while True:
            started.set()
            yield

    with pytest.raises(ValueError, match="broken"):
        for _ in run_in_parallel([failing(), endless(threading.Event())], 2):
            pass


def test_an_interruption_ends_what_runs() -> None:
    started = threading.Event()

    def endless() -> Iterator[None]:
        while True:
            started.set()
            yield

    steps = run_in_parallel([endless()], 1)
    next(steps)
    steps.close()  # returns: the thread has ended
    assert started.is_set()
