"""Tests of one `Predictor` used by threads, suspended streams and forked processes."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.photos import draw_photos
from helpers.small_checkpoint import small_checkpoint
from PIL import Image
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2 import functional as F

import finetune
from finetune.checkpoints.checkpoint import save_checkpoint
from finetune.config.schema import Config
from finetune.data.loading.decoding import read_photo
from finetune.freezing.graph_split import split_model
from finetune.inference.predictor import Predictor
from finetune.models.build import rebuild
from finetune.training.evaluate import evaluate
from finetune.tuning.shared_dropout import SharedDropout
from finetune.tuning.stacked_heads import StackedHeads, score_heads


class Run(NamedTuple):
    """A run that several tests share; what it answers is computed by torchvision alone."""

    folder: str
    model: Predictor
    paths: list[str]
    expected: dict[str, Tensor]


def save(folder: Path, patterns: Sequence[str]) -> str:
    """A checkpoint in float32, of a network that tells images apart in either mode."""
    config = Config.model_validate(
        {
            "model": {
                "name": "shufflenet_v2_x0_5",
                "weights": "none",
                "preprocessing": {"resize": 36, "crop": 32},
            },
            "data": {"root": str(folder)},
            "output_dir": str(folder),
            "freeze": {"patterns": list(patterns)},
        }
    )
    state, metadata = small_checkpoint(config)
    torch.manual_seed(1)
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(std=0.2)
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    state["fc.weight"] *= 20
    save_checkpoint(folder / "best.pt", state, metadata)
    return str(folder)


@pytest.fixture(
    scope="module",
    params=[(), ("*", "!conv5.*"), ("*",)],
    ids=["full", "last_block", "head"],
)
def run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Run:
    folder = tmp_path_factory.mktemp("run")
    paths = [str(path) for path in sorted(draw_photos(folder / "photos").rglob("*.png"))]
    save(folder, request.param)
    model = finetune.load(folder, batch_size=2)
    return Run(str(folder), model, paths, reference(str(folder), paths))


@pytest.fixture
def four_threads() -> Iterator[None]:
    """Set torch to four threads, as on a machine with four cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def reference(run: str, paths: Sequence[str]) -> dict[str, Tensor]:
    """Probabilities by torchvision alone: the checkpoint's network, one image at a time."""
    content = torch.load(Path(run) / "best.pt", weights_only=True)
    network = models.get_model("shufflenet_v2_x0_5", num_classes=2)
    network.load_state_dict(content["model"])
    network.eval()
    found = {}
    for path in paths:
        with Image.open(path) as image:
            pixels = F.pil_to_tensor(image.convert("RGB"))
        pixels = F.center_crop(F.resize(pixels, [36], antialias=True), [32, 32])
        scaled = F.normalize(
            F.to_dtype(pixels, torch.float32, scale=True),
            mean=[0.485, 0.456, 0.406],
            std=[0.229, 0.224, 0.225],
        )
        with torch.no_grad():
            found[path] = network(scaled[None])[0].softmax(0)
    return found


def agree(run: Run, answers: Iterable[Any]) -> bool:
    """Whether each answer has the probabilities of its photo."""
    return all(
        abs(share - float(run.expected[answer.path][int(name[-1])])) < 1e-5
        for answer in answers
        for name, share in answer.top
    )


def test_threads_that_share_a_predictor_get_the_answers_of_one_caller(run: Run) -> None:
    def call(seed: int) -> bool:
        rng = random.Random(seed)
        asked = [rng.choice(run.paths) for _ in range(rng.randrange(1, 8))]
        if seed % 3:
            return agree(run, run.model.predict(asked))
        return agree(run, itertools.islice(run.model.stream(asked), rng.randrange(1, 8)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(20))) == [True] * 20


def test_interleaved_streams_give_the_answers_of_one_after_another(run: Run) -> None:
    first, second, third = (run.model.stream(run.paths) for _ in range(3))
    next(first), next(second)
    first.close()  # a caller that leaves in the middle
    answers = [answer for pair in zip(second, third, strict=False) for answer in pair]
    assert len(answers) == 2 * len(run.paths) - 2
    assert agree(run, answers)


