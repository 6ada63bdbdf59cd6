"""Parts of the measurement on a GPU; ``run`` beside this file starts them.

Each part prints a Markdown table, and all of them are written to gpu.md in the output folder after
each part, so that a machine that is taken away leaves what was measured so far. Times are medians
of several rounds, with the device synchronised before and after. Photos are drawn, and networks
have random weights: neither changes the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LIMIT_S = 540.0


@dataclass(frozen=True)
class Setting:
    """What the parts measure on.

    Attributes:
        quick: Whether to use small numbers, to try the script on a CPU.
        end: Time at which no further part begins.
    """

    device: torch.device
    folder: Path
    quick: bool
    end: float

    @property
    def photos(self) -> Path:
        """Class folders of drawn JPEG photos."""
        return self.folder / "photos"

    def seconds(self, step: Callable[[], object], *, rounds: int = 5, warm_up: int = 3) -> float:
        """Return the median time of a step."""
        rounds, warm_up = (2, 1) if self.quick else (rounds, warm_up)
        for _ in range(warm_up):
            step()
        taken = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            step()
            self.wait()
            taken.append(time.perf_counter() - start)
        return statistics.median(taken)

    def wait(self) -> None:
        """Wait for all kernels of the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


Rows = list[list[str]]
Part = Callable[[Setting], tuple[list[str], Rows]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure finetune on a GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small numbers, to try the script")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU; --device cpu --quick tries the script without one")
    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = f"{name}/cache"
        setting = Setting(
            torch.device(options.device), Path(name), options.quick, time.monotonic() + LIMIT_S
        )
        draw_photos(setting.photos, 16 if options.quick else 384)
        texts = [_machine(setting)]
        for part in options.parts:
            texts.append(_measured(part, setting))
            print(texts[-1], flush=True)
            (options.out / "gpu.md").write_text("\n\n".join(texts) + "\n")


def _measured(part: str, setting: Setting) -> str:
    left = setting.end - time.monotonic()
    title = f"**{TITLES[part]}**"
    if left <= 0:
        return f"{title}\n\nNot measured: no time was left."
    start = time.monotonic()
    try:
        header, rows = PARTS[part](setting)
    except Exception as error:
        traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        return f"{title}\n\nFailed: {type(error).__name__}: {first}"
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{title} ({time.monotonic() - start:.0f} s)\n\n{table}"


def _machine(setting: Setting) -> str:
    name = "CPU"
    if setting.device.type == "cuda":
        name = torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return (
        f"{name}, {cores} cores; torch {torch.__version__}, torchvision {torchvision.__version__}"
        f"{f'; commit {commit}' if commit else ''}."
    )


