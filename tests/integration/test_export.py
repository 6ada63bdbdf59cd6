"""Tests of ``finetune export``: verified against ``eval`` in each format's runtime."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.builders import is_heavy, small_config
from helpers.messages import fails
from helpers.photos import draw_photos
from PIL import Image
from torch import Tensor

import finetune
from finetune.checkpoints.checkpoint import Frozen, Metadata, load_checkpoint, save_checkpoint
from finetune.commands.export import export
from finetune.commands.train import train
from finetune.config.model_registry import BUILDERS, FAMILIES
from finetune.config.resolved import PlannedConfig
from finetune.config.schema import Config, PreprocessingConfig
from finetune.data.loading.decoding import read_photo
from finetune.data.loading.transforms import build_fit, normalise
from finetune.inference.export import formats
from finetune.inference.export.describe import describe, readme
from finetune.inference.export.graph import Exported, Preprocess
from finetune.models.build import build_untrained, resolve_model

Make = Callable[..., Config]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run on photos that lie, stand and are square."""
    folder = tmp_path_factory.mktemp("exported")
    for split, count, size in (("train", 8, 60), ("val", 10, 43)):
        draw_photos(folder / "photos" / split, count=count, size=size)
    config = Config.model_validate(
        {
            "model": {
                "name": "shufflenet_v2_x0_5",
                "weights": "bundled",
                "preprocessing": {"resize": 64, "crop": 64},
            },
            "data": {"root": str(folder / "photos"), "batch_size": 8, "workers": 0},
            "train": {"epochs": 2},
            "features": {"cache": "off"},
            "runtime": {"precision": "bfloat16", "live_precision": "float32"},
            "output_dir": str(folder / "run"),
        }
    )
    train(config)
    return config.output_dir


def photo_of(run: str) -> Path:
    return Path(run).parent / "photos" / "val" / "class_1" / "7.png"


def run_the_readme(folder: Path, photo: Path, *, alone: bool = False) -> tuple[str, float]:
    """Run the lines of the generated README as they stand, on a photo.

    Args:
        alone: Run them in a program of their own, with nothing of ours loaded; takes seconds.
    """
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    assert "finetune" not in code
    (folder / "photo.jpg").write_bytes(photo.read_bytes())
    if alone:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.chdir(folder)
            exec(code, {})
        said = out.getvalue()
    label, probability = said.split()
    return label, float(probability)


def assert_readme_answers_as_we_do(run: str, folder: Path, *, alone: bool) -> None:
    label, probability = run_the_readme(folder, photo_of(run), alone=alone)
    (ours,) = finetune.load(run).predict(photo_of(run))
    assert label == ours.label
    assert probability == pytest.approx(ours.probability, abs=0.03)


@pytest.mark.parametrize("inside", [True, False])
def test_onnx_takes_photos_of_any_size_and_says_what_it_is(run: str, inside: bool) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    output = Path(run).parent / f"onnx{inside}"
    result = export(run, file_format="onnx", preprocessing=inside, output=output)
    assert result.agreement.max_difference <= result.agreement.tolerance
    # Twenty photos, and parts of the first that lie, stand and are square.
    assert result.agreement.num_images == 23
    assert result.agreement.same_unlike is not None
    assert result.agreement.same_unlike >= 21
    ratios = {(h > w) - (h < w) for h, w in result.agreement.shapes}
    assert ratios == {-1, 0, 1}
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    (pixels,), (shares, *limits) = session.get_inputs(), session.get_outputs()
    sides = ["height", "width"] if inside else [64, 64]
    assert pixels.shape == ["batch", 3, *sides]
    assert pixels.type == ("tensor(uint8)" if inside else "tensor(float)")
    assert shares.shape == ["batch", 2]
    assert [(output.name, output.shape) for output in limits] == [
        ("distance", ["batch"]),
        ("unlike", ["batch"]),
        ("in_set", ["batch", 2]),
    ]
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["class_0", "class_1"]
    assert json.loads(about["preprocessing"])["resize"] == 64
    assert json.loads(about["preprocessing_inside"]) is inside
    limits_about = json.loads(about["limits"])
    assert limits_about["images"] == 20
    assert sorted(limits_about["least_probability"]) == ["0.8", "0.9", "0.95"]
    assert "`unlike` (N,)" in (output / "README.md").read_text()
    assert_readme_answers_as_we_do(run, output, alone=inside)


