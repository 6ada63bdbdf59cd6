"""Several processes of one run: the result is that of one process, and they end together."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.broken_files import damage
from helpers.cache import new_cache
from helpers.fork_server import ForkServer, Program
from helpers.paths import REPOSITORY
from helpers.photos import draw_photos
from helpers.ranks import FLOAT64, gap, run_ranks, start_ranks, wait_for
from torch import Tensor

from finetune.checkpoints.checkpoint import load_checkpoint

CONFIG = """\
model: {name: squeezenet1_1, weights: none, preprocessing: {resize: 36, crop: 32}}
data: {root: PHOTOS, batch_size: 5, workers: 0}
optimizer: {name: sgd, lr: 0.001}
freeze: {patterns: []}
augment: {policy: flip}
runtime: {precision: float32, memory_format: contiguous, live_precision: float32,
          live_memory_format: contiguous}
"""
EPOCHS = "train.epochs=2"
SAME = 1e-11
"""Largest difference of a weight between two runs in float64."""


@dataclass
class Runs:
    """Runs of the tiny config, in one or several processes."""

    folder: Path
    server: ForkServer
    config: str = "c.yaml"

    def arguments(self, run: str, *settings: str) -> list[str]:
        """The command line of a run."""
        every = (f"output_dir={self.folder / run}", *settings)
        pairs = [word for setting in every for word in ("--set", setting)]
        return ["train", "--config", str(self.folder / self.config), *pairs]

    def train(
        self, run: str, size: int, *settings: str, call: str = "finetune.cli.app:main"
    ) -> dict[str, Any]:
        """Train to the end, and return the summary."""
        programs = run_ranks(
            self.server, size, *self.arguments(run, *settings), "--json", call=call
        )
        assert not any(program.out.read_text() for program in programs[1:])
        found: dict[str, Any] = json.loads(programs[0].out.read_text())
        return found

    def weights(self, run: str) -> dict[str, Tensor]:
        """The weights of the last epoch."""
        return load_checkpoint(self.folder / run / "last.pt")[0]

    def records(self, run: str) -> list[dict[str, Any]]:
        """What was recorded of each epoch, without times."""
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(line).items() if not key.endswith("_s")}
            for line in lines
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Forked from one process; 18 photos to train on and 14 to validate."""
    folder = tmp_path_factory.mktemp("processes")
    for split, count in (("train", 9), ("val", 7)):
        draw_photos(folder / "photos" / split, count=count)
    (folder / "c.yaml").write_text(CONFIG.replace("PHOTOS", str(folder / "photos")))
    (folder / "io").mkdir()
    server = ForkServer(folder / "io", XDG_CACHE_HOME=new_cache(folder / "cache"))
    try:
        yield Runs(folder, server)
    finally:
        server.close()


CASES = {
    "everything": [],
    "the head alone, of new crops": [
        "freeze.patterns=['*']",
        "augment.policy=crop_flip",
        "features.cache=off",
    ],
    "the end, with batch norms and stochastic depth": [
        "model.name=efficientnet_b0",
        "freeze.patterns=['*', '!features.7.*', '!features.8.*']",
        "features.cache=off",
    ],
    "accumulated, clipped, averaged; weighted classes, smoothed labels": [
        "train.accumulate=2",
        "train.clip_norm=0.1",
        "train.ema=0.9",
        "data.balance=weights",
        "train.label_smoothing=0.1",
    ],
    "mixed": ["augment.mixup=0.4", "augment.cutmix=1.0"],
    "balanced draws, adamw": ["data.balance=sampler", "optimizer.name=adamw"],
    "both views; fewer rows than processes": ["model.average_mirror=true", "data.batch_size=8"],
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_three_processes_train_what_one_does(
    runs: Runs, settings: list[str], tmp_path: Path
) -> None:
    one, three = f"{tmp_path.name}-1", f"{tmp_path.name}-3"
    runs.train(one, 1, EPOCHS, *settings, call=FLOAT64)
    runs.train(three, 3, EPOCHS, *settings, call=FLOAT64)
    assert gap(runs.weights(one), runs.weights(three)) < SAME
    for alone, shared in zip(runs.records(one), runs.records(three), strict=True):
        assert shared["num_images"] == alone["num_images"] == 18
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-9)
        assert shared["val"]["top1"] == alone["val"]["top1"]
        assert shared["val"]["loss"] == pytest.approx(alone["val"]["loss"], abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 3, 14])