def draw_photos(folder: Path, count: int) -> None:
    """Draw JPEG photos of the size and detail of web photos: two classes, train and val."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        split, label = ("val" if number % 8 == 0 else "train"), number % 2
        coarse = torch.rand(1, 3, 12, 16, generator=generator) * 180 + 40 * label
        smooth = nn.functional.interpolate(coarse, (375, 500), mode="bicubic")[0]
        noisy = smooth + 12 * torch.randn(3, 375, 500, generator=generator)
        path = folder / split / f"class_{label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        torchvision.io.write_jpeg(noisy.clamp(0, 255).to(torch.uint8), str(path), quality=90)


def _config(setting: Setting, name: str, **sections: Any) -> Path:
    """Write a config file and return its path."""
    values: dict[str, Any] = {
        "model": {"name": "mobilenet_v2", "weights": "none"},
        "data": {"root": str(setting.photos), "batch_size": 4 if setting.quick else 32},
        "train": {"epochs": 2},
        "optimizer": {"name": "sgd", "lr": 0.001},
        "output_dir": str(setting.folder / name),
        "runtime": {"device": setting.device.type},
    }
    if setting.quick:
        values["model"]["preprocessing"] = {"resize": 36, "crop": 32}
    path = setting.folder / f"{name}.yaml"
    path.write_text(json.dumps(values | sections))
    return path


def _command(setting: Setting, *words: str) -> tuple[str, float]:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "finetune", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=max(setting.end - time.monotonic(), 1.0),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout, time.monotonic() - start


def _weights(run: Path) -> dict[str, Tensor]:
    from finetune.checkpoints.checkpoint import load_checkpoint

    return load_checkpoint(run / "last.pt")[0]


def _differ(one: Path, two: Path) -> float:
    left, right = _weights(one), _weights(two)
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def _bits(setting: Setting) -> tuple[list[str], Rows]:
    """Train each kind of run twice, and once stopped and resumed: are the bits the same?"""
    kinds: dict[str, dict[str, Any]] = {
        "the head, cached features": {},
        "the last blocks, cached features": {
            "freeze": {"patterns": ["*", "!features.17.*", "!features.18.*"]}
        },
        "everything, new crops": {
            "freeze": {"patterns": []},
            "augment": {"policy": "crop_flip"},
        },
    }
    rows = []
    for number, (name, sections) in enumerate(kinds.items()):
        runs = [setting.folder / f"bits-{number}-{which}" for which in "abc"]
        seconds = 0.0
        for run in runs[:2]:
            config = _config(setting, run.name, **sections)
            _, seconds = _command(setting, "train", "--config", str(config))
        config = _config(setting, runs[2].name, **sections)
        stopped = subprocess.Popen(
            [sys.executable, "-m", "finetune", "train", "--config", str(config)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while stopped.poll() is None and not (runs[2] / "config.yaml").exists():
            time.sleep(0.05)
        stopped.send_signal(signal.SIGTERM)
        stopped.wait(60)
        if stopped.returncode:
            _command(setting, "train", "--config", str(config), "--resume")
        rows.append(
            [
                name,
                f"{seconds:.1f}",
                f"{_differ(runs[0], runs[1]):.1e}",
                f"{_differ(runs[0], runs[2]):.1e}",
            ]
        )
    return ["trains", "second run, s", "the same run again", "stopped and resumed"], rows


def _two_processes(setting: Setting) -> tuple[list[str], Rows]:
    """Train in two processes on the one device, with gloo, and compare with one process."""
    sections = {"freeze": {"patterns": ["*", "!features.18.*"]}, "features": {"cache": "off"}}
    float32 = {
        "device": setting.device.type,
        "precision": "float32",
        "live_precision": "float32",
        "compile": "off",
        "norms": "apart",
    }
    frozen_norms = sections | {"runtime": float32}
    runs = []
    for size in (1, 2):
        config = _config(setting, f"processes-{size}", **frozen_norms)
        more = ["--nproc", "2"] if size > 1 else []
        _, seconds = _command(setting, "train", "--config", str(config), *more)
        runs.append([str(size), f"{seconds:.1f}"])
    gap = _differ(setting.folder / "processes-1", setting.folder / "processes-2")
    runs[0].append("-")
    runs[1].append(f"{gap:.1e}")
    return ["processes on one device", "s", "largest difference of a weight"], runs


def _head(setting: Setting) -> tuple[list[str], Rows]:
    """Train a head on cached features for one epoch, by size of the batch and place of the rows."""
    from finetune.data.images import Images
    from finetune.data.loading.views import Views
    from finetune.features.rows import FeatureRows
    from finetune.features.source import CachedFeatures
    from finetune.results.features import FeatureCounts
    from finetune.training.loop import Callbacks, LoopState, train_epochs
    from finetune.training.step import StepConfig

    class Head(nn.Linear):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs)

    count = 512 if setting.quick else 20_000
    features = torch.randn(count, 1280)
    images = Images(
        tuple(Path(f"{number}.jpg") for number in range(count)),
        tuple(number % 10 for number in range(count)),
        tuple(map(str, range(10))),
    )
    places = torch.arange(count)[:, None]
    rows_of = FeatureRows((features,), places, FeatureCounts(0, count, 0.0))

    def by_finetune(batch_size: int, device: torch.device) -> float:
        head = Head(1280, 10).to(device)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        source = CachedFeatures(
            rows_of.on(device),
            images,
            batch_size=batch_size,
            views=Views.of("none"),
            shuffle=True,
            device=device,
        )
        state = LoopState(head, optimizer, schedule, num_classes=10)
        epochs = iter(
            train_epochs(
                state,
                source.epoch,
                epochs=100,
                step=StepConfig(seed=0),
                callbacks=Callbacks(set_mode=lambda: None),
            )
        )
        return setting.seconds(lambda: next(epochs), rounds=2, warm_up=1)

    def on_device(batch_size: int, *, graph: bool) -> float:
        device = setting.device
        head = nn.Linear(1280, 10).to(device)
        stored = features.to(device)
        labels = torch.tensor(images.labels, device=device)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)
        inputs, targets = stored[:batch_size].clone(), labels[:batch_size].clone()

        def step() -> None:
            optimizer.zero_grad(set_to_none=False)
            loss = nn.functional.cross_entropy(head(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        for _ in range(3):
            step()
        captured = None
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step()

        def epoch() -> None:
            order = torch.randperm(count).to(device)
            for start in range(0, count - batch_size + 1, batch_size):
                chosen = order[start : start + batch_size]
                inputs.copy_(stored[chosen])
                targets.copy_(labels[chosen])
                step() if captured is None else captured.replay()

        return setting.seconds(epoch, rounds=2, warm_up=1)

    rows = []
    for batch_size in (32, 256, 1024)[: 1 if setting.quick else 3]:
        cells = [by_finetune(batch_size, setting.device), on_device(batch_size, graph=False)]
        if setting.device.type == "cuda":
            cells.append(on_device(batch_size, graph=True))
        cells.append(by_finetune(batch_size, torch.device("cpu")))
        shown = [f"{count / seconds:,.0f}" for seconds in cells]
        if setting.device.type != "cuda":
            shown.insert(2, "-")
        rows.append([str(batch_size), *shown])
    header = ["batch", "finetune", "rows on the device", "… with a CUDA graph", "finetune, CPU"]
    return [header[0], *(f"{name}, rows/s" for name in header[1:])], rows


def _decode(setting: Setting) -> tuple[list[str], Rows]:
    """Decode photos with worker processes, and with nvJPEG on the GPU."""
    from finetune.config.model import PreprocessingConfig
    from finetune.data.loading.dataloader import Batches, PhotoDataset
    from finetune.data.loading.views import Views

    images = _images(setting)
    preprocessing = PreprocessingConfig.model_validate({"resize": 256, "crop": 224})
    rows = []
    times = 1 if setting.quick else 8
    for workers in (0, 8, 16)[: 1 if setting.quick else 3]:
        dataset = PhotoDataset(images, preprocessing, Views.of("none"))
        batches = Batches(dataset, batch_size=32, workers=workers, device=setting.device)
        sum(1 for _ in batches.epoch())
        start = time.perf_counter()
        count = sum(len(labels) for _ in range(times) for _, labels in batches.epoch())
        rows.append(
            [f"{workers} worker processes", f"{count / (time.perf_counter() - start):,.0f}"]
        )
    if setting.device.type == "cuda":
        data = [torchvision.io.read_file(str(path)) for path in images.paths[:128]]

        def by_gpu() -> list[Tensor]:
            return [
                nn.functional.interpolate(photo[None].float(), (224, 224), mode="bilinear")
                for photo in torchvision.io.decode_jpeg(data, device="cuda")
            ]

        rows.append(
            ["nvJPEG in batches, resized on the GPU", f"{len(data) / setting.seconds(by_gpu):,.0f}"]
        )
        cpu = torchvision.io.decode_jpeg(data[0])
        gpu = torchvision.io.decode_jpeg(data[0], device="cuda").cpu()
        apart = (cpu.int() - gpu.int()).abs()
        rows.append(
            [
                "pixels that differ between the two, and by how much at most",
                f"{(apart > 0).float().mean():.1%}, {int(apart.max())} of 255",
            ]
        )
    return ["decoded by", "photos/s"], rows


def _images(setting: Setting) -> Any:
    from finetune.config.schema import Config
    from finetune.core.reporter import SilentReporter
    from finetune.data.sources.open import find_train_val

    values = {
        "model": {"name": "resnet18", "weights": "none"},
        "data": {"root": str(setting.photos)},
    }
    config = Config.model_validate(values | {"output_dir": "unused"})
    return find_train_val(config.data, seed=0, reporter=SilentReporter()).train


def _fill(setting: Setting) -> tuple[list[str], Rows]:
    """Compute features by batches of 32 and 256, eager and compiled, in several formats."""
    names = ("mobilenet_v2",) if setting.quick else ("mobilenet_v2", "resnet50", "convnext_tiny")
    size = 32 if setting.quick else 224
    rows = []
    for name in names:
        network = torchvision.models.get_model(name, weights=None).to(setting.device).eval()
        for batch in (32, 256)[: 1 if setting.quick else 2]:
            cells = []
            for dtype, compiled in (
                (torch.float32, False),
                (torch.float16, False),
                (torch.bfloat16, False),
                (torch.bfloat16, True),
            ):
                if setting.quick and (compiled or dtype == torch.float16):
                    cells.append("-")
                    continue
                images = torch.rand(batch, 3, size, size, device=setting.device)
                images = images.to(dtype).contiguous(memory_format=torch.channels_last)
                module = network.to(dtype).to(memory_format=torch.channels_last)
                run = torch.compile(module) if compiled else module

                @torch.no_grad()
                def step(run: Callable[[Tensor], Tensor] = run, images: Tensor = images) -> None:
                    run(images)

                cells.append(f"{batch / setting.seconds(step):,.0f}")
            rows.append([name, str(batch), *cells])
    side = 512 if setting.quick else 8192
    one = torch.randn(side, side, device=setting.device, dtype=torch.bfloat16)
    rate = 2 * side**3 / setting.seconds(lambda: one @ one) / 1e12
    rows.append([f"bfloat16 matrix product, {rate:,.1f} TFLOP/s", *["-"] * 5])
    header = ["network", "batch", "float32", "float16", "bfloat16", "bfloat16, compiled"]
    return [*header[:2], *(f"{word}, images/s" for word in header[2:])], rows


def _everything(setting: Setting) -> tuple[list[str], Rows]:
    """Train everything: the step of finetune beside a plain loop in several settings."""
    names = ("mobilenet_v2", "resnet50", "convnext_tiny", "vit_b_16")[: 1 if setting.quick else 4]
    size, batch = (32, 4) if setting.quick else (224, 64)
    images = torch.rand(batch, 3, size, size, device=setting.device)
    labels = torch.arange(batch, device=setting.device) % 2
    rows = []
    for name in names:
        form, seconds = _of_finetune(setting, name, images, labels)
        cells = [f"{batch / seconds:,.0f}"]
        for word in ("float32", "amp", "no determinism", "compiled"):
            if setting.quick and word == "compiled":
                cells.append("-")
                continue
            cells.append(f"{batch / _plain(setting, name, images, labels, word):,.0f}")
        rows.append([name, form, *cells])
    header = ["network", "format of finetune", "finetune", "plain, float32"]
    header += ["bfloat16, channels_last", "… cudnn.benchmark", "… compiled"]
    return [*header[:2], *(f"{word}, images/s" for word in header[2:])], rows


def _of_finetune(setting: Setting, name: str, images: Tensor, labels: Tensor) -> tuple[str, float]:
    """Return the compute format of finetune, and the time of its step."""
    from finetune.checkpoints.train_progress import TrainProgress
    from finetune.config.load import load_config
    from finetune.core.reporter import SilentReporter
    from finetune.training.loss import Loss, LossConfig
    from finetune.training.metrics import Meter
    from finetune.training.prepare_stage import prepare_single_stage
    from finetune.training.step import Step, StepConfig

    model: dict[str, Any] = {"name": name, "weights": "none"}
    if setting.quick:
        size = images.shape[-1]
        model["preprocessing"] = {"resize": size, "crop": size}
    sections = {
        "model": model,
        "freeze": {"patterns": []},
        "data": {"root": str(setting.photos), "batch_size": len(images)},
    }
    config = load_config(_config(setting, f"everything-{name}", **sections))
    stage = prepare_single_stage(config, SilentReporter(), what="measurement")
    stage.set_mode()
    step = Step(
        stage.engine.trainable_part,
        stage.optimizer_of(stage.config.optimizer),
        Loss(LossConfig(), device=setting.device),
        StepConfig(seed=0),
        warn=print,
    )
    meter, progress = Meter(2, setting.device), TrainProgress()
    seconds = setting.seconds(lambda: step.take([((images,), labels)], meter, progress))
    return str(stage.engine.trainable_choice.form), seconds


def _plain(setting: Setting, name: str, images: Tensor, labels: Tensor, word: str) -> float:
    """Return the time of a step of a plain loop."""
    network = torchvision.models.get_model(name, weights=None, num_classes=2).to(setting.device)
    fast = word != "float32"
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    torch.backends.cudnn.benchmark = word in ("no determinism", "compiled")
    torch.backends.cudnn.deterministic = not torch.backends.cudnn.benchmark
    if fast:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    run: Callable[[Tensor], Tensor] = torch.compile(network) if word == "compiled" else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9)
    autocast: AbstractContextManager[None] = nullcontext()
    if fast:
        autocast = torch.autocast(setting.device.type, torch.bfloat16)

    def step() -> None:
        with autocast:
            loss = nn.functional.cross_entropy(run(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    try:
        return setting.seconds(step)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False


def _profile(setting: Setting) -> tuple[list[str], Rows]:
    """Profile a whole run of finetune: share of the time in which the device computes."""
    from torch.profiler import ProfilerActivity, profile

    from finetune.commands.train import train
    from finetune.config.load import load_config

    rows: Rows = []
    for name, sections in {
        "the head, cached features": {},
        "everything, new crops": {
            "freeze": {"patterns": []},
            "augment": {"policy": "crop_flip"},
        },
    }.items():
        config = load_config(_config(setting, f"profile-{len(rows)}", **sections))
        kinds = [ProfilerActivity.CPU]
        if setting.device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        start = time.perf_counter()
        with profile(activities=kinds) as found:
            train(config)
        wall = time.perf_counter() - start
        events = [
            event
            for event in found.events() or ()
            if str(event.device_type).endswith("CUDA") and event.time_range.elapsed_us() > 0
        ]
        spans = sorted((event.time_range.start, event.time_range.end) for event in events)
        busy, gaps, end = 0.0, [], None
        for first, last in spans:
            if end is not None and first > end:
                gaps.append(first - end)
            busy += max(last - max(first, end or first), 0)
            end = max(last, end or last)
        largest = ", ".join(f"{gap / 1e3:,.0f}" for gap in sorted(gaps)[-5:][::-1])
        memory = "-"
        if setting.device.type == "cuda":
            memory = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}"
        rows.append([name, f"{wall:.1f}", f"{busy / 1e6 / wall:.0%}", largest or "-", memory])
    return ["run", "s", "device computes", "largest gaps, ms", "peak GPU memory, MiB"], rows


def _tests(setting: Setting) -> tuple[list[str], Rows]:
    """Run the tests that need a GPU."""
    try:
        import pytest  # noqa: F401
    except ImportError:
        return ["tests with the marker gpu"], [["pytest is not installed"]]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=max(setting.end - time.monotonic(), 1.0),
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    return ["tests with the marker gpu"], [[line.replace("|", "/")] for line in (last, *failed)]


PARTS: dict[str, Part] = {
    "bits": _bits,
    "everything": _everything,
    "fill": _fill,
    "head": _head,
    "decode": _decode,
    "processes": _two_processes,
    "profile": _profile,
    "tests": _tests,
}
TITLES: dict[str, str] = {
    "bits": "The same bits: largest difference of a weight",
    "everything": "A step with everything training",
    "fill": "The frozen part",
    "head": "An epoch of a head on cached features",
    "decode": "Decoding",
    "processes": "Two processes",
    "profile": "Where the time goes",
    "tests": "Tests",
}


if __name__ == "__main__":
    main()
