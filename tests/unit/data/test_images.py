"""Tests of decoding and preprocessing, from a file to the network's input."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision.transforms.v2.functional import pil_to_tensor

from finetune.config.schema import ModelConfig, PreprocessingConfig
from finetune.data.images import Images
from finetune.data.loading import dataloader
from finetune.data.loading.dataloader import Batches, PhotoDataset, Unreadable
from finetune.data.loading.sampler import batch_sizes
from finetune.data.loading.transforms import build_fit, normalise
from finetune.data.loading.views import Views
from finetune.data.loading.workers import resolve_workers
from finetune.models.build import resolve_model

SMALL = PreprocessingConfig(resize=20, crop=16)


def noise_photo(size: tuple[int, int]) -> Image.Image:
    return Image.effect_noise(size, 80).convert("RGB")


@pytest.mark.parametrize(
    "name", ["resnet18", "efficientnet_b0", "efficientnet_v2_l", "inception_v3", "swin_v2_t"]
)
@pytest.mark.parametrize("size", [(320, 240), (240, 320)])
def test_evaluation_sees_what_the_weights_own_preset_gives(
    name: str, size: tuple[int, int]
) -> None:
    """To within a level, since torchvision resizes tensors; see unit/data/test_decoding.py."""
    photo = noise_photo(size)
    preprocessing = resolve_model(ModelConfig(name=name)).preprocessing
    transform = build_fit(preprocessing)
    ours = normalise(transform(pil_to_tensor(photo))[None], preprocessing)[0]
    preset = models.get_model_weights(name).DEFAULT.transforms()
    exact = preprocessing.interpolation != "bilinear"
    level = 1 / 255 / min(preprocessing.std)
    torch.testing.assert_close(ours, preset(photo), rtol=0, atol=1e-6 if exact else level + 1e-6)


def test_auto_preprocessing_of_a_path_is_the_builders_first_entry() -> None:
    found = resolve_model(ModelConfig(name="resnet50", weights="x.pth")).preprocessing
    assert (found.resize, found.crop) == (256, 224)
    assert resolve_model(ModelConfig(name="resnet50")).preprocessing.resize == 232


def test_preprocessing_may_name_another_entry() -> None:
    config = ModelConfig(name="resnet50", preprocessing="IMAGENET1K_V1")
    assert resolve_model(config).preprocessing.resize == 256


def test_bundled_weights_bring_their_own_preprocessing() -> None:
    config = ModelConfig(name="shufflenet_v2_x0_5", weights="bundled")
    assert resolve_model(config).preprocessing == PreprocessingConfig(resize=64, crop=64)


def test_flip_is_the_only_randomness_of_the_flip_policy(images: Images) -> None:
    dataset = PhotoDataset(images, SMALL, Views.of("flip"))
    plain, mirrored = (dataset[(0, view)][0] for view in (0, 1))
    assert torch.equal(plain, PhotoDataset(images, SMALL, Views.of("none"))[(0, 0)][0])
    assert torch.equal(mirrored, plain.flip(2))
    assert {Views.of("flip").pick(epoch, 0) for epoch in range(20)} == {0, 1}


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (10, 4, [4, 4, 2]),
        (3, 4, [3]),
        (1, 4, [1]),
        (3, 1, [1, 1, 1]),
        (5, 4, [5]),
    ],
)
def test_a_last_batch_of_one_joins_the_one_before(
    count: int, batch_size: int, sizes: list[int]
) -> None:
    assert batch_sizes(count, batch_size, join_last_of_one=True) == sizes


def test_evaluation_batches_stay_of_one_size() -> None:
    assert batch_sizes(9, 4, join_last_of_one=False) == [4, 4, 1]


@pytest.fixture
def images(tmp_path: Path) -> Images:
    paths = []
    for index in range(9):
        paths.append(tmp_path / f"{index}.png")
        noise_photo((24, 24)).save(paths[-1])
    return Images(tuple(paths), tuple(range(9)), tuple(map(str, range(9))))


def batches(images: Images, *, seed: int = 0, workers: int = 0, shuffle: bool = True) -> Batches:
    return Batches(
        PhotoDataset(images, SMALL, Views.of("crop_flip" if shuffle else "none", seed=seed)),
        batch_size=4,
        workers=workers,
        device=torch.device("cpu"),
        shuffle=shuffle,
    )


def order(loader: Batches, epoch: int) -> list[int]:
    return [int(label) for _, labels in loader.epoch(epoch) for label in labels]


def pixels(loader: Batches, epoch: int) -> dict[int, bytes]:
    return {
        int(label): image.numpy().tobytes()
        for images, labels in loader.epoch(epoch)
        for image, label in zip(images, labels, strict=True)
    }


def test_every_image_is_seen_once_an_epoch_in_another_order(images: Images) -> None:
    loader = batches(images)
    assert sorted(order(loader, 1)) == sorted(order(loader, 2)) == list(range(9))
    assert order(loader, 1) != order(loader, 2)


def test_order_is_a_function_of_seed_and_epoch(images: Images) -> None:
    assert order(batches(images), 5) == order(batches(images), 5)
    assert order(batches(images), 5) != order(batches(images, seed=1), 5)


def test_augmentation_is_a_function_of_seed_epoch_and_image(images: Images) -> None:
    first = pixels(batches(images), 1)
    assert pixels(batches(images), 1) == first
    assert pixels(batches(images), 2) != first
    assert pixels(batches(images, seed=1), 1) != first


def test_augmentation_does_not_depend_on_workers(images: Images) -> None:
    assert pixels(batches(images, workers=2), 1) == pixels(batches(images), 1)


def test_augmentation_leaves_the_global_generator_as_it_was(images: Images) -> None:
    torch.manual_seed(7)
    before = torch.default_generator.get_state()
    PhotoDataset(images, SMALL, Views.of("crop_flip"))[(0, 1)]
    assert torch.equal(torch.default_generator.get_state(), before)


def test_workers_are_started_only_for_much_data_beside_a_gpu() -> None:
    small = Images((), (), (), num_bytes=1000)
    large = Images((), (), (), num_bytes=10**9)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert resolve_workers("auto", large, cpu, batch_bytes=100) == 0
    assert resolve_workers("auto", small, cuda, batch_bytes=100) == 0
    assert resolve_workers("auto", large, cuda, batch_bytes=100) >= 1
    assert resolve_workers(3, small, cpu, batch_bytes=100) == 3


@pytest.mark.parametrize("policy", ["none", "crop_flip"])
def test_what_was_decoded_is_kept_while_there_is_room(
    images: Images, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    decoded = []
    real = dataloader.read_photo

    def read(path: Path, *levels: int | None) -> torch.Tensor:
        decoded.append(path)
        return real(path, *levels)

    monkeypatch.setattr(dataloader, "read_photo", read)
    size = 3 * (24 * 24 if policy == "crop_flip" else 16 * 16)
    dataset = PhotoDataset(images, SMALL, Views.of(policy), keep_bytes=2 * size)
    first = [dataset[(index, 0)][0] for index in range(3)]
    again = [dataset[(index, 0)][0] for index in range(3)]
    assert [path.name for path in decoded] == ["0.png", "1.png", "2.png", "2.png"]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_bounded_number_of_crops_gives_the_same_few_views_again(images: Images) -> None:
    views = Views.of("crop_flip", bound=3)
    assert {views.pick(epoch, 0) for epoch in range(30)} == {0, 1, 2}
    one, other = (PhotoDataset(images, SMALL, views) for _ in range(2))
    assert torch.equal(one[(0, 2)][0], other[(0, 2)][0])
    assert not torch.equal(one[(0, 2)][0], one[(0, 1)][0])


def test_neighbouring_views_of_an_image_decode_it_once(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = dataloader.read_photo

    def read(path: Path, *levels: int | None) -> torch.Tensor:
        opened.append(path)
        return real(path, *levels)

    monkeypatch.setattr(dataloader, "read_photo", read)
    PhotoDataset(images, SMALL, Views.of("flip")).__getitems__([(0, 0), (0, 1), (1, 0)])
    assert len(opened) == 2


def test_a_dataset_can_be_sent_to_a_process_that_is_started_afresh(images: Images) -> None:
    """Workers are started this way on macOS and Windows, and on Linux from Python 3.14."""
    dataset = pickle.loads(pickle.dumps(PhotoDataset(images, SMALL, Views.of("crop_flip"))))
    again = PhotoDataset(images, SMALL, Views.of("crop_flip"))
    assert torch.equal(dataset[(0, 1)][0], again[(0, 1)][0])


def test_what_the_system_refuses_for_once_is_no_broken_photo(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = PhotoDataset(images, SMALL, Views.of("none"))

    def refused(path: Path, *_: object) -> torch.Tensor:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(dataloader, "read_photo", refused)
    (unreadable,) = dataset.views_of(0, [0])
    assert isinstance(unreadable, dataloader.Unreadable)
    assert not unreadable.lasting
    images.paths[1].write_bytes(b"nothing")
    monkeypatch.undo()
    (broken,) = dataset.views_of(1, [0])
    assert isinstance(broken, dataloader.Unreadable)
    assert broken.lasting


def test_what_is_no_image_any_more_is_named_without_our_own_buffer(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"")
    (broken,) = PhotoDataset(Images((path,), (0,), ("a",)), SMALL, Views.of("none")).views_of(
        0, [0]
    )
    assert isinstance(broken, Unreadable)
    assert "BytesIO" not in broken.reason
    assert "empty" in broken.reason