def test_an_evaluation_has_the_same_bits_in_any_number_of_processes(
    runs: Runs, batch_size: int
) -> None:
    still = ["train.epochs=1", "optimizer.lr=1e-30", f"data.batch_size={batch_size}"]
    name = f"still-{batch_size}"
    for size in (1, 2, 3):
        runs.train(f"{name}-{size}", size, *still)
    found = [runs.records(f"{name}-{size}")[0]["val"] for size in (1, 2, 3)]
    assert found[0]["num_images"] == 14
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_each_row_of_features_is_computed_once_and_one_process_trains_the_head(
    runs: Runs, cache: str
) -> None:
    head = [EPOCHS, "freeze.patterns=['*']", f"features.cache={cache}"]
    one = runs.train(f"{cache}-1", 1, *head, f"features.dir={runs.folder / 'one'}")
    three = runs.train(f"{cache}-3", 3, *head, f"features.dir={runs.folder / 'three'}")
    assert three["features"]["computed"] == one["features"]["computed"] == 18 * 2 + 14
    assert three["features"]["reused"] == 0
    assert gap(runs.weights(f"{cache}-1"), runs.weights(f"{cache}-3")) == 0
    assert runs.records(f"{cache}-1") == runs.records(f"{cache}-3")


def test_a_stage_of_one_process_hands_on_to_one_of_all(runs: Runs) -> None:
    config = CONFIG.replace("PHOTOS", str(runs.folder / "photos")).replace(
        "freeze: {patterns: []}",
        "stages: [{epochs: 2, freeze: {patterns: ['*']}, features: {cache: disk}}, "
        "{epochs: 1, freeze: {patterns: []}}]",
    )
    (runs.folder / "stages.yaml").write_text(config)
    of_stages = Runs(runs.folder, runs.server, "stages.yaml")
    momentum = ["optimizer.momentum=0.9", f"features.dir={runs.folder / 'stages'}"]
    of_stages.train("stages-1", 1, *momentum)
    summary = of_stages.train("stages-2", 2, *momentum)
    assert [stage["state_kept"] for stage in summary["stages"]] == [0, 2]
    assert gap(runs.weights("stages-1"), runs.weights("stages-2")) < 1e-5


def test_norms_apart_use_the_statistics_of_each_share(runs: Runs) -> None:
    norms = [
        "model.name=shufflenet_v2_x0_5",
        "train.epochs=1",
        "data.batch_size=18",
        "optimizer.lr=0.01",
    ]
    runs.train("together", 2, *norms, "runtime.norms=together")
    runs.train("apart", 2, *norms, "runtime.norms=apart")
    assert gap(runs.weights("together"), runs.weights("apart")) > 1e-3


def test_norms_apart_share_a_batch_that_leaves_a_process_one_row(runs: Runs) -> None:
    runs.train("few", 3, EPOCHS, "model.name=shufflenet_v2_x0_5", "runtime.norms=apart")
    assert runs.records("few")[0]["num_images"] == 18


def codes(programs: list[Program]) -> list[int]:
    """Exit codes of the processes, which end within five seconds of each other."""
    first = programs[0].wait()
    start = time.monotonic()
    others = [program.wait() for program in programs[1:]]
    assert time.monotonic() - start < 5
    return [first, *others]


def words(programs: list[Program], kind: str = "finetune: ") -> list[str]:
    """The lines of all processes that report an error."""
    lines = [line for program in programs for line in program.said.splitlines()]
    return [line for line in lines if line.startswith(kind)]


def test_memory_lost_in_one_process_halves_the_batches_of_all(runs: Runs) -> None:
    settings = [EPOCHS, "data.batch_size=9"]
    runs.train("enough", 1, *settings, call=FLOAT64)
    programs = run_ranks(
        runs.server, 2, *runs.arguments("short", *settings), call="helpers.ranks:short_of_memory"
    )
    assert "micro-batches of 2 images" in programs[0].said
    assert "micro-batches" not in programs[1].said
    assert runs.records("enough")[0]["num_images"] == runs.records("short")[0]["num_images"]
    # Dropout draws its masks anew for the micro-batches, so that the weights are not the same.
    assert gap(runs.weights("enough"), runs.weights("short")) < 1e-2


def test_a_loss_that_is_no_number_ends_all_with_one_message(runs: Runs) -> None:
    programs = start_ranks(runs.server, 2, *runs.arguments("diverged", EPOCHS, "optimizer.lr=1e25"))
    assert codes(programs) == [7, 7]
    [line] = words(programs)
    assert "is not a finite number" in line
    assert not (runs.folder / "diverged" / "last.pt").exists()


