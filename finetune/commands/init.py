"""``finetune init``: write a commented starting config for a dataset."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision import models

from finetune.checkpoints.finetuned_source import find_source_run, freezing_changes
from finetune.config import yaml_loader
from finetune.config.json_schema import MODELINE, write_schema
from finetune.config.schema import Config, ModelConfig
from finetune.core.cores import available_cores
from finetune.core.device import select_device
from finetune.core.errors import ConfigError, ModelError
from finetune.core.files import write_text
from finetune.core.version import __version__
from finetune.data.checks.summary import DatasetSummary
from finetune.freezing.flops import module_multiply_adds
from finetune.freezing.patterns import plan_freeze
from finetune.freezing.plan import make_plan
from finetune.models.blocks import blocks_of
from finetune.models.build import (
    ModelSpec,
    build_skeleton,
    build_untrained,
    is_entry,
    is_path,
    resolve_model,
)
from finetune.models.pretrained import load_pretrained
from finetune.recipes import heuristics
from finetune.recipes.backbones import Machine, most_accurate
from finetune.recipes.named import Anatomy
from finetune.report.starting_config import Start, starting_config
from finetune.results.data import StartingConfig


def init(
    summary: DatasetSummary, *, model: str | None, weights: str, output: Path | None = None
) -> StartingConfig:
    """Write a starting config for a summarized dataset.

    Args:
        summary: Summary of the dataset.
        model: Value of ``model.name``; by default chosen from the device and the weights.
        weights: Value of ``model.weights``. The weights are read and checked against the network,
            unless torchvision would have to download them.
        output: Output file, already known not to exist; if None, no file is written.

    Raises:
        ModelError: the weights are missing or do not fit the network.
    """
    device = select_device("auto").type
    machine = Machine(device, available_cores())
    rows = 2 * summary.num_train + summary.num_val
    earlier = find_source_run(weights) if is_path(weights) else None
    if earlier is None:
        suggested, why = _suggested(weights, machine, rows, summary)
    else:
        suggested, why = earlier.metadata.model_name, "the network of the weights"
    name = model or suggested
    spec = resolve_model(ModelConfig(name=name, weights=weights))
    skeleton = build_skeleton(spec, len(summary.class_names))
    _check_weights(spec, len(summary.class_names))
    anatomy = Anatomy.of(skeleton, spec)
    given = spec.preprocessing.given()
    other = heuristics.preprocessing_for(given, summary, name, weights)
    policy, why_policy = heuristics.policy_for(summary.class_names, heuristics.HEAD)
    macs = module_multiply_adds(skeleton, crop=(other or given).crop)
    budget = heuristics.budget_for(machine.pass_s(name, rows, sum(macs.values())))
    start = Start(
        summary=summary,
        device=device if device != "cpu" else f"cpu with {machine.cores} cores",
        version=__version__,
        file=str(output) if output else "FILE",
        model=name,
        why_model="as given by --model" if model else why,
        weights=weights,
        about_weights=_about(spec, weights),
        preprocessing=given,
        other_preprocessing=other,
        blocks=tuple(blocks_of(anatomy.parameters)),
        head=spec.family.head,
        may_differ=_freezes_otherwise(skeleton, spec),
        fit=heuristics.fit_for(summary),
        balance=heuristics.balance_for(summary.counts),
        policy=policy,
        why_policy=why_policy,
        budget=budget,
    )
    text = starting_config(start)
    if output is not None:
        text = f"{MODELINE}\n{text}"
    _check_that_it_trains(text, len(summary.class_names))
    if output is not None:
        write_schema(output.parent)
        write_text(output, text)
    return StartingConfig(
        file=None if output is None else str(output),
        config=text,
        model=name,
        budget=budget,
        num_train=summary.num_train,
        num_val=summary.num_val,
        num_classes=len(summary.class_names),
    )


def _suggested(
    weights: str, machine: Machine, rows: int, summary: DatasetSummary
) -> tuple[str, str]:
    """Return the name of the default backbone, and the reason for it."""
    found = heuristics.backbone_of(weights)
    if found is not None:
        return found
    crop = heuristics.SMALL_CROP if heuristics.are_small([summary.median_size]) else None
    best = most_accurate(machine, rows, crop=crop)
    return best.name, f"{best.top1:.1f} % on ImageNet, and fast enough here"


def _freezes_otherwise(skeleton: nn.Module, spec: ModelSpec) -> bool:
    """Whether the weights come from a run that trained more than the head."""
    if spec.earlier is None:
        return False
    names = [name for name, _ in skeleton.named_parameters()]
    frozen = plan_freeze(names, ("*",), heads=spec.heads).frozen
    return bool(freezing_changes(spec.earlier, names, frozen))


def _about(spec: ModelSpec, weights: str) -> str:
    """Describe the source of the weights, with the size of a download."""
    if not is_entry(spec.weights):
        return "no pretrained weights: random initialization" if weights == "none" else ""
    entry = models.get_model_weights(spec.name)[spec.weights]
    size = entry.meta["_file_size"]
    which = f"{spec.weights}: " if spec.weights != weights else ""
    return f"{which}downloaded in the first run ({size:,.0f} MB)"


def _check_weights(spec: ModelSpec, num_classes: int) -> None:
    if is_entry(spec.weights) or spec.weights == "none":
        return
    try:
        load_pretrained(build_untrained(spec, num_classes, seed=0), spec)
    except ModelError as error:
        if error.kind != "model.weights_do_not_fit":
            raise
        raise error.at(
            to_do="Give weights of this architecture, or name theirs with --model"
        ) from error


def _check_that_it_trains(text: str, num_classes: int) -> None:
    """Parse and plan the written config as `train` would; a failure is a bug in finetune."""
    document = yaml_loader.parse(text)
    assert not document.problems, document.problems
    try:
        config = Config.model_validate({**document.value, "output_dir": "runs/init"})
        make_plan(config, num_classes)
    except (ValueError, ConfigError) as error:
        raise AssertionError(f"the config that was written is wrong: {error}") from error
