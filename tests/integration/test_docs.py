"""Tests of the documents: links, anchors and configs are valid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import REPOSITORY

from finetune.config import yaml_loader
from finetune.config.load import load_config
from finetune.config.schema import TuneConfig

DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
MINIMAL = "model: {name: mobilenet_v2}\ndata: {root: photos/pets}\n"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """What a link may name behind #: each heading in lower case, its marks left out and hyphens for
    its spaces; a repeated one has a number, as on GitHub."""
    found: dict[str, int] = {}
    for title in _HEADING.findall(_BLOCK.sub("", path.read_text())):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[anchor] = found.get(anchor, 0) + 1
    return {
        anchor if not number else f"{anchor}-{number}"
        for anchor, times in found.items()
        for number in range(times)
    }


def dead_links(path: Path) -> list[str]:
    """Relative links to no file, or to no heading of one."""
    prose = re.sub(r"`[^`\n]*`", "", _BLOCK.sub("", path.read_text()))
    dead = []
    for link in _LINK.findall(prose):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    assert dead_links(path) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text(
        "# `One` and [two](x)\n\n## One\n\n```sh\n# no heading\n```\n\n## One\n"
    )
    good = ["there.md", "there.md#one-and-two", "there.md#one-1", "#here", "https://example.org/x"]
    bad = ["gone.md", "there.md#no-heading", "there.md#one-2", "#gone", "gone.md#one"]
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n\n" + "".join(f"[`a`]({link})\n" for link in (*good, *bad)) + "`[code](x.md)`\n"
    )
    assert dead_links(page) == bad


def test_the_readme_leads_to_every_document() -> None:
    text = DOCUMENTS[0].read_text()
    names = [f"docs/{path.name}" for path in DOCUMENTS[2:]]
    assert [name for name in names if f"]({name})" not in text] == []


def configs() -> Iterator[Any]:
    """Each config in the documents, whole or in part."""
    for path in DOCUMENTS:
        blocks = [text for language, text in _BLOCK.findall(path.read_text()) if language == "yaml"]
        for number, text in enumerate(blocks, start=1):
            yield pytest.param(text, id=f"{path.name}-{number}")


@pytest.mark.parametrize("text", [*configs()])
def test_every_config_in_the_documents_loads(text: str, tmp_path: Path) -> None:
    file = tmp_path / "pets.yaml"
    file.write_text(text if "model:" in text else MINIMAL + text)
    load_config(file)


def example(page: str, heading: str) -> str:
    """The first config under a heading."""
    text = (REPOSITORY / "docs" / page).read_text()
    found = re.search(rf"^#+ {heading}$.*?^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def paths_of(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Every key with those that it stands under."""
    found: set[tuple[str, ...]] = set()
    for key, value in values.items():
        inner = paths_of(value, (*above, key)) if isinstance(value, Mapping) else set()
        found |= {(*above, key)} | inner
    return found


def test_the_page_of_keys_has_every_key_with_its_default(tmp_path: Path) -> None:
    text = example("config.md", "Every key")
    (tmp_path / "page").mkdir()
    page, minimal = tmp_path / "page" / "pets.yaml", tmp_path / "pets.yaml"
    page.write_text(text)
    minimal.write_text(MINIMAL)
    defaults = load_config(minimal).model_dump()
    assert load_config(page).model_dump() == defaults
    missing = paths_of(defaults) - paths_of(yaml_loader.parse(text).value)
    assert missing == {("stages",)}  # which may not be empty
    assert "\n# stages: " in text


def test_the_example_of_a_search_has_every_key() -> None:
    given = yaml_loader.parse(example("training.md", "A search")).value
    assert given["tune"].keys() == TuneConfig.model_fields.keys()