@pytest.mark.parametrize("network", ["squeezenet1_1", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_a_photo_that_one_process_cannot_decode_is_met_by_all(
    runs: Runs, policy: str, network: str, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        draw_photos(tmp_path / split, count=6)
    damage(sorted((tmp_path / "train").rglob("*.png"))[3])
    name = f"broken-{policy}-{network}"
    arguments = runs.arguments(
        name,
        EPOCHS,
        f"model.name={network}",
        "optimizer.lr=1e-5",
        f"data.root={tmp_path}",
        f"data.on_unreadable={policy}",
    )
    programs = start_ranks(runs.server, 2, *arguments)
    if policy == "fail":
        assert codes(programs) == [3, 3]
        [line] = words(programs)
        assert "cannot be decoded" in line
    else:
        assert codes(programs) == [0, 0]
        assert [record["num_images"] for record in runs.records(name)] == [11, 11]


def test_other_weights_in_one_process_are_refused_before_the_first_step(runs: Runs) -> None:
    programs = start_ranks(
        runs.server,
        2,
        *runs.arguments("other", EPOCHS, "freeze.patterns=['*']", "augment.policy=crop_flip"),
        call="helpers.ranks:other_weights",
    )
    assert codes(programs) == [1, 1]
    [line] = words(programs)
    assert "weights of frozen parameters of process 1 differ" in line
    assert not (runs.folder / "other").exists()


def test_a_signal_to_one_process_stops_all_and_another_number_of_them_resumes(runs: Runs) -> None:
    long = "train.epochs=12"
    runs.train("whole", 1, long, call=FLOAT64)
    arguments = runs.arguments("stopped", long)
    programs = start_ranks(runs.server, 2, *arguments, call=FLOAT64)
    wait_for(lambda: "epoch  2/12" in programs[0].said)
    programs[1].send(signal.SIGTERM)
    assert codes(programs) == [143, 143]
    [line] = words(programs)
    assert "terminated in epoch" in line
    run_ranks(runs.server, 3, *arguments, "--resume", call=FLOAT64)
    assert gap(runs.weights("whole"), runs.weights("stopped")) < SAME
    alone, shared = runs.records("whole"), runs.records("stopped")
    assert [one["top1"] for one in alone] == [one["top1"] for one in shared]


def test_a_signal_before_the_first_step_ends_all_with_one_message(runs: Runs) -> None:
    programs = start_ranks(runs.server, 2, *runs.arguments("early", "train.epochs=500"))
    wait_for(lambda: "checked 32 images" in programs[0].said)
    programs[1].send(signal.SIGTERM)
    assert codes(programs) == [143, 143]
    assert len(words(programs)) == 1


def test_a_killed_process_ends_the_others(runs: Runs) -> None:
    programs = start_ranks(runs.server, 3, *runs.arguments("killed", "train.epochs=500"))
    wait_for(lambda: "epoch   1/500" in programs[0].said)
    programs[2].send(signal.SIGKILL)
    assert codes(programs) == [137, 137, -signal.SIGKILL]


def launch(*words: str, module: str = "finetune") -> subprocess.Popen[str]:
    """Start a launcher as a program of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_is_started_again_and_the_run_ends_with_the_same_weights(
    runs: Runs,
) -> None:
    long = "train.epochs=8"
    runs.train("unbroken", 2, long)
    launcher = launch(*runs.arguments("restarted", long), "--nproc", "2")
    wait_for(lambda: (runs.folder / "restarted" / "metrics.jsonl").exists())
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    subprocess.run(["kill", "-9", children[0]], check=True)
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, said
    assert "was killed by signal 9" in said
    assert gap(runs.weights("unbroken"), runs.weights("restarted")) == 0


def test_torchrun_starts_the_same_run(runs: Runs) -> None:
    runs.train("own", 2, EPOCHS)
    launcher = launch(
        *("--standalone", "--nproc-per-node=2", "-m", "finetune"),
        *runs.arguments("torchrun", EPOCHS),
        module="torch.distributed.run",
    )
    out, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, said
    assert out.count("Accuracy") == 1
    assert gap(runs.weights("own"), runs.weights("torchrun")) == 0


def test_an_error_keeps_its_exit_code_through_the_launcher(runs: Runs) -> None:
    launcher = launch(*runs.arguments("nowhere", "data.root=/nowhere/at/all"), "--nproc", "2")
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == 3
    assert said.count("no such folder") == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["tune", "--config", "c.yaml"], "finetune tune: runs in one process"),
        (["train", "--config", "c.yaml", "--dry-run"], "--dry-run runs in one process"),
    ],
)
def test_only_a_training_is_shared(runs: Runs, words: list[str], what: str) -> None:
    arguments = [str(runs.folder / word) if word == "c.yaml" else word for word in words]
    programs = start_ranks(runs.server, 2, *arguments)
    assert codes(programs) == [2, 2]
    assert what in programs[0].said
    assert not programs[1].said