def test_no_call_changes_the_network(run: Run) -> None:
    trainable_part = run.model._engine.trainable_part
    before = {name: tensor.clone() for name, tensor in trainable_part.state_dict().items()}
    streams = [run.model.stream(run.paths) for _ in range(2)]
    for stream in streams:
        next(stream)
    streams[0].close()
    run.model.predict(run.paths)
    assert not any(module.training for module in trainable_part.modules())
    after = trainable_part.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_suspended_stream_leaves_the_callers_torch_as_it_was(run: Run) -> None:
    filters = list(warnings.filters)
    threads = torch.get_num_threads()
    streams = [run.model.stream(run.paths) for _ in range(2)]
    for stream in streams:
        next(stream)
        assert torch.is_grad_enabled()
    streams[0].close()
    assert list(streams[1])
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == threads
    assert warnings.filters == filters


def test_a_stream_may_be_read_by_one_thread_after_another(run: Run) -> None:
    stream = run.model.stream(run.paths[:6])
    answers = []
    for _ in range(6):
        with ThreadPoolExecutor(1) as pool:
            answers.append(pool.submit(next, stream).result())
    assert agree(run, answers)


def test_calls_at_once_leave_new_threads_the_number_of_torchs_threads(
    run: Run, four_threads: None
) -> None:
    seen = []

    def call() -> None:
        run.model.predict(run.paths)
        seen.append(torch.get_num_threads())

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 4
    assert seen == [4] * 6


def test_networks_are_loaded_while_another_predicts(run: Run) -> None:
    call = nn.Module.__call__
    with ThreadPoolExecutor(2) as pool:
        loaded = [pool.submit(finetune.load, run.folder) for _ in range(2)]
        while not all(future.done() for future in loaded):
            assert agree(run, run.model.predict(run.paths))
    assert all(agree(run, future.result().predict(run.paths)) for future in loaded)
    assert nn.Module.__call__ is call


def test_modules_can_be_called_in_other_threads_while_a_network_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tracing stops in its middle, and another thread computes."""
    model = rebuild("shufflenet_v2_x0_5", 2, {}).requires_grad_(False)
    model.fc.requires_grad_(True)
    model.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    answers = []

    def compute() -> None:
        with torch.no_grad():
            answers.append(model(images))

    real = nn.Sequential.forward

    def forward(self: nn.Sequential, inputs: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and len(answers) < 2:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(compute).result()
        return real(self, inputs)

    monkeypatch.setattr(nn.Sequential, "forward", forward)
    split_model(model, crop=32)
    assert len(answers) == 2
    assert all(torch.equal(answer, expected) for answer in answers)


def test_a_process_forked_after_loading_gives_its_parents_answers(
    run: Run, four_threads: None
) -> None:
    expected = [one.top for one in run.model.predict(run.paths)]
    torch.rand(1000, 1000).sum()  # OpenMP has threads now, and a child of fork has none of them
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)
        answers = [one.top for one in run.model.predict(run.paths)]
        os.write(write, b"same" if answers == expected else b"different")
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        assert (status, pipe.read()) == (0, "same")


def test_one_pillow_image_may_be_given_many_times(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((700, 500), 80).convert("RGB").save(path, exif=exif)
    expected = run.model.predict(path)[0].top
    for _ in range(5):
        with Image.open(path) as image:
            found = run.model.predict([image] * 8)
        for one in found:
            assert dict(one.top) == pytest.approx(dict(expected), abs=1e-5)


def test_decoding_in_threads_leaves_the_warning_filters(run: Run) -> None:
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: read_photo(run.paths[0]), range(400)))
    assert warnings.filters == filters


class Plain(nn.Module):
    """A head that computes other last bits in four threads than in one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1024, 100)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features)
        return logits


def test_evaluation_gives_the_same_bits_whatever_the_number_of_threads() -> None:
    torch.manual_seed(0)
    network, features = Plain(), torch.randn(8, 1024)
    labels = torch.randint(100, (8,))
    before = torch.get_num_threads()
    found: list[Tensor] = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            evaluate(network, [((features,), labels)], num_classes=100, keep=found)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_scoring_heads_leaves_the_dropout_of_the_others_on() -> None:
    network = nn.Sequential(SharedDropout(0.5), nn.Linear(64, 2)).train()
    heads = StackedHeads(network, "1", 2)
    score_heads(heads.only(torch.tensor([0])), [((torch.ones(4, 64),), torch.tensor([0, 1, 0, 1]))])
    heads.seed(1)
    assert heads.network[0].training
    assert bool((heads.network[0](torch.ones(4, 64)) == 0).any())
