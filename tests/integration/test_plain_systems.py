"""Tests on restricted systems: no home folder, limited mounts, little shared memory."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import platformdirs
import pytest
import torch
from helpers.messages import fails
from helpers.own_disk import run_on_own_disk
from helpers.paths import HELPERS
from torch.utils.data import _utils
from torchvision.models import WeightsEnum

from finetune.checkpoints import run_dir, run_lock
from finetune.checkpoints.run_dir import BEST, LAST, MARKER, PREVIOUS
from finetune.commands.cache import clear_cache, list_cache
from finetune.commands.train import train
from finetune.config.schema import Config, ModelConfig, PreprocessingConfig, RuntimeConfig
from finetune.core import files, locks
from finetune.core.errors import DataError, OutputError
from finetune.core.files import user_cache, write_text
from finetune.core.reporter import SilentReporter
from finetune.data.checks.inspection_cache import InspectionCache
from finetune.data.images import Images
from finetune.data.loading import workers
from finetune.data.loading.dataloader import Batches, PhotoDataset
from finetune.data.loading.views import Views
from finetune.data.loading.workers import resolve_workers
from finetune.data.sources.open import data_root
from finetune.features import cache_folder, compute_format
from finetune.features.compute_format import ComputeFormat, choose_format
from finetune.models.build import resolve_model
from finetune.models.pretrained import load_pretrained

Make = Callable[..., Config]
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def refusing(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_warned", set())


# --- a user without a home folder


@pytest.fixture(params=["raises", "returns ~", "raises KeyError"])
def homeless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the versions of platformdirs do where HOME is unset and the user is unknown."""

    def unknown(name: str) -> Path:
        if request.param == "returns ~":
            return Path("~/.cache") / name
        raise (KeyError if "Key" in request.param else RuntimeError)("no home")

    monkeypatch.setattr(platformdirs, "user_cache_path", unknown)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_there_is_no_cache_and_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="HOME"):
            user_cache()
    assert len(caplog.messages) == 1
    assert "XDG_CACHE_HOME" in caplog.text


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    with InspectionCache() as remembered:
        assert remembered.find([b"a key"]) == {}
        remembered.forget_old()
    monkeypatch.setattr(
        compute_format, "_time", lambda *_, **__: compute_format.FormatChoice(ComputeFormat(), {})
    )
    config = RuntimeConfig(precision="float32")
    runner = lambda _: lambda: torch.zeros(1, 1)  # noqa: E731
    assert choose_format(config, runner, device=CPU, images=1, key="").form == ComputeFormat()
    assert list_cache().stores == ()
    assert clear_cache().stores == ()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_the_drawn_images_are_refused_in_one_line() -> None:
    with fails("output.unwritable"):
        data_root("demo")


def test_without_a_home_folder_a_run_keeps_its_features_in_memory(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: Path("~/.cache/finetune"))
    config = make_config(train={"epochs": 1})
    train(config)
    assert "cache: memory" in (Path(config.output_dir) / "config.yaml").read_text()
    assert len(caplog.messages) == 1
    assert not Path("~").exists()


@pytest.fixture
def no_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Python does with ``~`` where HOME is unset and the user is unknown: nothing."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("no_tilde")
def test_without_a_home_folder_no_folder_named_tilde_is_made() -> None:
    with fails("output.no_home", key="output_dir"):
        run_dir.prepare(Path(os.path.expanduser("~/q")), overwrite=False)  # noqa: PTH111
    with fails("output.no_home", key="features.dir"):
        cache_folder.cache_root("~/q")
    assert not Path("~").exists()
    assert cache_folder.cache_root("~nobody/q") == Path("~nobody/q")


def test_without_a_home_folder_matplotlib_has_a_temporary_folder_and_says_nothing() -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    code = (
        "import os, platformdirs\n"
        "from pathlib import Path\n"
        "platformdirs.user_cache_path = lambda _: Path('~/.cache/finetune')\n"
        "from finetune.report.plots import load_matplotlib\n"
        "load_matplotlib(Path('a.png'))\n"
        "print(os.environ['MPLCONFIGDIR'])\n"
    )
    kept = ("PATH", "PYTHONPATH")
    env = {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": "/dev/null"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert "matplotlib" not in done.stderr.lower()
    assert len(done.stderr.splitlines()) == 1  # our own warning
    assert not Path(done.stdout.strip()).exists()  # removed at the end


def test_features_on_disk_without_a_home_folder_are_an_output_error(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: Path("~/.cache/finetune"))
    with pytest.raises(OutputError, match="HOME"):
        train(make_config(features={"cache": "disk"}))


def test_without_a_home_folder_downloaded_weights_are_read_and_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = resolve_model(ModelConfig(name="shufflenet_v2_x0_5"))
    network = torch.nn.Module()
    places: list[str] = []

    def download(*_: object, **__: object) -> Any:
        places.append(torch.hub.get_dir())
        raise OSError("offline")

    monkeypatch.setattr(torch.hub, "_hub_dir", "~/.cache/torch/hub")
    monkeypatch.setattr(torch.hub, "set_dir", lambda to: setattr(torch.hub, "_hub_dir", to))
    monkeypatch.setattr(WeightsEnum, "get_state_dict", download)
    with pytest.raises(Exception, match="offline"):
        load_pretrained(network, spec)
    assert Path(places[0]).is_absolute()
    assert not Path(places[0]).exists()
    assert torch.hub.get_dir() == "~/.cache/torch/hub"


# --- mounts that refuse calls: CIFS, gcsfuse, S3


@pytest.mark.parametrize("number", UNSUPPORTED)
def test_a_file_that_cannot_be_synced_is_written_with_one_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(number))
    for text in ("one", "two"):
        write_text(tmp_path / "a", text)
    assert (tmp_path / "a").read_text() == "two"
    assert len(caplog.messages) == 1


