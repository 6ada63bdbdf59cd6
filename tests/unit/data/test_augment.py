"""Tests of augmentation: policies, erasing, jitter and mixing, with keyed randomness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from finetune.checkpoints.run_dir import METRICS
from finetune.commands.dry_run import dry_run
from finetune.commands.train import train
from finetune.config.schema import AugmentConfig, Config, PreprocessingConfig
from finetune.core.reporter import SilentReporter
from finetune.data.images import Images
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.mixup_cutmix import Mixing
from finetune.data.loading.transforms import mean_colour, normalise
from finetune.data.loading.views import Views
from finetune.training.loop import Callbacks, LoopState, train_epochs
from finetune.training.loss import LossConfig
from finetune.training.step import StepConfig

Make = Callable[..., Config]
SMALL = PreprocessingConfig(resize=20, crop=16)
FIXED = {"precision": "float32", "memory_format": "contiguous"}
EVERYTHING = AugmentConfig(policy="trivial", color_jitter=0.4, erasing=0.5)
POLICIES = ["trivial", "randaugment", "autoaugment"]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    paths = []
    for index in range(9):
        paths.append(tmp_path / f"{index}.png")
        Image.effect_noise((30, 24), 80).convert("RGB").save(paths[-1])
    return Images(tuple(paths), tuple(i % 3 for i in range(9)), ("a", "b", "c"))


def views_of(augment: AugmentConfig, seed: int = 0) -> Views:
    return Views.of_training(augment, seed=seed)


def drawn(images: Images, augment: AugmentConfig, *, view: int = 1, seed: int = 0) -> Tensor:
    """All images in one view."""
    dataset = PhotoDataset(images, SMALL, views_of(augment, seed))
    return torch.stack([dataset[(index, view)][0] for index in range(len(images))])


def epoch(images: Images, augment: AugmentConfig, *, workers: int = 0) -> list[Tensor]:
    """Every batch of an epoch."""
    batches = Batches(
        PhotoDataset(images, SMALL, views_of(augment)),
        batch_size=4,
        workers=workers,
        device=torch.device("cpu"),
        shuffle=True,
    )
    return [pixels for pixels, _ in batches.epoch(1)]


# Drawn for each image


@pytest.mark.parametrize("smallest", [0.1, 0.6])
def test_a_crop_keeps_at_least_its_share_of_the_photo(tmp_path: Path, smallest: float) -> None:
    """Red says how far right a pixel was, green how far down."""
    place = torch.linspace(0, 255, 256)
    photo = torch.stack(torch.broadcast_tensors(place, place[:, None], torch.zeros(())))
    pixels = photo.to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "0.png")
    images = Images((tmp_path / "0.png",), (0,), ("a",))
    augment = AugmentConfig(policy="crop_flip", crop_scale=smallest)
    between_centres = (SMALL.crop - 1) / SMALL.crop
    shares = []
    for view in range(60):
        red, green = (channel.float() for channel in drawn(images, augment, view=view)[0][:2])
        width, height = (c.max() - c.min() for c in (red, green))
        shares.append(float(width * height) / (255 * between_centres) ** 2)
    assert smallest - 0.05 < min(shares) < smallest + 0.1
    assert max(shares) > 0.9


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_changes_more_than_crop_and_flip(images: Images, policy: str) -> None:
    plain = drawn(images, AugmentConfig(policy="crop_flip"))
    assert not torch.equal(drawn(images, AugmentConfig(policy=policy)), plain)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_works_on_the_crop_and_flip_of_the_same_key(images: Images, policy: str) -> None:
    """The draws of crop and flip come first, so that some image is left as they made it."""
    plain, changed = (
        [drawn(images, AugmentConfig(policy=name), view=view) for view in range(12)]
        for name in ("crop_flip", policy)
    )
    same = [
        torch.equal(one, other)
        for view, other_view in zip(plain, changed, strict=True)
        for one, other in zip(view, other_view, strict=True)
    ]
    assert 0 < sum(same) < len(same)


@pytest.mark.parametrize(
    "augment",
    [
        *(AugmentConfig(policy=policy) for policy in POLICIES),
        AugmentConfig(policy="flip", erasing=1.0),
        AugmentConfig(policy="none", color_jitter=0.5),
        EVERYTHING,
    ],
    ids=lambda augment: views_of(augment).name,
)
def test_a_view_is_a_function_of_seed_number_and_image(
    images: Images, augment: AugmentConfig
) -> None:
    first = drawn(images, augment)
    assert torch.equal(drawn(images, augment), first)
    assert not torch.equal(drawn(images, augment, view=2), first)
    assert not torch.equal(drawn(images, augment, seed=1), first)


def test_views_do_not_depend_on_workers_or_threads(images: Images) -> None:
    here, elsewhere = (epoch(images, EVERYTHING, workers=workers) for workers in (0, 2))
    assert all(torch.equal(one, other) for one, other in zip(here, elsewhere, strict=True))


def test_drawing_leaves_the_global_generator_as_it_was(images: Images) -> None:
    torch.manual_seed(7)
    before = torch.default_generator.get_state()
    drawn(images, EVERYTHING)
    Mixing(AugmentConfig(mixup=1.0), num_classes=3, seed=0)(
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), epoch=1, number=0
    )
    assert torch.equal(torch.default_generator.get_state(), before)


def test_erasing_blanks_a_rectangle_with_what_normalises_to_zero(images: Images) -> None:
    pixels = drawn(images, AugmentConfig(policy="none", erasing=1.0))
    plain = drawn(images, AugmentConfig(policy="none"), view=0)
    changed = (pixels != plain).any(dim=1)
    assert all(one.any() and not one.all() for one in changed)
    erased = normalise(pixels, SMALL).permute(0, 2, 3, 1)[changed]
    assert float(erased.abs().max()) < 0.01


def test_erasing_happens_as_often_as_its_probability_says(images: Images) -> None:
    plain = drawn(images, AugmentConfig(policy="none"), view=0)
    augment = AugmentConfig(policy="none", erasing=0.3)
    changed = [
        not torch.equal(one, other)
        for view in range(20)
        for one, other in zip(drawn(images, augment, view=view), plain, strict=True)
    ]
    assert 0.15 < sum(changed) / len(changed) < 0.45


def test_flip_is_still_drawn_where_something_else_is(images: Images) -> None:
    plain = drawn(images, AugmentConfig(policy="none"), view=0)
    with_flip = torch.stack(
        [drawn(images, AugmentConfig(policy="flip", mixup=0.2), view=v)[0] for v in range(20)]
    )
    mirrored = [torch.equal(one, plain[0].flip(2)) for one in with_flip]
    assert 0 < sum(mirrored) < 20
    assert all(m or torch.equal(one, plain[0]) for one, m in zip(with_flip, mirrored, strict=True))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_everything_works_with_every_interpolation_and_fit(
    images: Images, interpolation: str, fit: str
) -> None:
    preprocessing = SMALL.model_copy(update={"interpolation": interpolation, "fit": fit})
    pixels, _ = PhotoDataset(images, preprocessing, views_of(EVERYTHING))[(0, 3)]
    assert (pixels.shape, pixels.dtype) == ((3, 16, 16), torch.uint8)


# How many views there are, and what is kept


@pytest.mark.parametrize(
    ("augment", "count"),
    [
        (AugmentConfig(policy="none"), 1),
        (AugmentConfig(policy="flip"), 2),
        (AugmentConfig(policy="trivial"), None),
        (AugmentConfig(policy="trivial", views=5), 5),
        (AugmentConfig(policy="flip", erasing=0.1), None),
        (AugmentConfig(policy="none", color_jitter=0.1, views=2), 2),
        (AugmentConfig(policy="flip", mixup=0.1), None),
        (AugmentConfig(policy="none", cutmix=0.1), None),
    ],
)
def test_views_are_counted_where_features_can_be_kept(
    augment: AugmentConfig, count: int | None
) -> None:
    assert views_of(augment).count == count


class Said(SilentReporter):
    """Progress that remembers."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str, *, good: bool = False) -> None:
        self.lines.append(text)

    warn = detail = say


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"policy": "trivial"}, "augment.policy trivial: new views in every epoch"),
        ({"policy": "flip", "erasing": 0.2}, "augment.erasing 0.2: new views in every epoch"),
        ({"policy": "trivial", "views": 3}, "3 views of each image, drawn once"),
        ({"policy": "flip", "mixup": 0.2}, "augment.mixup 0.2: batches are mixed differently"),
        ({"policy": "auto"}, "Augmentation: each image and its mirror image"),
    ],
)
def test_what_it_means_for_the_cache_is_said(
    make_config: Make, augment: dict[str, object], words: str
) -> None:
    said = Said()
    dry_run(make_config(augment=augment, runtime=FIXED), reporter=said)
    assert sum(words in line for line in said.lines) == 1


