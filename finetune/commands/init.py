"""``finetune init``: a first config for some data, with its reasons, that trains as it stands."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision import models

from finetune import __version__, recipe, yaml_text
from finetune.blocks import blocks_of
from finetune.config import Config, ModelConfig
from finetune.continuing import earlier_run, freezing_changes
from finetune.data.glance import Glance
from finetune.data_results import StartingConfig
from finetune.errors import ConfigError, ModelError
from finetune.files import write_text
from finetune.freeze import plan_freeze
from finetune.model import (
    ModelSpec,
    build_skeleton,
    build_untrained,
    is_entry,
    is_path,
    resolve_model,
)
from finetune.named_recipes import Anatomy, patterns_for
from finetune.planning import make_plan
from finetune.report.starting_config import Start, starting_config
from finetune.runtime import available_cores, select_device
from finetune.weights import load_pretrained

_WORDS = {recipe.HEAD: "linear_probe", recipe.BLOCK: "last_block", recipe.EVERYTHING: "full"}


def init(
    glance: Glance, *, model: str | None, weights: str, output: Path | None = None
) -> StartingConfig:
    """Write a config for data that was glanced at.

    Args:
        model: As ``model.name``; by default one that the machine and the weights suggest.
        weights: As ``model.weights``; read and compared with the network, unless torchvision would
            have to download them.
        output: Where to, already found to be free; None leaves that to the caller.

    Raises:
        ModelError: the weights are absent or do not fit.
    """
    device = select_device("auto").type
    earlier = earlier_run(weights) if is_path(weights) else None
    if earlier is None:
        suggested, why = recipe.backbone_for(weights, device)
    else:
        suggested, why = earlier.metadata.model_name, "the network that the weights are of"
    name = model or suggested
    trains, why_trains = recipe.what_trains(glance.num_train, device)
    spec = resolve_model(ModelConfig(name=name, weights=weights))
    skeleton = build_skeleton(spec, len(glance.class_names))
    _check_weights(spec, len(glance.class_names))
    anatomy = Anatomy.of(skeleton, spec)
    patterns = patterns_for(_WORDS[trains], anatomy)
    given = spec.preprocessing.given()
    policy, why_policy = recipe.policy_for(glance.class_names, trains)
    start = Start(
        glance=glance,
        device=device if device != "cpu" else f"cpu with {available_cores()} cores",
        version=__version__,
        file=str(output) if output else "FILE",
        model=name,
        why_model="as you asked" if model else why,
        weights=weights,
        about_weights=_about(spec, weights),
        preprocessing=given,
        other_preprocessing=recipe.preprocessing_for(given, glance, name, weights),
        blocks=tuple(blocks_of(anatomy.parameters)),
        head=spec.family.head,
        trains=trains,
        why_trains=why_trains,
        patterns=patterns,
        may_differ=_freezes_otherwise(skeleton, spec, patterns),
        fit=recipe.fit_for(glance),
        balance=recipe.balance_for(glance.counts),
        policy=policy,
        why_policy=why_policy,
        mixup=recipe.mixup_for(glance.num_train, trains),
        epochs=recipe.epochs_for(glance.num_train),
        optimizer=recipe.optimizer_for(name, weights, trains),
    )
    text = starting_config(start)
    _check_that_it_trains(text, len(glance.class_names))
    if output is not None:
        write_text(output, text)
    return StartingConfig(
        file=None if output is None else str(output),
        config=text,
        model=name,
        trains=trains,
        epochs=start.epochs,
        num_train=glance.num_train,
        num_val=glance.num_val,
        num_classes=len(glance.class_names),
    )


def _freezes_otherwise(skeleton: nn.Module, spec: ModelSpec, patterns: tuple[str, ...]) -> bool:
    """Whether the weights are of a run that froze something else."""
    if spec.earlier is None:
        return False
    names = [name for name, _ in skeleton.named_parameters()]
    frozen = plan_freeze(names, patterns, heads=spec.heads).frozen
    return bool(freezing_changes(spec.earlier, names, frozen))


def _about(spec: ModelSpec, weights: str) -> str:
    """Where the weights come from, and what they weigh where they must be downloaded."""
    if not is_entry(spec.weights):
        return "nothing pretrained: a backbone of random numbers" if weights == "none" else ""
    entry = models.get_model_weights(spec.name)[spec.weights]
    size = entry.meta["_file_size"]
    which = f"{spec.weights}: " if spec.weights != weights else ""
    return f"{which}torchvision downloads {size:,.0f} MB at the first run"


def _check_weights(spec: ModelSpec, num_classes: int) -> None:
    if is_entry(spec.weights) or spec.weights == "none":
        return
    try:
        load_pretrained(build_untrained(spec, num_classes, seed=0), spec)
    except ModelError as error:
        raise ModelError(str(error).replace("set model.name to theirs", "name theirs")) from error


def _check_that_it_trains(text: str, num_classes: int) -> None:
    """What was written is read back, and planned as `train` would; a failure is ours."""
    document = yaml_text.parse(text)
    assert not document.problems, document.problems
    try:
        config = Config.model_validate({**document.value, "output_dir": "runs/init"})
        make_plan(config, num_classes)
    except (ValueError, ConfigError) as error:
        raise AssertionError(f"the config that was written is wrong: {error}") from error
