"""Fuzz tests of configs: each gives a config or one clear message, no traceback."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pytest
from helpers.counting import Count, times
from helpers.messages import check_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from finetune.config.error_messages import _section_in, dotted_keys
from finetune.config.load import load_config, to_yaml
from finetune.config.schema import Config, StageConfig
from finetune.core.errors import ConfigError

EXAMPLES = times("CONFIGS", 200)
WATCHDOG_S = 20
BASE = """\
model:
  name: resnet18
  weights: none
  preprocessing: {resize: 36, crop: 32}
freeze:
  patterns: ["*", "!layer4.*"]
data: {root: photos, batch_size: 8}
augment: {policy: flip}
train: {epochs: 3, label_smoothing: 0.1}
optimizer: {name: sgd, lr: 1e-3}
schedule: {name: step, step_epochs: 2}
output_dir: runs/pets
seed: 7
"""

# Keys


def leaves(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every key that takes a value and no section of its own."""
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from leaves(inner, f"{prefix}{name}.")


SECTIONS = sorted(set(dotted_keys()) - set(leaves()))


# Values

ODD_WORDS = [
    *("", " ", "~", "no", "on", "off", "yes", "true", "1e-4", "010", "1:30", "0x1F", "0o17"),
    *(".nan", ".inf", "-.inf", "1_000", "2026-01-01", "null", "None", "NaN", "<<", "=", "!!x"),
    *("*", "!layer4.*", "&a", "%", "@", "`", "-", "?", "a: b", "[", "{", "a\nb", "a\tb", "\x07"),
    *("../../etc/passwd", "~nobody-here/x", "/dev/null", "x" * 5000, "é", "日本", "\u202e", "😀"),
    *("\ud800", "\x85", "\u2028", "\ufeff", "auto", "DEFAULT", "torchvision:", "x.csv"),
]
ODD_NUMBERS = [0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**299, -(10**30), 0.0, -0.0, 1e-320, 1e308]
SCALARS = st.one_of(
    st.sampled_from(ODD_WORDS),
    st.sampled_from(ODD_NUMBERS),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def as_yaml(value: Any) -> str:
    """JSON is YAML; what JSON has no word for is written as YAML has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_yaml(k)}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    return json.dumps(value)


@st.composite
def with_other_values(draw: st.DrawFn) -> tuple[str, list[str], str | None]:
    """One key of a sound config with another value, by ``--set``: the key has to be named."""
    key = draw(st.sampled_from([*leaves(), *SECTIONS]))
    return BASE, [f"{key}={as_yaml(draw(VALUES))}"], key


@st.composite
def of_other_keys(draw: st.DrawFn) -> tuple[str, list[str], None]:
    """Known and unknown keys, in and out of their sections, with any values."""
    key = st.one_of(st.sampled_from(sorted(Config.model_fields)), st.text(max_size=10))
    inner = st.dictionaries(st.one_of(st.sampled_from([*leaves()]), key), VALUES, max_size=5)
    content = draw(st.dictionaries(key, st.one_of(VALUES, inner), max_size=6))
    return "".join(f"{as_yaml(k)}: {as_yaml(v)}\n" for k, v in content.items()), [], None


@st.composite
def of_stages(draw: st.DrawFn) -> tuple[str, list[str], None]:
    """The sound config with stages, of their own keys or of others."""
    words = sorted({*StageConfig.model_fields, "train", "data", "name"})
    keys = sorted({key.rpartition(".")[2] for key in leaves(StageConfig)})
    section = st.dictionaries(st.sampled_from(keys), VALUES, max_size=3)
    sound = st.sampled_from([{"epochs": 2}, {"freeze": {"patterns": ["*"]}}, {}])
    stage = st.one_of(
        sound, st.dictionaries(st.sampled_from(words), st.one_of(section, VALUES), max_size=4)
    )
    stages = draw(st.one_of(st.lists(stage, max_size=4), VALUES))
    base = BASE.replace("train: {epochs: 3, label_smoothing: 0.1}\n", "")
    return f"{draw(st.sampled_from([BASE, base]))}stages: {as_yaml(stages)}\n", [], None


@st.composite
def with_broken_text(draw: st.DrawFn) -> tuple[str, list[str], None]:
    """The sound config with pieces cut, doubled, exchanged or written over."""
    text = BASE
    junk = st.one_of(
        st.text(max_size=6), st.sampled_from(["\t", "\0", "&a ", "*a", "!!", "- ", "{"])
    )
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + draw(junk) + text[end:]
    return text, [], None


@st.composite
def of_bytes(draw: st.DrawFn) -> tuple[bytes, list[str], None]:
    return draw(st.binary(max_size=200)), [], None


# What an answer must be


class TooSlowError(BaseException):
    """No Exception: nobody may take it for an answer."""


@contextmanager
def watchdog() -> Iterator[None]:
    def bark(signum: int, frame: FrameType | None) -> NoReturn:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(WATCHDOG_S)
    try:
        yield
    except TooSlowError:
        pytest.fail(f"no answer within {WATCHDOG_S} s")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def answer(file: Path, content: str | bytes, overrides: list[str]) -> str | None:
    """What is said about a config; None where it is taken, and then it survives being written."""
    error = refusal(file, content, overrides)
    return None if error is None else str(error)


def refusal(file: Path, content: str | bytes, overrides: list[str]) -> ConfigError | None:
    """The error that refuses a config; None if it is accepted, and then it can be written."""
    encoded = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    file.write_bytes(encoded)
    with watchdog():
        try:
            config = load_config(file, overrides)
        except ConfigError as error:
            return error
        written = to_yaml(config)
        file.write_text(written, encoding="utf-8")
        assert to_yaml(load_config(file)) == written
    return None


def assert_clear(said: str | None, file: Path, key: str | None = None) -> None:
    if said is None:
        return
    lines = said.splitlines()
    assert all(line.isprintable() and len(line) < 1000 for line in lines), said
    assert 0 < len(lines) <= 22, said
    assert "Traceback" not in said
    if key is not None:
        # Above one that is not a section itself, the section is what has to be named.
        named = [key.rsplit(".", at)[0] for at in range(key.count(".") + 1)]
        assert any(name in said for name in named), said
    elif len(lines) == 1:
        assert said.startswith((f"{file}:", f"{file}: ", "--set ")), said


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pets.yaml"


@pytest.mark.parametrize(
    "made",
    [with_other_values(), of_other_keys(), of_stages(), with_broken_text(), of_bytes()],
)
def test_no_generated_config_ends_in_a_traceback(
    file: Path, count: Count, made: st.SearchStrategy[Any]
) -> None:
    tried = 0

    @settings(
        max_examples=-(-EXAMPLES // 5),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(made)
    def check(given: tuple[str | bytes, list[str], str | None]) -> None:
        nonlocal tried
        tried += 1
        content, overrides, key = given
        assert_clear(answer(file, content, overrides), file, key)

    held = False
    try:
        check()
        held = True
    finally:
        count("configs", tried=max(tried, 1), held=tried if held else tried - 1)


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def flow(inner: str) -> str:
    return f"{BASE}x: {inner}\n"


# A trap, and what the answer has to hold.
TRAPS: dict[str, tuple[str | bytes, str]] = {
    "alias bomb": (bomb(), "yaml_feature"),
    "alias to itself": ("model: &m {name: *m}", "yaml_feature"),
    "merge key": ("x: &x {seed: 1}\n<<: *x\n", "yaml_feature"),
    "merge key alone": (f"{BASE}<<: {{seed: 1}}\n", "unknown_key <<"),
    "python object": (f"{BASE}x: !!python/object/apply:os.system [id]\n", "yaml_feature x"),
    "binary": (BASE.replace("resnet18", "!!binary cmVzbmV0MTg="), "yaml_feature model.name"),
    "tag directive": (f"%TAG ! tag:evil,2026:\n---\n{BASE}", ""),
    "newer YAML": (f"%YAML 2.0\n---\n{BASE}", "yaml_syntax"),
    "two documents": (f"{BASE}---\n{BASE}", "yaml_syntax"),
    "3,000 brackets": (flow("[" * 3000 + "]" * 3000), "too_large"),
    "3,000 braces": (flow("{a: " * 3000), "too_large"),
    "3,000 dashes": (f"x: \n  {'- ' * 3000}x\n", "too_large"),
    "3,000 questions": (f"{'? ' * 3000}x\n", "too_large"),
    "2 MB of comment": (BASE + "#" * 2_000_000, "too_large"),
    "1 MB of values": (flow(f"[{'1,' * 400_000}1]"), "too_large"),
    "100,000 keys": ("".join(f"k{n}: 1\n" for n in range(100_000)), "too_large"),
    "3,000 keys": (BASE + "".join(f"k{n}: 1\n" for n in range(3_000)), "several_problems"),
    "3,000 equal keys": (BASE + "x: 1\n" * 3_000, "several_problems"),
    "a word of 900 kB": (BASE.replace("resnet18", "r" * 900_000), "unknown_model model.name"),
    "a key of 900 kB": (f"{BASE}? {'k' * 900_000}\n: 1\n", "unknown_key"),
    "a list of 4,000": (BASE.replace("sgd", f"[{'1,' * 4_000}1]"), "invalid_value optimizer.name"),
    "a duplicate key": (f"{BASE}seed: 8\n", "duplicate_key seed"),
    "a duplicate section": (f"{BASE}train: {{epochs: 4}}\n", "duplicate_key train"),
    "1e-4": (BASE.replace("1e-3", "1e-4"), ""),
    "1e999": (BASE.replace("1e-3", "1e999"), "invalid_value optimizer.lr"),
    "no": (BASE.replace("none", "no"), ""),  # a file of weights with that name, then
    "on": (BASE.replace("policy: flip", "policy: on"), "invalid_value augment.policy"),
    "010": (BASE.replace("epochs: 3", "epochs: 010"), ""),
    "0x10": (BASE.replace("epochs: 3", "epochs: 0x10"), "invalid_value train.epochs"),
    "1:30": (BASE.replace("epochs: 3", "epochs: 1:30"), "invalid_value train.epochs"),
    ".nan": (BASE.replace("1e-3", ".nan"), "invalid_value optimizer.lr"),
    ".inf": (BASE.replace("0.1", ".inf"), "invalid_value train.label_smoothing"),
    "a date": (BASE.replace("epochs: 3", "epochs: 2026-01-01"), "invalid_value train.epochs"),
    "a huge number": (BASE.replace("seed: 7", f"seed: {'9' * 200}"), "invalid_value seed"),
    "a number of 5,000 digits": (BASE.replace("seed: 7", f"seed: {'9' * 5000}"),
        "unreadable_value seed"),
    "epochs without end": (BASE.replace("epochs: 3", f"epochs: {10**30}"),
        "invalid_value train.epochs"),
    "a batch without end": (BASE.replace("batch_size: 8", f"batch_size: {10**30}"),
        "invalid_value data.batch_size"),
    "an empty file": (b"", "missing_key model"),
    "a list": ("- a\n- b\n", "not_a_section"),
    "a scalar": ("42", "not_a_section"),
    "null bytes": (BASE.replace("pets", "p\0ts"), "yaml_syntax"),
    "nothing but null bytes": (bytes(500), "yaml_syntax"),
    "an escape": (BASE.replace("pets", "p\x1b[31mts"), "yaml_syntax"),
    "a surrogate": (BASE.replace("runs/pets", '"\\ud800"'), "unreadable_value output_dir"),
    "a surrogate for a name": (BASE.replace("resnet18", '"\\ud83d"'),
        "unreadable_value model.name"),
    "a surrogate as key": (f'{BASE}"\\udc80": 1\n', "unreadable_value ?"),
    "a key of two lines": (f'{BASE}"a\\nb": 1\n', "unknown_key a\\nb"),
    "a key that rings": (f'{BASE}"\\a": 1\n', "unknown_key \\x07"),
    "an empty key": (f'{BASE}"": 1\n', "unknown_key"),
    "a list as key": (f"{BASE}? [a, b]\n: 1\n", "yaml_syntax"),
    "null as key": (f"{BASE}~: 1\n", "yaml_syntax"),
    "UTF-16": (BASE.encode("utf-16"), "not_text"),
    "Latin-1": (BASE.replace("pets", "pêts").encode("latin-1"), "not_text"),
    "a byte order mark": (b"\xef\xbb\xbf" + BASE.encode(), ""),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + BASE.encode(), ""),
    "Windows lines": (BASE.replace("\n", "\r\n").encode(), ""),
    "tabs": (BASE.replace("  name", "\tname"), "yaml_syntax"),
    "paths as lists": (BASE.replace("root: photos", "root: [a, b]"), "invalid_value data.root"),
    "a section as list": (BASE.replace("train: {epochs: 3", "train: [{epochs: 3").replace(
        "0.1}", "0.1}]"), "not_a_section train"),
    "a section as text": (BASE.replace("{name: sgd, lr: 1e-3}", "sgd"), "not_a_section optimizer"),
    "an unquoted pattern": (BASE.replace('"!layer4.*"', "!layer4.*"), "yaml_syntax"),
    "a pattern of parentheses": (
        BASE.replace("batch_size: 8", f"batch_size: 8, group_pattern: '{'(' * 20_000}'"),
        "invalid_value data.group_pattern",
    ),
    "a repetition too large": (
        BASE.replace("batch_size: 8", "batch_size: 8, group_pattern: 'a{99999999999999999999}'"),
        "invalid_value data.group_pattern",
    ),
    "an old kind of pattern": (
        BASE.replace("batch_size: 8", "batch_size: 8, group_pattern: '[[a]'"), ""),
    "a std that vanishes": (
        BASE.replace("crop: 32}", "crop: 32, std: [1e-320, 1, 1]}"),
        "invalid_value model.preprocessing.std"),
    "a mean without end": (
        BASE.replace("crop: 32}", "crop: 32, mean: [1e308, 1, 1]}"),
        "invalid_value model.preprocessing.mean"),
}  # fmt: skip


def test_there_are_forty_traps() -> None:
    assert len(TRAPS) >= 40


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_answered_in_words(file: Path, name: str, count: Count) -> None:
    content, expected = TRAPS[name]
    error = refusal(file, content, [])
    said = None if error is None else str(error)
    held = expected in kinds_of(error) and len(said or "") < 20_000
    count("config-traps", tried=1, held=int(held))
    assert held, said
    if error is not None:
        check_error(error)
    if expected != "several_problems":
        assert_clear(said, file)


def kinds_of(error: ConfigError | None) -> set[str]:
    """Kind of an error and of each of its problems, alone and with the key."""
    if error is None:
        return {""}
    listed = [(one.kind.removeprefix("config."), one.key) for one in (error, *error.problems)]
    return {kind for kind, _ in listed} | {f"{kind} {key}" for kind, key in listed}


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/proc/self/mem"])
def test_a_config_that_never_ends_is_not_read_whole(path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"no {path} here")
    with watchdog(), pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value) or "is required" in str(caught.value)


@pytest.mark.parametrize(
    "override", ["a\nb=1", "seed=\x1b[31m", "=", "..=1", "seed", "x" * 5000 + "=1", "\udc80=1"]
)
def test_an_override_cannot_steer_a_terminal(file: Path, override: str) -> None:
    said = answer(file, BASE, [override])
    assert said is not None
    assert_clear(said, file)