@pytest.mark.parametrize(
    ("augment", "policy"),
    [
        ({}, "flip"),
        ({"mixup": 0.2}, "crop_flip"),
        ({"erasing": 0.2}, "crop_flip"),
        ({"erasing": 0.2, "policy": "none"}, "none"),
    ],
)
def test_auto_crops_where_nothing_can_be_kept_anyway(
    make_config: Make, augment: dict[str, object], policy: str
) -> None:
    resolved = dry_run(make_config(augment=augment, runtime=FIXED)).config
    assert resolved["augment"]["policy"] == policy


def test_auto_does_not_crop_what_is_to_stay_whole(make_config: Make) -> None:
    config = make_config(data={"fit": "pad"}, augment={"mixup": 0.2}, runtime=FIXED)
    assert dry_run(config).config["augment"]["policy"] == "flip"


def test_other_draws_are_other_features(make_config: Make, tmp_path: Path) -> None:
    """One and the same key for two kinds of views would train on the wrong pictures."""
    crops = {"policy": "crop_flip", "crop_scale": 0.5}
    reused = []
    for number, augment in enumerate(
        ({"erasing": 0.5}, {"erasing": 0.6}, {"color_jitter": 0.5}, crops)
    ):
        bounded = {"policy": "flip", "views": 2} | augment
        config = make_config(augment=bounded, runtime=FIXED, output_dir=str(tmp_path / f"{number}"))
        counts = train(config).features
        assert counts is not None
        assert counts.computed + counts.reused == 18 * 2 + 10
        reused.append(counts.reused)
    assert reused == [0, 10, 10, 10]  # the upright views of the validation images


