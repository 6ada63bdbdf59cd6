"""The wording of each command's errors; ``snapshots/test_messages.txt`` holds what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command_line import CommandLine
from helpers.messages import check_message
from helpers.photos import draw_photos

CONFIG = """\
model: {name: shufflenet_v2_x0_5, weights: none, preprocessing: {resize: 36, crop: 32}}
data: {root: photos, batch_size: 8, workers: 0}
train: {epochs: 1}
output_dir: run
"""

MISTAKES = {
    "train": [
        "",
        "--config absent.yaml",
        "--config pet.yaml",
        "--config photos",
        "--config pets.yaml --set train.epoch=3",
        "--config pets.yaml --set train.epochs=x",
        "--config pets.yaml --set lr=1 --set seed=y --set data.wrokers=1",
        "--config pets.yaml --set data.root=photo",
        "--config pets.yaml --set data.root=photos/train/class_0",
        "--config pets.yaml --set data.root=pets.yaml",
        "--config pets.yaml --set model.name=resnet81",
        "--config pets.yaml --set model.weights=no_such.pth",
        "--config pets.yaml --set model.weights=IMAGENET1K_V9",
        "--config pets.yaml --set model.weights=broken.pt",
        "--config pets.yaml --set freeze.patterns=['*','!conv6.*']",
        "--config pets.yaml --set model.name=alexnet",
        "--config pets.yaml --set output_dir=photos",
        "--config pets.yaml --set output_dir=pets.yaml",
        "--config pets.yaml --resume",
        "--config pets.yaml --resume --overwrite",
        "--config pets.yaml --dry-run --report",
        "--resume absent",
        "--resume run --set output_dir=other",
        "--config pets.yaml --epochs 5",
        "--config pets.yaml --batch-size=4",
        "--config pets.yaml --patience 3",
        "--config pets.yaml --learning-rate 3",
        "--config pets.yaml --model resnet18",
        "--config runs/pats/pets.yaml",
        "--resume runs/pats",
        "runs/x",
        "--config s3://bucket/pets.yaml",
    ],
    "freeze-report": [
        "--config pets.yaml --num-classes 1",
        "--config pets.yaml --stage 2",
        "--config pets.yaml --set data.root=gone",
    ],
    "eval": [
        "",
        "absent",
        "photos",
        "broken.pt",
        "foreign.pt",
        "--checkpoint absent.pt",
        "--checkpoint a.pt --set seed=1",
        "--config pets.yaml",
        "absent --calibrate --split train",
        "absent --split dev",
        "runs/pats",
        "pets",
        "runs",
    ],
    "predict": [
        "photos absent",
        "photos runs/pets",
        "photos/train/class_0/0.png runs/pets photos",
        "runs/pets photos --sort-into photos",
        "absent photos",
        "broken.pt photos",
        "absent",
        "a b --json --format csv",
    ],
    "export": ["absent", "absent --format onnx", "absent --format safetensors --no-preprocessing"],
    "embed": ["photos runs/pets --output x.npz"],
    "compare": ["absent", "absent other"],
    "report": ["absent", "photos", "absent --map tsne", "absent --map pca --format png"],
    "tune": [
        "--config pets.yaml --grid --trials 3",
        "--config pets.yaml --folds 1",
        "--config pets.yaml --set data.val_fraction=2",
        "--config pets.yaml --backbones resnet18,resnet81",
    ],
    "lr-find": ["--config pets.yaml --min-lr 1 --max-lr 0.1", "--config pets.yaml --output lr.jpg"],
    "suspects": [
        "",
        "absent.yaml",
        "pets.yaml --output absent/x.csv",
        "pets.yaml --output broken.pt",
        "pets.yaml --set data.root=few",
    ],
    "check-data": ["", "absent", "photos --set seed=1", "photos/train/class_0"],
    "init": [
        "",
        "absent",
        "photos --model resnet5O",
        "photos --weights no_such.pth --output new.yaml",
    ],
    "show-batch": ["--config pets.yaml --epoch 3", "--config pets.yaml --output sheet.jpg"],
    "learning-curve": [
        "",
        "--config pets.yaml",
        "--config pets.yaml --output curve.jpg",
        "--config pets.yaml --set data.val_fraction=0 --set data.root=photos/train",
    ],
    "next": [
        "photos",
        "absent photos",
        "photos runs/pets",
        "broken.pt photos --output next.txt",
        "runs/pats photos",
    ],
    "models": ["resnot99x", "a b"],
    "trian": [""],
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(monkeypatch, capsys)


@pytest.mark.parametrize("command", MISTAKES)
def test_errors_of_a_command_are_worded_as_in_the_golden_file(
    command: str, run: CommandLine, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photos.parent
    monkeypatch.chdir(folder)
    (folder / "pets.yaml").write_text(CONFIG, encoding="utf-8")
    draw_photos(folder / "few", count=4)
    (folder / "broken.pt").write_bytes(b"PK\x03\x04 cut off")
    (folder / "runs" / "pets").mkdir(parents=True)
    (folder / "runs" / "pets" / "best.pt").touch()
    (folder / "runs" / "pets" / "pets.yaml").touch()
    (folder / "foreign.pt").write_bytes(b"no checkpoint")
    for given in MISTAKES[command]:
        arguments = [command, *given.split()]
        outcome = run(*arguments)
        assert outcome.code in range(1, 8)
        assert outcome.out == ""
        call = " ".join(["finetune", *arguments])
        check_message(f"$ {call}\n(exit code {outcome.code})\n{outcome.err.rstrip()}")
