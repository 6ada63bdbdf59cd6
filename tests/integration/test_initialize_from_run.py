"""Tests of ``model.weights`` with the folder of an earlier run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.cache import new_cache
from helpers.messages import fails
from helpers.photos import draw_photos

from finetune.checkpoints.checkpoint import Frozen, Metadata, load_checkpoint, save_checkpoint
from finetune.checkpoints.finetuned_source import find_source_run, freezing_changes, kept_classes
from finetune.cli import app
from finetune.commands.dry_run import dry_run
from finetune.commands.freeze_report import freeze_report
from finetune.commands.init import init
from finetune.commands.ladder import train_within
from finetune.commands.report import report
from finetune.commands.train import train
from finetune.config.data import DataConfig
from finetune.config.load import load_config
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config, GivenPreprocessing, ModelConfig, PreprocessingConfig
from finetune.core.reporter import SilentReporter
from finetune.data.checks.summary import summarize_dataset
from finetune.models.build import ModelSpec, build_untrained, resolve_model
from finetune.models.pretrained import copy_head_rows, load_pretrained

Make = Callable[..., Config]
FORMS = {"precision": "float32", "memory_format": "contiguous", "compile": "off"}


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two classes, trained once."""
    folder = tmp_path_factory.mktemp("two")
    preprocessing = {"resize": 44, "crop": 40, "mean": [0.5, 0.5, 0.5]}
    name = "shufflenet_v2_x0_5"
    values = {
        "model": {"name": name, "weights": "none", "preprocessing": preprocessing},
        "data": {"root": str(draw_photos(folder / "photos")), "batch_size": 4},
        "train": {"epochs": 1},
        "runtime": FORMS,
        "output_dir": str(folder / "run"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", new_cache(folder / "cache"))
        train(Config.model_validate(values))
    return folder / "run"


@pytest.fixture
def earlier(two_classes: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(two_classes, tmp_path / "earlier"))


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Photos of three classes, of which the earlier run knows two."""
    for split, count in (("train", 4), ("val", 3)):
        draw_photos(tmp_path / "others" / split, classes=3, count=count)
        (tmp_path / "others" / split / "class_0").rename(tmp_path / "others" / split / "new")
        draw_photos(tmp_path / "others" / split, classes=1, count=count)
        shutil.rmtree(tmp_path / "others" / split / "class_2")
    return tmp_path / "others"


@pytest.fixture
def go_on(make_config: Make, earlier: Path, others: Path) -> Make:
    """Configs that continue from the earlier run, on other photos."""

    def go_on(**sections: object) -> Config:
        model = {"weights": str(earlier), "preprocessing": "auto", **sections.pop("model", {})}  # type: ignore[dict-item]
        return make_config(
            **{
                "model": model,
                "data": {"root": str(others)},
                "train": {"epochs": 1},
                "runtime": FORMS,
                **sections,
            }
        )

    return go_on


def state_of(run: Path | str, name: str = "last.pt") -> dict[str, torch.Tensor]:
    return load_checkpoint(Path(run) / name)[0]


def test_network_and_preprocessing_go_on_with_a_new_head(go_on: Make, earlier: Path) -> None:
    config = go_on()
    train(config)
    before, after = state_of(earlier, "best.pt"), state_of(config.output_dir)
    assert after["fc.weight"].shape == (3, 1024)
    backbone = [key for key in before if not key.startswith("fc.")]
    assert all(torch.equal(before[key], after[key]) for key in backbone)
    saved = load_config(Path(config.output_dir) / "config.yaml")
    assert saved.model.weights == str(earlier / "best.pt")
    assert isinstance(saved.model.preprocessing, GivenPreprocessing)
    assert (saved.model.preprocessing.crop, saved.model.preprocessing.mean[0]) == (40, 0.5)


def test_rows_of_classes_of_the_same_name_are_kept(go_on: Make, earlier: Path) -> None:
    config = go_on(model={"keep_head": "same_names"}, optimizer={"lr": 1e-12})
    train(config)
    before, (after, metadata) = (
        state_of(earlier, "best.pt"),
        load_checkpoint(Path(config.output_dir) / "last.pt"),
    )
    assert metadata.class_names == ("class_0", "class_1", "new")
    for key in ("fc.weight", "fc.bias"):
        assert torch.allclose(after[key][:2], before[key], atol=1e-8)
        assert not torch.allclose(after[key][2], before[key][1], atol=1e-3)


def test_a_dry_run_says_how_many_rows_are_kept(go_on: Make) -> None:
    lines: list[str] = []

    class Told(SilentReporter):
        def say(self, text: str, *, good: bool = False) -> None:
            lines.append(text)

    dry_run(go_on(model={"keep_head": "same_names"}), reporter=Told())
    assert any("of 3 classes on cpu; 2 of them keep their head rows" in s for s in lines)


@pytest.mark.parametrize("name", ["squeezenet1_1", "maxvit_t", "resnet18"])
def test_rows_go_to_where_the_class_stands_now(tmp_path: Path, name: str) -> None:
    """A convolution, a layer without a bias, and a plain one."""
    path = tmp_path / "best.pt"
    model = ModelConfig(name=name, weights="none")
    spec = resolve_model(model)
    old = build_untrained(spec, 3, seed=0)
    save(path, spec, old, ("a", "b", "c"))
    spec = resolve_model(model.model_copy(update={"weights": str(path)}))
    new = build_untrained(spec, 2, seed=1)
    copy_head_rows(new, spec, ("c",), ("x", "c"))
    before = dict(old.get_submodule(spec.family.head).named_parameters())
    untouched = build_untrained(spec, 2, seed=1).get_submodule(spec.family.head)
    fresh = dict(untouched.named_parameters())
    for key, rows in new.get_submodule(spec.family.head).named_parameters():
        assert torch.equal(rows[1], before[key][2])
        assert torch.equal(rows[0], fresh[key][0])


def save(path: Path, spec: ModelSpec, model: torch.nn.Module, class_names: tuple[str, ...]) -> None:
    """A checkpoint as training would write it."""
    metadata = Metadata(
        model_name=spec.name,
        build_flags=spec.build_flags,
        class_names=class_names,
        preprocessing=spec.preprocessing,
        config=PlannedConfig.model_validate(
            {
                "model": {"name": spec.name},
                "data": {"root": "x"},
                "train": {"epochs": 1},
                "optimizer": {"lr": 0.01},
                "schedule": {"warmup_epochs": 0.0},
                "output_dir": "x",
            }
        ),
        freeze_plan=Frozen(patterns=(), names=()),
        epoch=1,
        metrics={},
        versions={},
    )
    save_checkpoint(path, model.state_dict(), metadata)


def test_a_run_of_another_network_is_refused_with_both_names(go_on: Make) -> None:
    config = go_on(model={"name": "shufflenet_v2_x1_0"})
    with fails("model.other_model", key="model.weights"):
        train(config)


@pytest.mark.parametrize(
    "sections",
    [
        {"freeze": {"patterns": ["*", "!conv5.*"]}},
        {"stages": [{"freeze": {"patterns": ["*", "!conv5.*"]}}, {}]},
        {"recipe": "last_block"},
    ],
)
def test_another_freezing_is_refused_with_what_differs(
    go_on: Make, sections: dict[str, object]
) -> None:
    with fails("config.freezing_differs", key="freeze.patterns"):
        train(go_on(**sections))


def test_another_freezing_goes_where_it_is_asked_for(go_on: Make) -> None:
    config = go_on(freeze={"patterns": ["*", "!conv5.*"], "may_differ": True})
    assert train(config).trainable_tensors == 5


def test_later_stages_may_thaw_what_they_say(go_on: Make) -> None:
    config = go_on(stages=[{}, {"freeze": {"patterns": []}}])
    assert dry_run(config).trainable_tensors == 170


def test_a_freeze_report_warns_of_what_training_would_refuse(go_on: Make) -> None:
    result = freeze_report(go_on(recipe="last_block"))
    assert "3 that were frozen are trainable" in result.warnings[-1]
    assert not freeze_report(go_on()).warnings


def test_what_trained_and_is_frozen_now_differs_as_well(earlier: Path) -> None:
    found = find_source_run(str(earlier))
    assert found is not None
    metadata = found.metadata.model_copy(
        update={"freeze_plan": Frozen(patterns=("a*",), names=("a", "gone"))}
    )
    found = type(found)(found.path, metadata)
    names = ["a", *(f"b{n}" for n in range(5)), "head.weight"]
    assert not freezing_changes(found, names, {"a"})
    text = freezing_changes(found, names, set(names[1:6]))
    assert (
        "1 of 7 tensors frozen (patterns: a*), here 5 are: 1 that were frozen are trainable (a); "
        in text
    )
    assert text.endswith("5 that were trainable are frozen (b0, b1, b2 and 2 more)")


@pytest.mark.parametrize("weights", ["none", "absent.pt"])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"model": {"keep_head": "same_names"}}, "model.keep_head"),
        ({"freeze": {"may_differ": True}}, "freeze.may_differ"),
    ],
)
def test_what_only_a_run_of_our_own_allows_is_refused_elsewhere(
    make_config: Make, weights: str, section: dict[str, dict[str, object]], key: str
) -> None:
    model = {"weights": weights, **section.get("model", {})}
    with fails("config.no_effect", key=key):
        train(make_config(**{**section, "model": model}))


def test_a_head_none_of_whose_classes_come_again_is_not_kept(earlier: Path) -> None:
    found = find_source_run(str(earlier))
    assert kept_classes(found, "none", ("x",)) == ()
    with fails("config.no_effect", key="model.keep_head"):
        kept_classes(found, "same_names", ("x",))


def test_a_run_does_not_replace_the_one_it_begins_with(go_on: Make, earlier: Path) -> None:
    config = go_on(output_dir=str(earlier))
    with fails("output.is_the_source", key="output_dir"):
        train(config, overwrite=True)
    assert (earlier / "best.pt").exists()


def test_the_page_of_a_run_does_not_need_the_one_before_it(go_on: Make, earlier: Path) -> None:
    config = go_on(model={"keep_head": "same_names"})
    train(config)
    shutil.rmtree(earlier)
    assert report(config.output_dir).num_bytes > 0


def test_the_first_config_for_an_earlier_run_trains_as_it_stands(
    earlier: Path, others: Path, tmp_path: Path
) -> None:
    summary = summarize_dataset(DataConfig(root=str(others)), SilentReporter())
    path = tmp_path / "c.yaml"
    result = init(summary, model=None, weights=str(earlier), output=path)
    assert result.model == "shufflenet_v2_x0_5"
    assert "may_differ" not in result.config
    overrides = [f"output_dir={tmp_path}/go-on", "train.budget=0.1s"]
    trained = train_within(load_config(path, overrides)).train
    assert trained.weights == str(earlier / "best.pt")


def test_the_first_config_says_where_its_freezing_differs(
    make_config: Make, others: Path, tmp_path: Path
) -> None:
    run = tmp_path / "whole"
    train(make_config(freeze={"patterns": []}, train={"epochs": 1}, output_dir=str(run)))
    summary = summarize_dataset(DataConfig(root=str(others)), SilentReporter())
    text = init(summary, model=None, weights=str(run)).config
    assert "  may_differ: true   # " in text


# What a file holds


def test_a_file_of_weights_is_no_run(tmp_path: Path, earlier: Path) -> None:
    torch.save(state_of(earlier), tmp_path / "bare.pth")
    torch.save({"model": state_of(earlier)}, tmp_path / "model.pth")
    (tmp_path / "text.pt").write_text("hello", encoding="utf-8")
    for path in (tmp_path / "bare.pth", tmp_path / "model.pth", tmp_path / "text.pt", tmp_path):
        assert find_source_run(str(path)) is None
    assert find_source_run(str(tmp_path / ("x" * 300))) is None


def test_a_run_that_was_damaged_is_refused_as_a_checkpoint(earlier: Path) -> None:
    path = earlier / "best.pt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "metadata": "{}"}, path)
    with fails("checkpoint.damaged"):
        find_source_run(str(path))


def test_a_file_that_changed_is_read_again(earlier: Path) -> None:
    path = earlier / "best.pt"
    first = find_source_run(str(path))
    state, metadata = load_checkpoint(path)
    save_checkpoint(path, state, metadata.model_copy(update={"epoch": 12345}))
    second = find_source_run(str(path))
    assert first is not None
    assert second is not None
    assert (first.metadata.epoch, second.metadata.epoch) == (1, 12345)


def test_flags_that_weights_were_trained_with_go_on(tmp_path: Path) -> None:
    spec = ModelSpec(
        "vit_b_32", "none", {"image_size": 64}, PreprocessingConfig(resize=64, crop=64)
    )
    path = tmp_path / "vit.pt"
    save(path, spec, build_untrained(spec, 2, seed=0), ("a", "b"))
    again = resolve_model(ModelConfig(name="vit_b_32", weights=str(path)))
    assert (again.build_flags, again.preprocessing.crop) == ({"image_size": 64}, 64)
    load_pretrained(build_untrained(again, 5, seed=0), again)


def test_auxiliary_heads_that_a_run_never_had_cannot_be_kept(tmp_path: Path) -> None:
    model = ModelConfig(name="googlenet", weights="none")
    spec = resolve_model(model)
    path = tmp_path / "googlenet.pt"
    save(path, spec, build_untrained(spec, 2, seed=0), ("a", "b"))
    again = resolve_model(ModelConfig(name="googlenet", weights=str(path)))
    assert again.build_flags["transform_input"] is False
    with fails("config.no_effect", key="model.aux_heads"):
        resolve_model(ModelConfig(name="googlenet", weights=str(path), aux_heads=True))


def test_a_refusal_is_one_line_with_its_exit_code(
    go_on: Make, earlier: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"model: {{name: shufflenet_v2_x0_5, weights: {earlier}}}\ndata: {{root: {others}}}\n"
        "freeze: {patterns: []}\n",
        encoding="utf-8",
    )
    old, sys.argv = sys.argv, ["finetune", "train", "--config", str(file)]
    try:
        code = app._run()
    finally:
        sys.argv = old
    error = capsys.readouterr().err.splitlines()
    assert code == 2
    assert error[-1].startswith("finetune: freeze.patterns: ")