# Mixed in batches


def batch() -> tuple[Tensor, Tensor]:
    """Four plain pictures, black to nearly white, of classes 0 to 3."""
    levels = torch.tensor([0, 80, 160, 240], dtype=torch.uint8)
    return levels[:, None, None, None].expand(4, 3, 8, 8).clone(), torch.arange(4)


def mixed(
    augment: AugmentConfig, *, seed: int = 0, epoch: int = 1, number: int = 0
) -> tuple[Tensor, Tensor]:
    return Mixing(augment, num_classes=4, seed=seed)(*batch(), epoch=epoch, number=number)


def test_mixup_blends_pixels_and_labels_alike() -> None:
    pixels, shares = mixed(AugmentConfig(mixup=1.0))
    levels = batch()[0][:, 0, 0, 0] / 255
    assert torch.allclose(pixels[:, 0, 0, 0], shares @ levels, atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(4))
    assert 0 < float(shares[1, 0]) < 1


def test_cutmix_pastes_as_much_as_the_label_says() -> None:
    pixels, shares = mixed(AugmentConfig(cutmix=1.0), number=1)
    levels = batch()[0][:, 0, 0, 0] / 255
    pasted = (pixels[1, 0] == levels[0]).float().mean()
    assert float(shares[1, 0]) == pytest.approx(float(pasted))
    assert 0 < float(pasted) < 1


def test_with_both_each_batch_draws_one_of_them() -> None:
    augment = AugmentConfig(mixup=1.0, cutmix=1.0)
    own = batch()[0][1, 0, 0, 0] / 255
    kept = [bool((mixed(augment, number=n)[0][1, 0] == own).any()) for n in range(20)]
    assert 3 < sum(kept) < 17  # cutmix leaves pixels as they were