OF_PERMISSIONS = (
    *(errno.EPERM, errno.EACCES, errno.EROFS, errno.ENOTTY, errno.ENOENT),
    *UNSUPPORTED,
)


@pytest.mark.parametrize("number", OF_PERMISSIONS)
def test_a_file_whose_permissions_cannot_be_changed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "chmod", refusing(number))
    write_text(tmp_path / "a", "one")
    assert (tmp_path / "a").read_text() == "one"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_that_cannot_be_locked_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (tmp_path / MARKER).touch()
    monkeypatch.setattr(run_lock.fcntl, "lockf", refusing(number))
    with run_lock.RunLock(tmp_path):
        pass


def test_a_run_and_its_features_are_written_where_a_mount_refuses_all_but_reading_and_renaming(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("chmod", "utime", "link", "symlink", "fsync", "posix_fallocate"):
        number = errno.EINVAL if name == "fsync" else errno.EOPNOTSUPP
        monkeypatch.setattr(os, name, refusing(number))
    monkeypatch.setattr(run_lock.fcntl, "lockf", refusing(errno.ENOLCK))
    config = make_config()
    train(config)
    assert {BEST, LAST, PREVIOUS} <= {path.name for path in Path(config.output_dir).iterdir()}
    assert "cache: disk" in (Path(config.output_dir) / "config.yaml").read_text()


def test_a_place_that_maps_no_files_keeps_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder.mmap, "mmap", refusing(errno.ENODEV))
    assert cache_folder.refused_writing(tmp_path) == os.strerror(errno.ENODEV)


def test_a_place_without_locks_keeps_no_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks.fcntl, "flock", refusing(errno.ENOLCK))
    assert cache_folder.refused_writing(tmp_path) == os.strerror(errno.ENOLCK)


class Warned(SilentReporter):
    """Remembers the warnings."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("module", "call", "number"),
    [(mmap, "mmap", errno.ENODEV), (locks.fcntl, "flock", errno.ENOLCK)],
    ids=["maps no files", "has no locks"],
)
@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_where_no_features_can_be_stored_they_are_kept_in_memory_and_one_line_says_so(
    make_config: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: Any,
    call: str,
    number: int,
    cache: str,
) -> None:
    expected = train(make_config(features={"cache": "off"}))
    monkeypatch.setattr(files, "_warned", set())
    monkeypatch.setattr(module, call, refusing(number))
    warned = Warned()
    found = train(make_config(features={"cache": cache}), overwrite=True, reporter=warned)
    assert found.features is not None
    assert found.features.reused == 0
    assert found.val is not None
    assert expected.val is not None
    assert found.val.top1 == expected.val.top1
    said = [line for line in warned.lines + caplog.messages if os.strerror(number) in line]
    assert len(said) == 1


# --- worker processes


@pytest.fixture
def batches(photos: Path) -> Batches:
    paths = tuple(sorted((photos / "train").rglob("*.png")))
    images = Images(paths, (0,) * len(paths), ("a",))
    return Batches(
        PhotoDataset(images, PreprocessingConfig(resize=20, crop=16), Views.of("none")),
        batch_size=2,
        workers=2,
        device=CPU,
    )


def test_batches_that_find_no_room_in_shared_memory_are_an_error(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with fails("data.shared_memory", key="data.workers"):
        list(batches.epoch())


def test_shared_memory_that_is_really_too_small_is_an_error(photos: Path) -> None:
    program = HELPERS / "small_shared_memory.py"
    done = run_on_own_disk(program, Path("/dev/shm"), str(photos), size="512k")
    assert "--shm-size" in done.stdout, done.stderr


def test_a_worker_that_is_killed_is_an_error(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    epoch = batches.epoch()
    next(epoch)
    loader: Any = batches._loader
    os.kill(loader.loader._iterator._workers[0].pid, signal.SIGKILL)
    with fails("data.worker_died", key="data.workers"):
        list(epoch)


@pytest.mark.parametrize("error", [ConnectionResetError(), FileNotFoundError(), EOFError()])
def test_a_batch_that_died_with_its_worker_is_an_error(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(_: object) -> Iterator[Any]:
        raise error
        yield

    loader: Any = batches._loader
    monkeypatch.setattr(type(loader.loader), "__iter__", broken)
    with fails("data.worker_died", key="data.workers"):
        list(batches.epoch())


def test_workers_that_cannot_be_started_are_an_error(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader: Any = batches._loader
    monkeypatch.setattr(type(loader.loader), "__iter__", refusing(errno.ENOSYS))
    with pytest.raises(DataError, match=r"set data\.workers to 0"):
        list(batches.epoch())


@pytest.mark.parametrize(("free", "most"), [(64 * 2**20, 2), (2**20, 0), (2**40, 16)])
def test_auto_takes_a_worker_a_core_as_far_as_shared_memory_has_room(
    monkeypatch: pytest.MonkeyPatch, free: int, most: int
) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 16)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    large = Images((), (), (), num_bytes=10**9)
    batch_bytes = 64 * 3 * 224 * 224
    assert resolve_workers("auto", large, CUDA, batch_bytes=batch_bytes) == most