def test_onnx_without_limits_gives_probabilities_alone(run: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    save_checkpoint(tmp_path / "x.pt", *load_checkpoint(Path(run) / "best.pt"))
    export(str(tmp_path / "x.pt"), file_format="onnx", num_images=4)
    folder = tmp_path / "export" / "onnx"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    assert [output.name for output in session.get_outputs()] == ["probabilities"]
    assert "neither the distance" in (folder / "README.md").read_text()


@pytest.mark.parametrize("inside", [True, False])
def test_an_exported_program_takes_photos_of_any_size(run: str, inside: bool) -> None:
    output = Path(run).parent / f"program{inside}"
    result = export(run, file_format="exported-program", preprocessing=inside, output=output)
    assert result.dynamic == (("batch", "height", "width") if inside else ("batch",))
    assert_readme_answers_as_we_do(run, output, alone=inside)


def test_a_run_that_keeps_photos_whole_is_exported_so(run: str, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(Path(run) / "best.pt")
    fitted = metadata.preprocessing.model_copy(update={"fit": "pad"})
    save_checkpoint(tmp_path / "x.pt", state, metadata.model_copy(update={"preprocessing": fitted}))
    result = export(str(tmp_path / "x.pt"), file_format="exported-program", num_images=4)
    assert result.in_float32 is not None
    assert result.in_float32.max_difference < 0.02


def test_safetensors_fill_torchvisions_own_network(run: str) -> None:
    result = export(run, file_format="safetensors")
    folder = Path(run) / "export" / "safetensors"
    assert {Path(file) for file in result.files} == set(folder.iterdir())
    assert result.agreement.precision == "bfloat16"
    assert result.in_float32 is not None
    assert result.in_float32.max_difference < 1e-5
    assert_readme_answers_as_we_do(run, folder, alone=True)


def test_a_fitted_temperature_is_inside(run: str, tmp_path: Path) -> None:
    state, metadata = load_checkpoint(Path(run) / "best.pt")
    cooled = tmp_path / "cooled.pt"
    save_checkpoint(cooled, state, metadata.model_copy(update={"temperature": 3.0}))
    export(str(cooled), file_format="safetensors")
    label, probability = run_the_readme(tmp_path / "export" / "safetensors", photo_of(run))
    (before,) = finetune.load(run).predict(photo_of(run))
    assert label == before.label
    assert probability < before.probability - 0.01


def test_an_export_that_answers_otherwise_is_not_kept(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Preprocess):
        """Forgets to normalise."""

        def __init__(self, config: PreprocessingConfig) -> None:
            super().__init__(
                config.model_copy(update={"mean": (0.9, 0.9, 0.9), "std": (9.0, 9.0, 9.0)})
            )

    monkeypatch.setattr(formats, "Preprocess", Wrong)
    with fails("result.export_differs", source="export", worded=False):
        export(run, file_format="exported-program", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_photos_to_compare_on_nothing_is_kept(run: str, tmp_path: Path) -> None:
    with fails("data.not_found", key="--data"):
        export(run, file_format="safetensors", data=str(tmp_path / "absent"))


def test_a_readme_of_somebody_elses_is_left_alone(run: str, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("mine")
    with fails("output.exists", source="export"):
        export(run, file_format="safetensors", output=tmp_path)
    assert page.read_text() == "mine"


def test_an_option_without_effect_is_refused(run: str) -> None:
    with fails("config.no_effect", key="--no-preprocessing", source="export"):
        export(run, file_format="safetensors", preprocessing=False)


def test_without_onnx_the_message_says_what_to_install(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with fails("config.missing_package", key="--format onnx", source="export"):
        export(run, file_format="onnx")


SHAPES = [(300, 500), (500, 300), (224, 224), (333, 517), (40, 90), (255, 256), (801, 399)]


@pytest.mark.parametrize(
    "sizes",
    [
        {"resize": 256, "crop": 224},
        {"resize": 36, "crop": 33},
        {"resize": 30, "crop": 33},
        {"resize": 232, "crop": 224, "interpolation": "bicubic"},
        {"resize": 256, "crop": 224, "fit": "pad"},
        {"resize": 256, "crop": 65, "fit": "stretch", "mean": [0.1, 0.5, 0.9]},
    ],
    ids=str,
)
def test_preprocessing_inside_is_within_two_levels_of_ours(sizes: dict[str, object]) -> None:
    config = PreprocessingConfig.model_validate_json(json.dumps(sizes))
    transform = build_fit(config)
    generator = torch.Generator().manual_seed(0)
    for height, width in SHAPES:
        coarse = torch.rand(1, 3, height // 7 + 2, width // 7 + 2, generator=generator)
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
        photo = (smooth[0] * 255).byte()
        ours = normalise(transform(photo)[None], config)
        inside = Preprocess(config)(photo[None])
        levels = (ours - inside).abs() * torch.tensor(config.std).view(3, 1, 1) * 255
        assert float(levels.max()) <= 2.01, (height, width)
        assert float((levels > 0.5).float().mean()) < 0.25


def untrained(name: str) -> tuple[torch.nn.Module, Metadata]:
    config = small_config(name)
    spec = resolve_model(config.model)
    network = build_untrained(spec, 3, seed=0).eval()
    with torch.no_grad():  # heads that begin at zero would answer the same to everything
        for parameter in network.get_submodule(spec.family.head).parameters():
            parameter.normal_(std=0.3)
    metadata = Metadata(
        model_name=name,
        build_flags=spec.build_flags,
        class_names=("a", "b", "c"),
        preprocessing=spec.preprocessing,
        config=config.resolved_as(
            PlannedConfig, {"train.epochs": 1, "schedule.warmup_epochs": 0.0, "optimizer.lr": 0.01}
        ),
        freeze_plan=Frozen(patterns=(), names=()),
        epoch=1,
        metrics={},
        versions={},
    )
    return network, metadata


def write_and_answer(
    name: str, file_format: str, folder: Path, inputs: Tensor, *, inside: bool
) -> tuple[Tensor, Tensor]:
    """What the export answers, and what the network itself does."""
    network, metadata = untrained(name)
    about = describe(metadata, preprocessing=inside)
    answer, _, _ = formats.write(
        file_format, folder, network, metadata, about, preprocessing=inside
    )
    before = Preprocess(metadata.preprocessing) if inside else None
    with torch.no_grad():
        return answer(inputs)["probabilities"], Exported(network, before, None)(inputs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if is_heavy(n) else n for n in BUILDERS]
)
def test_safetensors_of_every_builder(name: str, tmp_path: Path) -> None:
    crop = resolve_model(small_config(name).model).preprocessing.crop
    images = torch.randn(2, 3, crop, crop, generator=torch.Generator().manual_seed(0))
    found, expected = write_and_answer(name, "safetensors", tmp_path, images, inside=False)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_every_fit_is_traced_with_open_sizes(fit: str) -> None:
    config = PreprocessingConfig.model_validate({"resize": 40, "crop": 32, "fit": fit})
    preprocess = Preprocess(config)
    height, width = torch.export.Dim("height", min=16), torch.export.Dim("width", min=16)
    program = torch.export.export(
        preprocess,
        (torch.zeros(1, 3, 90, 70, dtype=torch.uint8),),
        dynamic_shapes={"pixels": {2: height, 3: width}},
    )
    generator = torch.Generator().manual_seed(0)
    for shape in ((50, 80), (80, 50), (32, 32), (33, 16)):
        photo = torch.randint(0, 256, (1, 3, *shape), generator=generator).byte()
        assert torch.equal(program.module()(photo), preprocess(photo)), shape


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_readme_prepares_photos_as_we_do(fit: str, tmp_path: Path) -> None:
    network, metadata = untrained("shufflenet_v2_x0_5")
    preprocessing = metadata.preprocessing.model_copy(update={"fit": fit, "resize": 40})
    metadata = metadata.model_copy(update={"preprocessing": preprocessing})
    about = describe(metadata, preprocessing=False)
    answer, _, _ = formats.write(
        "safetensors", tmp_path, network, metadata, about, preprocessing=False
    )
    page = readme(metadata, "model.safetensors", preprocessing=False, agreement="")
    (tmp_path / "README.md").write_text(page)
    (draw_photos(tmp_path / "photos", count=1, size=90) / "class_0" / "0.png").rename(
        tmp_path / "photo.png"
    )
    with Image.open(tmp_path / "photo.png") as square:
        square.resize((120, 77)).save(tmp_path / "lying.png")
    label, probability = run_the_readme(tmp_path, tmp_path / "lying.png")
    pixels = build_fit(preprocessing)(read_photo(tmp_path / "lying.png"))
    (shares,) = answer(normalise(pixels[None], preprocessing))["probabilities"]
    assert label == metadata.class_names[int(shares.argmax())]
    assert probability == pytest.approx(float(shares.max()), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["onnx", "exported-program"])
@pytest.mark.parametrize("name", [family.builders[0] for family in FAMILIES])
def test_one_of_each_family_with_preprocessing_inside(
    name: str, file_format: str, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in ((90, 300), (300, 90), (64, 64)):
        photos = torch.randint(0, 256, (2, 3, height, width), generator=generator).byte()
        found, expected = write_and_answer(name, file_format, tmp_path, photos, inside=True)
        assert torch.allclose(found, expected, atol=1e-3), (height, width)


def test_a_photo_of_the_run_is_read_as_eval_reads_it(run: str) -> None:
    photo = read_photo(photo_of(run))
    by_path, by_pixels = finetune.load(run).predict([photo_of(run), photo])
    assert by_path.top == by_pixels.top


def test_replacing_a_run_removes_what_was_made_of_it(make_config: Make) -> None:
    config = make_config(train={"epochs": 1})
    train(config)
    export(config.output_dir, file_format="safetensors")
    foreign = Path(config.output_dir) / "export" / "safetensors" / "mine.txt"
    foreign.write_text("not ours")
    train(config, overwrite=True)
    assert list(foreign.parent.iterdir()) == [foreign]
