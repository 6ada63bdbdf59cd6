"""Tests of ``finetune predict`` and ``finetune.load``: agreement with ``eval``, inputs."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.messages import check_message, fails
from PIL import Image
from torch import Tensor

import finetune
from finetune.cli import app, support
from finetune.commands.evaluate import EvalOptions, compute
from finetune.commands.predict import image_files, paths_of_list, predict
from finetune.commands.train import train
from finetune.config.schema import Config
from finetune.core.reporter import SilentReporter
from finetune.data.checks.inspect_file import inspect_file
from finetune.data.loading.decoding import read_photo
from finetune.inference.calibration import probabilities
from finetune.inference.predictor import Predictor, open_predictor
from finetune.report.layout import plain
from finetune.report.prediction import AsCsv, render_predictions
from finetune.results.evaluation import Prediction, PredictSummary, Unreadable

Make = Callable[..., Config]
Answers = list[Prediction | Unreadable]


@pytest.fixture
def run(make_config: Make) -> str:
    """The folder of a short run."""
    config = make_config(train={"epochs": 1})
    train(config)
    return config.output_dir


def logits_of(predictor: Predictor, paths: list[str]) -> Tensor:
    return torch.cat([logits for _, logits, _ in predictor.logits(paths)])


@pytest.mark.parametrize(
    ("patterns", "cache"),
    [(["*"], "disk"), (["*"], "off"), ([], "off"), (["*", "!conv5.*"], "disk")],
)
def test_logits_are_those_of_eval_bit_for_bit(
    make_config: Make, patterns: list[str], cache: str
) -> None:
    config = make_config(
        freeze={"patterns": patterns},
        features={"cache": cache},
        data={"batch_size": 6},
        train={"epochs": 1},
    )
    train(config)
    evaluated = compute(
        Path(config.output_dir) / "best.pt", EvalOptions(), reporter=SilentReporter()
    )
    paths = list(map(str, evaluated.images.paths))
    assert torch.equal(logits_of(open_predictor(config.output_dir), paths), evaluated.logits)


def test_other_batches_and_another_order_give_the_same_labels(run: str) -> None:
    evaluated = compute(Path(run) / "best.pt", EvalOptions(), reporter=SilentReporter())
    paths = list(map(str, evaluated.images.paths))
    shares = probabilities(evaluated.logits, None)
    found = finetune.load(run, batch_size=3).predict(paths[::-1])[::-1]
    for row, prediction in zip(shares, found, strict=True):
        assert prediction.label == f"class_{int(row.argmax())}"
        assert prediction.probability == pytest.approx(float(row.max()), abs=1e-5)


def test_a_temperature_in_the_checkpoint_is_used(run: str) -> None:
    options = EvalOptions(calibrate=True)
    evaluated = compute(Path(run) / "best.pt", options, reporter=SilentReporter())
    path = str(evaluated.images.paths[0])
    (prediction,) = finetune.load(run).predict([path])
    temperature = evaluated.opened.metadata.temperature
    assert temperature not in (None, 1.0)
    expected = probabilities(evaluated.logits[:1], temperature).max()
    assert prediction.probability == pytest.approx(float(expected), abs=1e-5)


def test_images_in_any_form_give_one_answer(run: str, photos: Path) -> None:
    path = photos / "val" / "class_0" / "1.png"
    pixels = read_photo(path)
    with Image.open(path) as image:
        forms = [str(path), path, image.copy(), pixels, pixels.permute(1, 2, 0).numpy()]
    model = finetune.load(run)
    answers = model.predict(forms)
    assert {answer.top for answer in answers} == {answers[0].top}
    assert [answer.path for answer in answers] == [str(path), str(path), None, None, None]
    for form in forms:
        assert model.predict(form)[0].label == answers[0].label
    stacks = [torch.stack([pixels] * 3), torch.stack([pixels.permute(1, 2, 0)] * 3).numpy()]
    for stack in stacks:
        assert [answer.label for answer in model.predict(stack)] == [answers[0].label] * 3
    assert sum(share for _, share in answers[0].top) == pytest.approx(1.0)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4)), torch.zeros(3, 4, 4), 7])
def test_what_is_no_image_is_refused(run: str, wrong: Any) -> None:
    images = [torch.zeros(3, 9, 9).byte(), wrong]
    with fails("data.undecodable", path="images[1]"):
        finetune.load(run).predict(images)


def test_an_image_without_pixels_is_refused(run: str) -> None:
    with fails("data.undecodable"):
        finetune.load(run).predict(torch.zeros(3, 0, 5).byte())


def test_arguments_out_of_range_are_refused(run: str) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        finetune.load(run, batch_size=0)
    model = finetune.load(run)
    for wrong in ({"top": 0}, {"threshold": 1.5}, {"threshold": float("nan")}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            model.predict([], **wrong)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, finetune; finetune.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def labelled(run: str, paths: list[str], **options: object) -> Answers:
    answers: Answers = []
    predict(run, paths, show=lambda _, answer: answers.append(answer), **options)  # type: ignore[arg-type]
    return answers


def test_what_cannot_be_read_is_named_in_its_place_and_stops_nothing(
    run: str, photos: Path
) -> None:
    folder = photos / "val" / "class_0"
    (folder / "0a.png").write_text("no image")
    (folder / "2a.jpg").write_bytes(b"")
    answers = labelled(run, [str(folder)], batch_size=2)
    kinds = [type(answer).__name__[0] for answer in answers]
    assert "".join(kinds) == "PUPPUPP"
    assert [answer.path for answer in answers] == sorted(str(path) for path in folder.iterdir())
    (_, text, empty) = [a for a in [None, *answers] if not isinstance(a, Prediction)]
    assert isinstance(text, Unreadable)
    assert isinstance(empty, Unreadable)
    assert "is text, not an image" in text.reason
    assert empty.reason == "is empty: 0 bytes"


def test_nothing_readable_is_an_error(run: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with fails("data.no_images", source="predict"):
        labelled(run, [str(tmp_path / "empty")])
    with fails("data.undecodable"):
        labelled(run, [str(tmp_path / "absent.jpg")])


def test_folders_are_read_to_their_depth_and_files_taken_as_named(run: str, photos: Path) -> None:
    answers = labelled(run, [str(photos / "val"), str(photos / "train" / "class_1" / "8.png")])
    assert len(answers) == 11
    assert answers[-1].path == str(photos / "train" / "class_1" / "8.png")


def test_linked_folders_are_labelled_and_what_is_passed_over_is_said(
    run: str, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "linked").symlink_to(photos / "val" / "class_0")
    (folder / "again").symlink_to(tmp_path)
    (folder / "photo").write_bytes((photos / "val" / "class_0" / "0.png").read_bytes())
    said: list[str] = []
    reporter = SilentReporter()
    reporter.warn = said.append  # type: ignore[method-assign]
    assert len(labelled(run, [str(folder)], reporter=reporter)) == 5
    assert [name in line for name, line in zip(("again", "photo"), said, strict=True)] == [True] * 2


def test_a_folder_of_the_system_is_passed_over_and_said(photos: Path, tmp_path: Path) -> None:
    for name in ("0.png", "@eaDir/0.png"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "new" / name).write_bytes((photos / "val/class_0/0.png").read_bytes())
    said: list[str] = []
    reporter = SilentReporter()
    reporter.warn = said.append  # type: ignore[method-assign]
    assert list(image_files([str(tmp_path / "new")], reporter)) == [str(tmp_path / "new/0.png")]
    assert ["@eaDir" in line for line in said] == [True]


def test_below_the_threshold_an_answer_is_unsure(run: str, photos: Path) -> None:
    answers = labelled(run, [str(photos / "val")], threshold=1.0)
    assert all(isinstance(answer, Prediction) and answer.unsure for answer in answers)
    answers = labelled(run, [str(photos / "val")], threshold=0.0)
    assert not any(isinstance(answer, Prediction) and answer.unsure for answer in answers)


CommandLine = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> CommandLine:
    """Calls the command line within this process: exit code, stdout, stderr."""
    monkeypatch.setattr(support, "debug_is_on", False)

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = app._run()
        captured = capsysbinary.readouterr()
        out = captured.out.decode("utf-8", "surrogateescape")
        return code, out, captured.err.decode()

    return call


def test_a_list_on_stdin_is_read_line_by_line(
    run: str, photos: Path, command_line: CommandLine
) -> None:
    paths = [str(photos / "val" / "class_1" / f"{n}.png") for n in (3, 1)]
    code, out, err = command_line(
        "predict", run, "-", "--format", "jsonl", stdin="\r\n".join(paths).encode()
    )
    assert code == 0
    assert [json.loads(line)["path"] for line in out.splitlines()] == paths
    assert "2 images in" in err
    assert "images/s" in err


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_a_list_of_any_editor_gives_its_paths(encoding: str, ends: str, last: bool) -> None:
    text = ends.join(["a.jpg", "", "b ä.jpg", " ", "c.jpg"]) + ends * last
    assert paths_of_list(text.encode(encoding)) == ["a.jpg", "b ä.jpg", "c.jpg"]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [(b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be")],
)
def test_a_list_is_read_in_the_order_of_bytes_that_its_mark_says(
    mark: bytes, encoding: str
) -> None:
    assert paths_of_list(mark + "a.jpg\r\nb.jpg".encode(encoding)) == ["a.jpg", "b.jpg"]


def test_bytes_of_a_list_that_are_not_utf_8_are_kept() -> None:
    assert list(map(os.fsencode, paths_of_list(b"\xe9.jpg\nb.jpg"))) == [b"\xe9.jpg", b"b.jpg"]


@pytest.mark.parametrize(
    "content",
    ["a.jpg\nb.jpg".encode("utf-16-le"), b"a.jpg\0b.jpg\0", b"\xff\xfea.jpg", b"\xff\xfe\0\xd8"],
    ids=["UTF-16 without a mark", "NUL between paths", "half a character", "half a pair"],
)
def test_a_list_that_is_no_text_is_refused(content: bytes) -> None:
    with fails("data.not_text", key="-"):
        paths_of_list(content)


def test_a_list_of_existing_paths_may_be_separated_by_nul(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a b.jpg", "c\nd.jpg")]
    for path in paths:
        Path(path).touch()
    assert paths_of_list("".join(f"{path}\0" for path in paths).encode()) == paths


def test_a_list_given_as_an_image_is_named_so(run: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\n")
    with fails("data.undecodable"):
        labelled(run, [str(tmp_path / "list.txt")])


def test_a_list_may_hold_paths_as_other_programs_give_them(
    run: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(photos))
    monkeypatch.chdir(photos)
    wanted = [str(photos / "val" / "class_0" / f"{n}.png") for n in range(4)]
    odd = ' "odd" '
    Path(odd).write_bytes(Path(wanted[0]).read_bytes())
    given = [
        *(f'"{wanted[0]}"', f"'{wanted[1]}'", f"\t{wanted[2]} ", "~/val/class_0/3.png"),
        *("val\\class_0\\3.png", f"\ufeff{wanted[0]}", odd, "~/val/class_0"),
    ]
    answers = labelled(run, given)
    assert all(isinstance(answer, Prediction) for answer in answers)
    assert [answer.path for answer in answers[:7]] == [
        *(*wanted, "val/class_0/3.png", wanted[0], odd),
    ]
    assert len(answers) == 7 + 5


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("*.jpg", "pattern"),
        ("photos/img?.jpg", "pattern"),
        ("https://a.example/b.jpg", "is a URL, not a path; download"),
        ("s3://bucket/b.jpg", "is a URL, not a path; download"),
        ("file:///data/a%20b.jpg", "is a URL, not a path; give /data/a b.jpg"),
        ("file:/data/b.jpg", "is a URL, not a path; give /data/b.jpg"),
        ("f/[0-9].jpg", "pattern"),
        ("f/{0,1}.jpg", "pattern"),
        ("file://localhost/tmp/a%20b.jpg", "is a URL, not a path; give /tmp/a b.jpg"),
        ("absent.jpg", "no such file"),
    ],
)
def test_what_is_no_path_is_said_to_be_none(run: str, photos: Path, path: str, hint: str) -> None:
    answers = labelled(run, [path, str(photos / "val" / "class_0" / "0.png")])
    assert isinstance(answers[0], Unreadable)
    assert hint in answers[0].reason
    assert answers[0].path == path
    assert inspect_file("absent.jpg", full=False).reason == "no such file"


def test_csv_gives_every_probability_and_any_file_name(
    run: str, photos: Path, command_line: CommandLine
) -> None:
    name = 'a,"b"\n\udcff.png'
    (photos / "val" / "class_0" / name).write_bytes(
        (photos / "val" / "class_0" / "0.png").read_bytes()
    )
    code, out, _ = command_line(
        "predict", run, str(photos / "val"), "--format", "csv", "--probabilities"
    )
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert len(rows) == 11
    assert Path(rows[5]["path"]).name == name
    for row in rows:
        shares = [float(row[f"probability of class_{label}"]) for label in (0, 1)]
        assert sum(shares) == pytest.approx(1.0, abs=2e-6)
        assert float(row["probability"]) == max(shares)
        assert row["answer"] == row["label"] == f"class_{shares.index(max(shares))}"


def test_csv_gives_as_many_classes_as_were_asked_for() -> None:
    out: list[bytes] = []
    shares = tuple((f"class_{n}", 0.5 ** (n + 1)) for n in range(7))
    answer = Prediction("a.png", "class_0", 0.5, unsure=False, top=shares)
    writer = AsCsv(out.append, others=6, every_class=False)
    writer.show([name for name, _ in shares], answer)
    row = next(csv.DictReader(io.StringIO(b"".join(out).decode(), newline="")))
    assert row["label"] == "class_0"
    assert [row[f"class_{place}"] for place in range(2, 8)] == [name for name, _ in shares[1:]]
    assert [float(row[f"probability_{place}"]) for place in range(2, 8)] == pytest.approx(
        [share for _, share in shares[1:]], abs=1e-6
    )


def test_csv_has_no_more_columns_than_there_are_classes() -> None:
    out: list[bytes] = []
    answer = Prediction("a.png", "cat", 0.75, unsure=False, top=(("cat", 0.75), ("dog", 0.25)))
    writer = AsCsv(out.append, others=4, every_class=False)
    writer.show(["cat", "dog"], answer)
    writer.show(["cat", "dog"], Unreadable("b.png", "no such file"))
    header, *rows = csv.reader(io.StringIO(b"".join(out).decode(), newline=""))
    assert header == [*AsCsv.header, "class_2", "probability_2", "error", *AsCsv.limits]
    assert [len(row) for row in rows] == [len(header)] * 2
    assert rows[1][header.index("error")] == "no such file"


def test_the_table_counts_the_images_of_each_class() -> None:
    answers = [
        Prediction(f"photos/new/{number}.jpg", label, 0.9, unsure=False, top=((label, 0.9),))
        for number, label in enumerate(("cat", "dog", "cat"))
    ]
    summary = PredictSummary("runs/pets", "resnet18", 3, 0, (), 0.5, 6.0, None)
    text = plain(render_predictions(answers, summary))
    assert "Answers   cat 2, dog 1" in text
    assert text.startswith("  in photos/new/\n")
    assert "  0.jpg   cat            90.0%" in text


def test_json_is_one_document_with_the_throughput(
    run: str, photos: Path, command_line: CommandLine
) -> None:
    (photos / "val" / "class_0" / "broken.png").write_text("x")
    code, out, err = command_line(
        "predict", run, str(photos / "val"), "--json", "--top", "1", "--threshold", "1"
    )
    document = json.loads(out)
    assert code == 0
    assert len(document["predictions"]) == 11
    assert document["num_images"] == document["num_unsure"] == 10
    assert document["images_per_s"] > 0
    assert document["predictions"][0]["answer"] == "unsure"
    assert len(document["predictions"][0]["top"]) == 1
    assert "broken.png: cannot be read" in err


def test_a_table_says_what_is_unsure_and_what_is_broken(
    run: str, photos: Path, command_line: CommandLine
) -> None:
    (photos / "val" / "class_0" / "broken.png").write_text("x")
    code, out, _ = command_line("predict", run, str(photos / "val"), "--threshold", "1")
    assert code == 0
    lines = out.splitlines()
    header = ["image", "answer", "probability", "runner-up"]
    lines = lines[[line.split() for line in lines].index(header) + 1 :]
    assert "unsure (class_" in lines[0]
    assert "unreadable" in lines[5]
    assert len(lines[: lines.index("")]) == 11
    assert "unsure 10" in out


def test_images_are_sorted_into_a_folder_for_each_answer(
    run: str, photos: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    answers = labelled(run, [str(photos / "val")], threshold=0.0)
    threshold = sorted(answer.probability for answer in answers)[3] + 1e-9
    (photos / "val" / "class_0" / "broken.png").write_text("x")
    arguments = ["predict", run, str(photos / "val"), "--threshold", str(threshold)]
    code, out, err = command_line(*arguments, "--sort-into", str(tmp_path / "sorted"), "--json")
    assert code == 0, err
    made = json.loads(out)["sorted_into"]
    assert made["counts"]["unsure"] == 4
    assert sum(made["counts"].values()) == 10
    placed = {path.resolve(): path.parent.name for path in (tmp_path / "sorted").rglob("*.png")}
    assert placed == {
        Path(answer.path).resolve(): "unsure" if answer.probability < threshold else answer.label
        for answer in answers
    }
    code, out, err = command_line(*arguments, "--sort-into", str(tmp_path / "sorted"))
    assert code == 6
    code, out, _ = command_line(*arguments, "--sort-into", str(tmp_path / "table"))
    assert "10 images linked in" in out


def test_json_and_another_format_are_refused_together(run: str, command_line: CommandLine) -> None:
    code, _, err = command_line("predict", run, "x.png", "--json", "--format", "csv")
    assert code == 2
    check_message(err)
