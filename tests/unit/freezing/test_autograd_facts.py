"""Tests of the autograd behaviour that freezing relies on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from finetune.config.schema import OptimizerConfig, ScheduleConfig
from finetune.freezing.train_mode import set_train_mode
from finetune.training.evaluate import evaluate
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.lr_schedulers import build_schedule
from finetune.training.metrics import Meter
from finetune.training.optimizers import build_optimizer
from finetune.training.step import StepConfig

IMAGES = torch.rand(4, 3, 32, 32)
LABELS = torch.tensor([0, 1, 0, 1])


def small_net(trainable: Callable[[str], bool]) -> nn.Module:
    torch.manual_seed(0)
    model = models.shufflenet_v2_x0_5(num_classes=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable(name))
    set_train_mode(model)
    return model


def saved_for_backward(run: Callable[[], object]) -> int:
    """How many tensors autograd kept while ``run`` ran."""
    count = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return count


def modules_with_backward(model: nn.Module) -> set[str]:
    """Leaf modules whose output asks for a gradient in a real training step."""
    seen: set[str] = set()
    for path, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda _m, _i, out, path=path: seen.add(path) if out.requires_grad else None
            )
    nn.functional.cross_entropy(model(IMAGES), LABELS).backward()
    return seen


def test_no_backward_is_computed_inside_a_frozen_backbone() -> None:
    model = small_net(lambda name: name.startswith("fc."))
    assert modules_with_backward(model) == {"fc"}
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("fc."))


def test_the_gradient_of_a_live_parameter_flows_through_a_frozen_block_behind_it() -> None:
    model = small_net(lambda name: name.startswith(("conv1.", "fc.")))
    modules_with_backward(model)
    assert model.conv1[0].weight.grad is not None
    assert float(model.conv1[0].weight.grad.abs().sum()) > 0
    assert model.stage2[0].branch1[0].weight.grad is None


def test_a_tensor_made_under_no_grad_does_not_make_a_later_forward_gradient_free() -> None:
    model = small_net(lambda _: True)
    with torch.no_grad():
        images = IMAGES * 2
    assert saved_for_backward(lambda: model(images)) > 0
    with torch.no_grad():
        assert saved_for_backward(lambda: model(images)) == 0


def test_the_optimizer_never_sees_a_frozen_parameter() -> None:
    model = small_net(lambda name: name.startswith("fc."))
    optimizer = build_optimizer(
        model.named_parameters(), OptimizerConfig.model_validate({"lr": 0.01})
    )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.fc.parameters()}


def test_evaluation_records_no_graph() -> None:
    model = small_net(lambda _: True)
    assert saved_for_backward(lambda: evaluate(model, [((IMAGES,), LABELS)], num_classes=2)) == 0


def test_evaluation_leaves_every_module_in_eval_mode() -> None:
    model = small_net(lambda name: name.startswith(("stage4.", "fc.")))
    assert any(module.training for module in model.modules())
    evaluate(model, [((IMAGES,), LABELS)], num_classes=2)
    assert not any(module.training for module in model.modules())


def run_epochs(model: nn.Module, *, epochs: int = 2, label_smoothing: float = 0.0) -> list[object]:
    config = OptimizerConfig.model_validate({"name": "adamw", "lr": 0.001, "weight_decay": 0.5})
    optimizer = build_optimizer(model.named_parameters(), config)
    no_warmup = ScheduleConfig.model_validate({"warmup_epochs": 0.0})
    schedule = build_schedule(optimizer, no_warmup, epochs=epochs, steps_per_epoch=2)
    return list(
        train_epochs(
            LoopState(model, optimizer, schedule, num_classes=2),
            lambda _: [((IMAGES,), LABELS), ((IMAGES[:2],), LABELS[:2])],
            epochs=epochs,
            step=StepConfig(seed=0),
            loss=LossConfig(label_smoothing=label_smoothing),
            callbacks=Callbacks(lambda: set_train_mode(model)),
        )
    )


@pytest.mark.parametrize("live", [("fc.",), ("stage4.", "fc."), ("conv5.1.bias", "fc.")])
def test_training_changes_no_bit_of_what_is_frozen(live: tuple[str, ...]) -> None:
    model = small_net(lambda name: name.startswith(live))
    own = {n for n, p in model.named_parameters() if p.requires_grad}
    modules = {name.rpartition(".")[0] for name in own}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run_epochs(model)
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert own <= moved
    assert all(key.rpartition(".")[0] in modules for key in moved)


def test_loss_is_weighted_by_samples() -> None:
    meter = Meter(2, torch.device("cpu"))
    good, bad = torch.tensor([[9.0, 0.0]] * 4), torch.tensor([[0.0, 9.0]])
    meter.add(good, torch.zeros(4, dtype=torch.int64))
    meter.add(bad, torch.zeros(1, dtype=torch.int64))
    logits, labels = torch.cat([good, bad]), torch.zeros(5, dtype=torch.int64)
    assert meter.loss == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    assert meter.top1 == 0.8
    assert meter.per_class() == [(4, 5), (0, 0)]


def test_top5_is_reported_from_six_classes() -> None:
    logits = torch.arange(12.0).reshape(2, 6)
    six, five = Meter(6, torch.device("cpu")), Meter(5, torch.device("cpu"))
    six.add(logits, torch.tensor([0, 1]))
    five.add(logits[:, :5], torch.tensor([0, 1]))
    assert six.top5 == 0.5
    assert five.top5 is None


def test_the_epochs_training_loss_counts_every_sample() -> None:
    model = small_net(lambda name: name.startswith("fc."))
    results = run_epochs(model, epochs=1, label_smoothing=0.1)
    assert results[0].num_images == 6  # type: ignore[attr-defined]
