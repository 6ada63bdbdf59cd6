"""``finetune init``: a first config for some data, with its reasons, that trains as it stands."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torchvision import models

from finetune import __version__, recipe, yaml_text
from finetune.blocks import Block, blocks_of, last_block
from finetune.config import Config, GivenPreprocessing, ModelConfig
from finetune.data.glance import Glance
from finetune.data_results import StartingConfig
from finetune.errors import ConfigError, ModelError
from finetune.files import write_text
from finetune.model import ModelSpec, build_skeleton, build_untrained, is_entry, resolve_model
from finetune.planning import make_plan
from finetune.report.starting_config import Start, starting_config
from finetune.runtime import available_cores, select_device
from finetune.weights import load_pretrained


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
    suggested, why = recipe.backbone_for(weights, device)
    name = model or suggested
    trains, why_trains = recipe.what_trains(glance.num_train, device)
    spec = resolve_model(ModelConfig(name=name, weights=weights))
    skeleton = build_skeleton(spec, len(glance.class_names))
    _check_weights(spec, len(glance.class_names))
    blocks = _blocks(skeleton, spec)
    given = GivenPreprocessing(**spec.preprocessing.model_dump(exclude={"fit"}))
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
        blocks=tuple(blocks),
        head=spec.family.head,
        trains=trains,
        why_trains=why_trains,
        patterns=_patterns(blocks, trains),
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


def _blocks(skeleton: nn.Module, spec: ModelSpec) -> list[Block]:
    heads = tuple(f"{head}." for head in spec.heads)
    return blocks_of(
        [
            (name, parameter.numel())
            for name, parameter in skeleton.named_parameters()
            if not name.startswith(heads)
        ]
    )


def _patterns(blocks: list[Block], trains: str) -> tuple[str, ...]:
    if trains == recipe.EVERYTHING:
        return ()
    thawed = last_block(blocks) if trains == recipe.BLOCK else []
    return ("*", *(f"!{block.pattern}" for block in thawed))


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
