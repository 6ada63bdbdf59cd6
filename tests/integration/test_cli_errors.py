"""Tests of the command line: error messages, exit codes, help, closed streams."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from helpers.command_line import CommandLine, Outcome
from helpers.messages import check_error, check_message, fails
from helpers.paths import REPOSITORY
from typer.testing import CliRunner

import finetune.commands
import finetune.commands.ladder  # imports train, which a test replaces
from finetune.checkpoints import run_dir
from finetune.cli import app, support
from finetune.core import errors
from finetune.core.errors import Interrupted, OutputError
from finetune.core.files import is_folder

CONFIG = """\
model: {name: shufflenet_v2_x0_5, weights: none, preprocessing: {resize: 36, crop: 32}}
data: {root: PHOTOS, batch_size: 8, workers: 0}
train: {epochs: 1}
output_dir: RUN
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    """Calls the command line within this process."""
    return CommandLine(monkeypatch, capsys)


@pytest.fixture
def config(tmp_path: Path, photos: Path) -> str:
    """The path of a config that would train within a second."""
    path = tmp_path / "pets.yaml"
    text = CONFIG.replace("PHOTOS", str(photos)).replace("RUN", str(tmp_path / "run"))
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.fixture
def train_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Puts a command in train's place that fails as told; needs no torch."""

    def arrange(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        stub = SimpleNamespace(train_in_group=fail, dry_run=fail)
        monkeypatch.setattr(finetune.commands, "train", stub, raising=False)

    return arrange


def assert_one_message(outcome: Outcome, *, code: int) -> None:
    """stderr holds one line of ours, stdout nothing."""
    assert outcome.code == code
    assert outcome.out == ""
    assert outcome.err.startswith("finetune: ")
    assert outcome.err.count("\n") == 1


# Without torch

WITHOUT_TORCH = """
import json, sys
from finetune.cli import app
for arguments, code in json.loads(sys.argv[1]):
    sys.argv = ["finetune", *arguments]
    assert app._run() == code, arguments
    assert "torch" not in sys.modules, arguments
"""


def test_help_and_a_wrong_config_answer_without_torch(config: str) -> None:
    photos = str(Path(config).parent / "photos")
    given = [
        (["--help"], 0),
        (["--version"], 0),
        (["train", "--help"], 0),
        (["freeze-report", "--help"], 0),
        (["eval", "--help"], 0),
        (["models", "--help"], 0),
        (["init", "--help"], 0),
        (["init", "absent"], 3),
        (["init", "absent", "--model", "resnet5O"], 2),
        (["show-batch", "--help"], 0),
        (["show-batch", "--config", "absent.yaml"], 2),
        (["train", "--confg", "x"], 2),
        (["train", "--config", "absent.yaml"], 2),
        (["train", "--resume", "absent"], 6),
        (["train", "--config", config, "--set", "train.epochs=x"], 2),
        (["train", "--config", config, "--set", "model.name=resnet81"], 2),
        (["freeze-report", "--config", config, "--set", "lr=1"], 2),
        (["eval", "--config", "absent.yaml"], 2),
        (["eval"], 2),
        (["check-data"], 2),
        (["check-data", "no/such/folder"], 3),
        (["check-data", photos], 3),  # val repeats pictures of train
    ]
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(given)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by name."""
    group: Any = typer.main.get_command(app.app)
    yield "finetune", group
    for name, command in group.commands.items():
        yield name, command
        yield from ((f"{name} {sub}", inner) for sub, inner in _inner(command).items())


def _inner(command: Any) -> dict[str, Any]:
    """The commands of a group such as ``cache``; none of a plain command."""
    return getattr(command, "commands", {})


GROUPS = {"finetune", "cache"}


@pytest.mark.parametrize("columns", ["60", "80"])
def test_the_list_of_commands_is_not_cut_off(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    listed = CliRunner().invoke(app.app, ["--help"]).output.partition("Your photos:")[2]
    assert "Fine-tune the unfrozen part" in listed
    assert "..." not in listed


def test_commands_are_listed_in_the_order_of_their_use() -> None:
    listed = CliRunner().invoke(app.app, ["--help"]).output.partition("Your photos:")[2]
    names = re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE)
    assert names[:4] == ["init", "check-data", "suspects", "show-batch"]
    assert set(names) == {name for name, _ in commands() if " " not in name} - {"finetune"}


@pytest.mark.parametrize("name", [name for name, _ in commands() if name not in GROUPS])
def test_the_help_of_a_command_ends_with_an_example(name: str) -> None:
    shown = CliRunner().invoke(app.app, [*name.split(), "--help"]).output
    assert re.search(rf"^  Example: finetune {name}\b", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--dry-run", "--overwrite"),
        ("freeze-report",),
        ("show-batch", "--output", "sheet.png"),
        ("check-data",),
    ],
)
def test_a_run_stands_for_its_config(
    run: CommandLine,
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "pets").mkdir(parents=True)
    (tmp_path / "runs" / "pets" / "config.yaml").write_text(Path(config).read_text())
    name, *options = command
    outcomes = [
        run(name, *place, *options, "--json", "--quiet")
        for place in (["runs/pets"], ["--config", "runs/pets"], [config])
    ]
    assert len({outcome.code for outcome in outcomes}) == 1
    keys = [sorted(json.loads(outcome.out)) for outcome in outcomes]
    assert keys[0] == keys[1] == keys[2]


def test_a_config_stands_for_its_run(run: CommandLine, config: str, tmp_path: Path) -> None:
    outcome = run("report", config)
    assert outcome.code == 5
    assert str(tmp_path / "run") in outcome.err


@pytest.mark.parametrize("command", ["train", "eval", "check-data", "models"])
def test_an_optional_argument_has_one_pair_of_brackets(command: str) -> None:
    usage = CliRunner().invoke(app.app, [command, "--help"]).output.partition("\n")[0]
    assert re.search(r"\[OPTIONS\] \[[A-Z]+\]$", usage)


# Exit codes


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("FinetuneError", 1),
        ("ConfigError", 2),
        ("DataError", 3),
        ("ModelError", 4),
        ("CheckpointError", 5),
        ("OutputError", 6),
        ("ResultError", 7),
    ],
)
def test_each_kind_of_error_has_its_exit_code(
    run: CommandLine, config: str, train_raises: Callable[..., None], kind: str, code: int
) -> None:
    train_raises(getattr(errors, kind)("it is so", kind="x", path="photos", to_do="do this"))
    outcome = run("train", "--config", config)
    assert outcome == Outcome(code, "", "finetune: photos: it is so; do this\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "--confg", "x"],
        ["train", "--resume"],
        ["train", "runs/x"],
        ["train", "--config", "CONFIG", "--resume", "--overwrite"],
        ["train", "--config", "CONFIG", "--resume", "--dry-run"],
        ["train", "--resume", "runs/x", "--set", "output_dir=runs/y"],
        ["trian"],
        ["train", "--config"],
        ["train", "--config", "absent.yaml"],
        ["freeze-report", "--config", "CONFIG", "--num-classes", "1"],
        ["eval"],
        ["eval", "--checkpoint", "a.pt", "--config", "CONFIG"],
        ["eval", "--checkpoint", "a.pt", "--set", "seed=1"],
        ["eval", "--checkpoint", "a.pt", "--split", "dev"],
        ["export", "x"],
        ["models", "a", "b"],
        ["models", "resnot99x"],
    ],
)
def test_a_wrong_command_line_is_code_2(
    run: CommandLine, config: str, arguments: list[str]
) -> None:
    outcome = run(*[config if argument == "CONFIG" else argument for argument in arguments])
    assert_one_message(outcome, code=2)
    check_message(outcome.err)


def test_an_option_named_like_a_config_key_is_answered_with_set(
    run: CommandLine, config: str
) -> None:
    outcome = run("train", "--config", config, "--epochs", "5")
    assert_one_message(outcome, code=2)
    assert "--set train.epochs=" in outcome.err


def test_a_wrong_config_is_code_2(run: CommandLine, config: str) -> None:
    outcome = run("train", "--config", config, "--set", "train.epochs=x")
    assert_one_message(outcome, code=2)
    check_message(outcome.err)


def test_absent_photos_are_code_3(run: CommandLine, config: str) -> None:
    outcome = run("train", "--config", config, "--set", "data.root=no/such/folder")
    assert_one_message(outcome, code=3)
    check_message(outcome.err)


def test_absent_weights_are_code_4(run: CommandLine, config: str) -> None:
    outcome = run("train", "--config", config, "--set", "model.weights=no_such.pth")
    assert_one_message(outcome, code=4)
    check_message(outcome.err)


def test_an_absent_checkpoint_is_code_5(run: CommandLine) -> None:
    outcome = run("eval", "--checkpoint", "no_such.pt")
    assert_one_message(outcome, code=5)
    check_message(outcome.err)


def test_what_never_ends_is_not_read(run: CommandLine, config: str, tmp_path: Path) -> None:
    pipe = tmp_path / "best.pt"
    os.mkfifo(pipe)
    outcome = run("eval", "--checkpoint", str(pipe))
    assert_one_message(outcome, code=5)
    check_message(outcome.err)
    outcome = run("train", "--config", config, "--set", f"model.weights={pipe}")
    assert_one_message(outcome, code=4)
    check_message(outcome.err)


def test_a_config_that_was_never_trained_is_code_5_and_names_its_checkpoint(
    run: CommandLine, config: str, tmp_path: Path
) -> None:
    outcome = run("eval", "--config", config)
    assert_one_message(outcome, code=5)
    assert str(tmp_path / "run" / "best.pt") in outcome.err


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
@pytest.mark.parametrize("below", ["", "/run"])
def test_an_output_folder_that_cannot_be_is_code_6_before_any_work(
    run: CommandLine, config: str, arguments: list[str], below: str
) -> None:
    outcome = run("train", "--config", config, *arguments, "--set", f"output_dir={config}{below}")
    assert_one_message(outcome, code=6)
    assert "output_dir" in outcome.err


def test_a_signal_is_its_own_code(
    run: CommandLine, config: str, train_raises: Callable[..., None]
) -> None:
    train_raises(Interrupted("terminated", exit_code=143))
    assert run("train", "--config", config) == Outcome(143, "", "finetune: terminated\n")


def test_ctrl_c_is_code_130(
    run: CommandLine, config: str, train_raises: Callable[..., None]
) -> None:
    train_raises(KeyboardInterrupt())
    assert run("train", "--config", config) == Outcome(130, "", "finetune: interrupted\n")


STOPPED = """
import os, signal, sys, time, types
import finetune.commands
import finetune.commands.ladder
from finetune.cli import app

def stop(*_, **__):
    os.kill(os.getpid(), getattr(signal, name))
    time.sleep(20)

name, config = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
finetune.commands.train = types.SimpleNamespace(train_in_group=stop)
sys.argv = ["finetune", "train", "--config", config]
app.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_real_signal_stops_the_program_in_one_line(config: str, signal: str, code: int) -> None:
    command = [sys.executable, "-c", STOPPED, signal, config]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert_one_message(Outcome(done.returncode, done.stdout, done.stderr), code=code)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_no_error(closed: str) -> None:
    command = f'exec "$0" -m finetune cache list {closed}'
    process = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, check=False, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert bool(process.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.parametrize("arguments", [["--help"], ["models"]])
def test_a_reader_who_leaves_early_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        process = subprocess.run(
            [sys.executable, "-m", "finetune", *arguments],
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (process.returncode, process.stderr) == (0, b"")


ENDING = """
import atexit, os, signal, sys
from finetune.cli import app

class TakenApart:
    def __del__(self):
        print("taken apart")

def at_the_end():
    os.kill(os.getpid(), signal.SIGTERM)
    print("registered for the end")

kept = TakenApart()
atexit.register(at_the_end)
sys.argv = ["finetune", "eval"]
app.main()
"""


def test_the_end_runs_what_is_registered_and_takes_nothing_apart() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "registered for the end\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), RuntimeError("odd")])
def test_a_mistake_of_ours_is_code_1_and_says_how_to_see_more(
    run: CommandLine, config: str, train_raises: Callable[..., None], error: Exception
) -> None:
    train_raises(error)
    outcome = run("train", "--config", config)
    assert_one_message(outcome, code=1)
    assert f"unexpected {type(error).__name__}: {error}" in outcome.err
    assert "--debug" in outcome.err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("operator torchvision::nms does not exist\nmore of it"),
        ImportError("libtorch.so: cannot open"),
        OSError(),
    ],
)
def test_a_torch_that_does_not_fit_its_torchvision_is_one_line_with_the_fix(
    error: Exception,
) -> None:
    with fails("machine.torch_import") as caught, support.torch_imports():
        raise error
    assert "\n" not in str(caught.value)


# Output


def test_debug_shows_the_traceback_before_the_message(
    run: CommandLine, config: str, train_raises: Callable[..., None]
) -> None:
    train_raises(errors.DataError("gone", kind="data.x", path="photos"))
    outcome = run("train", "--config", config, "--debug")
    assert outcome.err.startswith("Traceback (most recent call last):")
    assert outcome.err.endswith("\nfinetune: photos: gone\n")
    assert (outcome.code, outcome.out) == (3, "")


def test_many_problems_are_still_one_message(run: CommandLine, config: str) -> None:
    outcome = run("train", "--config", config, "--set", "train.epochs=x", "--set", "seed=y")
    assert outcome.err.count("finetune: ") == 1
    assert len(outcome.err.splitlines()) == 3


def test_an_error_prints_nothing_on_stdout_even_as_json(run: CommandLine, config: str) -> None:
    outcome = run("train", "--config", config, "--json", "--set", "data.root=no/such/folder")
    assert_one_message(outcome, code=3)


def test_json_is_one_document_on_stdout(run: CommandLine) -> None:
    outcome = run("models", "squeeze", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    names = [row["name"] for row in json.loads(outcome.out)["models"]]
    assert names == ["squeezenet1_0", "squeezenet1_1"]


def test_a_dry_run_as_json_keeps_its_notes_off_stdout(run: CommandLine, config: str) -> None:
    outcome = run("train", "--config", config, "--dry-run", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["dry_run"] is True
    assert outcome.err != ""


def test_a_dry_run_writes_nothing(run: CommandLine, config: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run("train", "--config", config, "--dry-run").code == 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["train", "--help"]])
def test_help_goes_to_stdout(run: CommandLine, arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: ")


def test_no_arguments_show_the_help_as_it_is(run: CommandLine) -> None:
    assert (run().err or run().out).strip() == run("--help").out.strip()


def test_python_dash_m_is_the_same_program() -> None:
    command = [sys.executable, "-m", "finetune", "eval"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert_one_message(Outcome(done.returncode, done.stdout, done.stderr), code=2)


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    assert (COMMANDS[name].help or "").strip()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [option.name for option in COMMANDS[name].params if not option.help]
    assert silent == []


@pytest.mark.parametrize(
    "name", [name for name, command in COMMANDS.items() if not _inner(command)]
)
@pytest.mark.parametrize("option", ["--json", "--debug"])
def test_every_command_takes_json_and_debug(name: str, option: str) -> None:
    assert option in [word for given in COMMANDS[name].params for word in given.opts]


# The run folder


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """The folder of a run, with a file of the user's own."""
    folder = tmp_path / "used"
    run_dir.prepare(folder, overwrite=False)
    for name in run_dir._OWN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("ours", encoding="utf-8")
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "plots").mkdir()
    return folder


def refusal(folder: Path, *, overwrite: bool) -> OutputError:
    """The error with which a run refuses its folder, which it leaves as it was."""
    before = sorted(folder.rglob("*")) if is_folder(folder) else []
    with pytest.raises(OutputError) as caught:
        run_dir.prepare(folder, overwrite=overwrite)
    assert (sorted(folder.rglob("*")) if is_folder(folder) else []) == before
    check_error(caught.value)
    assert caught.value.key == "output_dir"
    assert caught.value.path == str(folder)
    return caught.value


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_absent_is_made(tmp_path: Path, overwrite: bool) -> None:
    run_dir.prepare(tmp_path / "a" / "b", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [run_dir.MARKER]


def test_a_folder_is_ours_before_anything_else_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it held files and no mark, and the next run refused it."""

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    monkeypatch.setattr(Path, "unlink", killed)
    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(SystemExit):
        run_dir.prepare(tmp_path / "run", overwrite=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [run_dir.MARKER]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    run_dir.prepare(tmp_path, overwrite=False)
    assert (tmp_path / run_dir.MARKER).is_file()


def test_a_folder_with_a_run_is_refused_without_overwrite(used: Path) -> None:
    assert refusal(used, overwrite=False).kind == "output.exists"


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(used: Path) -> None:
    run_dir.prepare(used, overwrite=True)
    left = {path.name for path in used.iterdir()}
    assert left == {run_dir.MARKER, "notes.txt", "plots"}
    assert (used / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_without_our_marker_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "best.pt").write_text("somebody's", encoding="utf-8")
    assert refusal(tmp_path, overwrite=overwrite).kind == "output.foreign_files"


def test_a_file_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x", encoding="utf-8")
    assert refusal(tmp_path / "run", overwrite=True).kind == "output.not_a_folder"


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    error = refusal(tmp_path / "file" / "run", overwrite=False)
    assert error.kind == "output.not_a_folder"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300), overwrite=False).kind == "output.name_too_long"


def test_a_used_folder_is_code_6_on_the_command_line(
    run: CommandLine, config: str, used: Path
) -> None:
    outcome = run("train", "--config", config, "--set", f"output_dir={used}")
    assert_one_message(outcome, code=6)


# Addresses in place of paths


@pytest.mark.parametrize("address", ["s3://bucket/x", "gs://b/x", "https://h.org/x", "hf://m/x"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("check-data", "{}"),
        ("init", "{}"),
        ("init", "data", "--output={}"),
        ("init", "data", "--weights", "{}"),
        ("train", "--config", "{}"),
        ("train", "--resume", "{}"),
        ("eval", "{}"),
        ("eval", "run", "--data", "{}"),
        ("predict", "{}", "photo.jpg"),
        ("predict", "run", "--list", "{}"),
        ("export", "run", "--format", "onnx", "--output", "{}"),
        ("compare", "run", "{}"),
        ("report", "{}"),
        ("cache", "list", "--dir", "{}"),
    ],
)
def test_an_address_is_refused_as_it_was_spelled(
    run: CommandLine, arguments: tuple[str, ...], address: str
) -> None:
    outcome = run(*(argument.format(address) for argument in arguments))
    assert_one_message(outcome, code=2)
    assert f"'{address}' is a URL" in outcome.err


@pytest.mark.parametrize(
    "key", ["data.root", "data.folder", "output_dir", "features.dir", "model.weights"]
)
def test_an_address_in_a_config_is_refused_by_its_key(
    run: CommandLine, config: str, key: str
) -> None:
    outcome = run("train", "--config", config, "--set", f"{key}=s3://bucket/x")
    assert_one_message(outcome, code=2)
    assert f"{key}=s3://bucket/x: 's3://bucket/x' is a URL" in outcome.err


def test_a_file_address_is_answered_with_its_path(run: CommandLine) -> None:
    assert "the path that follows file://" in run("check-data", "file:///photos").err