def test_mixing_is_a_function_of_seed_epoch_and_batch() -> None:
    augment = AugmentConfig(mixup=0.4, cutmix=1.0)
    first = mixed(augment)[0]
    assert torch.equal(mixed(augment)[0], first)
    others = [mixed(augment, **key)[0] for key in ({"seed": 1}, {"epoch": 2}, {"number": 1})]
    assert not any(torch.equal(first, other) for other in others)


def test_mixed_pixels_are_normalised_as_others_are() -> None:
    pixels, _ = batch()
    exact = pixels / 255
    before = exact.clone()
    assert torch.allclose(normalise(exact, SMALL), normalise(pixels, SMALL))
    assert torch.equal(exact, before)


def test_the_loss_of_mixed_labels_is_the_mixture_of_losses() -> None:
    def gradient(labels: Tensor, class_weights: list[float] | None = None) -> Tensor:
        model = torch.nn.Linear(4, 2, bias=False)
        torch.nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        inputs = torch.ones(len(labels), 4)
        epochs = train_epochs(
            LoopState(model, optimizer, schedule, num_classes=2),
            lambda _: [((inputs,), labels)],
            epochs=1,
            step=StepConfig(seed=0),
            loss=LossConfig(class_weights=class_weights),
            callbacks=Callbacks(lambda: None),
        )
        assert next(epochs).num_images == len(labels)
        return -model.weight.detach()

    soft = torch.tensor([[0.75, 0.25]])
    pure = [gradient(torch.tensor([label])) for label in (0, 1)]
    assert torch.allclose(gradient(soft), 0.75 * pure[0] + 0.25 * pure[1])
    mean_weight = 0.75 * 2.0 + 0.25 * 0.5
    assert torch.allclose(
        gradient(soft, class_weights=[2.0, 0.5]),
        mean_weight * (0.75 * pure[0] + 0.25 * pure[1]),
    )


@pytest.mark.parametrize("patterns", [["*"], []], ids=["head", "everything"])
def test_mixing_and_policies_train_the_same_whatever_the_workers(
    make_config: Make, tmp_path: Path, patterns: list[str]
) -> None:
    """With a frozen prefix features are computed anew; without one, images are what is trained."""
    saved = []
    for workers in (0, 2):
        folder = tmp_path / f"run{workers}"
        train(
            make_config(
                freeze={"patterns": patterns},
                augment={"policy": "trivial", "erasing": 0.3, "mixup": 0.2, "cutmix": 1.0},
                data={"workers": workers},
                runtime=FIXED | {"live_precision": "float32"},
                output_dir=str(folder),
            )
        )
        content = torch.load(folder / "last.pt", weights_only=True)
        saved.append(content["model"])
        assert len((folder / METRICS).read_text().splitlines()) == 2
    assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])


def test_mixing_changes_what_is_learnt(make_config: Make, tmp_path: Path) -> None:
    saved = []
    for number, augment in enumerate(({"policy": "none"}, {"policy": "none", "cutmix": 1.0})):
        folder = tmp_path / f"run{number}"
        train(make_config(augment=augment, runtime=FIXED, output_dir=str(folder)))
        saved.append(torch.load(folder / "last.pt", weights_only=True)["model"]["fc.weight"])
    assert not torch.equal(*saved)


def test_validation_images_are_left_alone(make_config: Make, tmp_path: Path) -> None:
    changed = {"policy": "trivial", "erasing": 1.0, "mixup": 0.5}
    counts = [
        train(make_config(augment=augment, runtime=FIXED, output_dir=str(tmp_path / name))).features
        for name, augment in (("changed", changed), ("upright", {"policy": "none"}))
    ]
    assert [(one.computed, one.reused) for one in counts if one] == [(10, 0), (18, 10)]


def test_the_mean_colour_is_one_of_levels() -> None:
    strange = SMALL.model_copy(update={"mean": (-1.0, 0.5, 2.0)})
    assert mean_colour(strange) == [0, 128, 255]
