"""Malicious checkpoints, and every command that reads a checkpoint.

    python helpers/hostile_checkpoints.py FOLDER PHOTOS CONFIG

passes each checkpoint to each command and prints as JSON the answers, whether the canary file was
touched, which processes were started, and the peak memory. ``FOLDER`` contains ``sound.pt``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import pickle
import re
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from helpers.counting import times

Sound = tuple[dict[str, torch.Tensor], dict[str, Any]]
"""Tensors and metadata of a checkpoint that is in order."""
Make = Callable[[Path, Sound, Path], object]
"""Writes a hostile one, given where, a sound one, and the canary that its payload touches."""


class Payload:
    """Runs code when it is unpickled by anyone careless."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


class Call:
    """Unpickles as what a function returns."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class Storage:
    """Unpickles as so many numbers of a record of the archive."""

    def __init__(self, numbers: int, key: str = "0") -> None:
        self.identity = ("storage", torch.FloatStorage, key, "cpu", numbers)


def tensor(storage: Storage, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, 0, size, stride, False, OrderedDict())


def pickled(content: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.identity if isinstance(value, Storage) else None

    target = io.BytesIO()
    Pickler(target, protocol=2).dump(content)
    return target.getvalue()


def archive(path: Path, content: Any, record: bytes = bytes(4), **more: bytes) -> None:
    """What torch.save writes, with any pickle and any record."""
    with zipfile.ZipFile(path, "w") as target:
        data = content if isinstance(content, bytes) else pickled(content)
        target.writestr("archive/data.pkl", data)
        target.writestr("archive/byteorder", b"little")
        target.writestr("archive/data/0", record)
        target.writestr("archive/version", b"3\n")
        for name, part in more.items():
            target.writestr(name, part)


def whole(state: Any, metadata: Any) -> dict[str, Any]:
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return {"model": state, "metadata": text}


def stating(**changes: Any) -> Make:
    """Sound but for what it says of itself."""
    return lambda path, sound, _: torch.save(whole(sound[0], sound[1] | changes), path)


def with_tensors(change: Callable[[torch.Tensor], Any], name: str = "conv1.0.weight") -> Make:
    """Sound but for one tensor."""

    def make(path: Path, sound: Sound, canary: Path) -> None:
        state = OrderedDict(sound[0])
        state[name] = change(state[name])
        torch.save(whole(state, sound[1]), path)

    return make


def claiming(*run_lock: Any) -> Make:
    """Its tensor for the head says that it has more numbers than there are."""

    def make(path: Path, sound: Sound, canary: Path) -> None:
        archive(path, whole({"fc.weight": tensor(*run_lock)}, sound[1]))

    return make


def tar(path: Path, sound: Sound, canary: Path) -> None:
    with tarfile.open(path, "w") as target:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            content = pickle.dumps(Payload(canary))
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))


def zip_bomb(path: Path, sound: Sound, canary: Path) -> None:
    """Two gigabytes of zeros in two megabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    million = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = million * 2048 + packer.flush()
    size = 2048 * 2**20
    content = whole({"fc.weight": tensor(Storage(size // 4), (size // 4,), (1,))}, sound[1])
    archive(path, content, packed)
    # The record is packed, and says what it unpacks to.
    data = bytearray(path.read_bytes())
    name = b"archive/data/0"
    local = data.find(name) - 30
    entry = data.rfind(name) - 46
    struct.pack_into("<H", data, local + 8, zipfile.ZIP_DEFLATED)
    struct.pack_into("<I", data, local + 22, size)
    struct.pack_into("<H", data, entry + 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<I", data, entry + 24, size)
    path.write_bytes(data)


def safetensors_header(length: int) -> Make:
    return lambda path, *_: path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 1000)


def legacy(path: Path, sound: Sound, canary: Path) -> None:
    torch.save({"model": Payload(canary)}, path, _use_new_zipfile_serialization=False)


def nested(path: Path, sound: Sound, canary: Path) -> None:
    """Lists in lists, twenty thousand deep."""
    archive(path, b"\x80\2" + b"]" * 20_000 + b"a" * 19_999 + b".")


def script(path: Path, sound: Sound, canary: Path) -> None:
    constants = {"archive/constants.pkl": pickled(())}
    archive(path, Payload(canary), **constants)


def many_classes(path: Path, sound: Sound, canary: Path) -> None:
    """A million classes, and a head for them that is one number."""
    names = [f"{n}" for n in range(10**6)]
    state: dict[str, Any] = {
        name: tensor(Storage(1), tuple(value.shape), (0,) * value.dim())
        for name, value in sound[0].items()
    }
    state["fc.weight"] = tensor(Storage(1), (10**6, 1024), (0, 0))
    state["fc.bias"] = tensor(Storage(1), (10**6,), (0,))
    archive(path, whole(state, sound[1] | {"class_names": names}))


HOSTILE: dict[str, Make] = {
    "reduce.pt": lambda path, _, canary: torch.save({"model": Payload(canary)}, path),
    "pickle.pt": lambda path, _, canary: path.write_bytes(pickle.dumps(Payload(canary))),
    "namespace.pt": lambda path, sound, _: torch.save(
        {"model": sound[0], "metadata": argparse.Namespace(a=1)}, path
    ),
    "tar.pt": tar,
    "legacy.pt": legacy,
    "torchscript.pt": script,
    "distributed.metadata": lambda path, _, canary: path.write_bytes(
        pickle.dumps({"state_dict_metadata": Payload(canary)})
    ),
    "storage-too-large.pt": claiming(Storage(10**9), (10**9,), (1,)),
    "tensor-too-large.pt": claiming(Storage(1), (10**9,), (1,)),
    "tensor-repeated.pt": claiming(Storage(1), (10**10,), (0,)),
    "zip-bomb.pt": zip_bomb,
    "zeros.pt": lambda path, sound, _: archive(path, whole(Call(bytearray, 2 * 2**30), sound[1])),
    "header-too-large.safetensors": safetensors_header(2**62),
    "header-of-90-mb.safetensors": safetensors_header(90_000_000),
    "nested.pt": nested,
    "nested-metadata.pt": lambda path, sound, _: torch.save(whole(sound[0], "[" * 100_000), path),
    "not-a-number.pt": with_tensors(lambda t: torch.full_like(t, float("nan"))),
    "infinite-statistics.pt": with_tensors(
        lambda t: torch.full_like(t, float("inf")), "conv1.1.running_var"
    ),
    "float64.pt": with_tensors(lambda t: t.double()),
    "integers.pt": with_tensors(lambda t: t.long()),
    "complex.pt": with_tensors(lambda t: t.to(torch.complex64)),
    "sparse.pt": with_tensors(lambda t: t.to_sparse()),
    "quantized.pt": with_tensors(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "nowhere.pt": with_tensors(lambda t: t.to("meta")),
    "no-tensor.pt": with_tensors(lambda t: "weights"),
    "another-shape.pt": with_tensors(lambda t: t[:, :-1].clone()),
    "a-tensor-more.pt": lambda path, sound, _: torch.save(
        whole({**sound[0], "../../evil": torch.zeros(1)}, sound[1]), path
    ),
    "many-classes.pt": many_classes,
    "detector.pt": stating(model_name="fasterrcnn_resnet50_fpn", build_flags={}),
    "pretrained.pt": stating(build_flags={"pretrained": True}),
    "weights.pt": stating(build_flags={"weights": "DEFAULT"}),
    "huge-image.pt": stating(model_name="vit_b_16", build_flags={"image_size": 10**6}),
    "same-names.pt": stating(class_names=["a", "a"]),
    "ringing-names.pt": stating(class_names=["\x1b[2J\x07", "b"]),
    "no-names.pt": stating(class_names=[]),
    "endless-temperature.pt": stating(temperature=1e-300),
    "no-preprocessing.pt": stating(preprocessing={"resize": 10**9, "crop": 1}),
    "older.pt": stating(format=0),
    "training-record.pt": lambda path, sound, _: torch.save(
        whole(*sound) | {"training": {"record": "{}", "tensors": {}}}, path
    ),
}
"""By file name; what every command refuses."""
SOUND_TENSORS = frozenset(
    {"float64.pt", "nested-metadata.pt", "older.pt", "detector.pt", "pretrained.pt", "weights.pt"}
    | {"huge-image.pt", "same-names.pt", "ringing-names.pt", "no-names.pt", "no-preprocessing.pt"}
    | {"endless-temperature.pt", "namespace.pt"}
)
"""Checkpoints accepted as weights for training, which uses only their tensors."""

THROUGH_ALL = times("HOSTILE", 12)
"""Number of checkpoints passed to every command; `eval` and `model.weights` get all of them."""
_STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork", "os.spawn")


def commands(path: Path, photos: Path, config: Path) -> dict[str, list[str]]:
    """Every command that reads a checkpoint."""
    file, photo = str(path), str(next(photos.rglob("*.png")))
    every = {
        "weights": ["train", "--config", str(config), "--set", f"model.weights={file}"],
        "eval": ["eval", file, "--data", str(photos)],
    }
    if path.name in SOUND_TENSORS:
        del every["weights"]
    if list(HOSTILE).index(path.name) >= THROUGH_ALL:
        return every
    return every | {
        "calibrate": ["eval", file, "--calibrate"],
        "predict": ["predict", file, photo],
        "report": ["report", file],
        "compare": ["compare", file, file],
        "safetensors": ["export", file, "--format", "safetensors"],
        "exported-program": ["export", file, "--format", "exported-program"],
        "onnx": ["export", file, "--format", "onnx"],
        "resume": ["train", "--resume", run_of(path, config)],
    }


def run_of(path: Path, config: Path) -> str:
    """A run's folder whose last checkpoint is this file."""
    folder = path.parent / "runs" / path.name
    folder.mkdir(parents=True)
    (folder / ".finetune-run").touch()
    (folder / "last.pt").write_bytes(path.read_bytes())
    text = re.sub("^output_dir: .*$", f"output_dir: {folder}", config.read_text(), flags=re.M)
    (folder / "config.yaml").write_text(text)
    return str(folder)


def make_all(folder: Path, canary: Path) -> None:
    content = torch.load(folder / "sound.pt", weights_only=True)
    # Of a format that has no hash yet: whoever lies can hash as well.
    sound = content["model"], json.loads(content["metadata"]) | {"format": 1}
    for name, make in HOSTILE.items():
        make(folder / name, sound, canary)


def try_all(folder: Path, photos: Path, config: Path) -> dict[str, Any]:
    """What each command answers to each file."""
    import finetune
    from finetune.cli import app
    from finetune.core.errors import CheckpointError

    started: list[str] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_STARTS):
            started.append(f"{event} {arguments}")

    sys.addaudithook(watch)
    answers: dict[str, dict[str, Any]] = {}
    for name in HOSTILE:
        for command, arguments in commands(folder / name, photos, config).items():
            errors, output = io.StringIO(), io.StringIO()
            sys.argv = ["finetune", *arguments]
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(output):
                code = app._run()
            answers[f"{name} {command}"] = {"code": code, "said": errors.getvalue()}
        try:
            finetune.load(folder / name)
            answers[f"{name} load"] = {"code": 0, "said": ""}
        except CheckpointError as error:
            answers[f"{name} load"] = {"code": error.exit_code, "said": f"finetune: {error}\n"}
        except Exception as error:
            answers[f"{name} load"] = {"code": 1, "said": repr(error)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"answers": answers, "started": started, "before_mib": before, "peak_mib": peak}


if __name__ == "__main__":
    torch.set_num_threads(1)
    place, images, config_file = map(Path, sys.argv[1:])
    print(json.dumps(try_all(place, images, config_file)))
