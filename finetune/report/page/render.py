"""HTML rendering of the pages with Jinja2, with every value escaped.

The pages' content security policy allows only their own style and script, by hash, so that injected
markup could neither run nor load anything. For this reason there are no style attributes; elements
with a computed length are SVG.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from finetune.report.page.build import Facts, build_page
from finetune.report.page.data_page import CheckFacts, build_check_page
from finetune.report.page.suspects_page import SuspectsFacts, build_suspects_page


def render_page(facts: Facts) -> str:
    """Render the page of a run as a single self-contained file."""
    parts = ["page"] if facts.embedding_map is None else ["page", "embedding_map"]
    return _render("page.html.j2", build_page(facts), parts)


def render_check_page(facts: CheckFacts) -> str:
    """Render the page of ``check-data`` as a single self-contained file."""
    return _render("data.html.j2", build_check_page(facts), ["page"])


def render_suspects_page(facts: SuspectsFacts) -> str:
    """Render the page of ``suspects`` as a single self-contained file."""
    return _render("suspects.html.j2", build_suspects_page(facts), ["page", "suspects"])


def _render(template: str, page: Mapping[str, Any], parts: Sequence[str]) -> str:
    """Render a template with the style and the script of these parts."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("finetune.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    folder = resources.files("finetune.report.page")
    style, script = (
        "".join(folder.joinpath(f"{part}.{kind}").read_text(encoding="utf-8") for part in parts)
        for kind in ("css", "js")
    )
    return environment.get_template(template).render(
        page=page,
        style=Markup(style),  # noqa: S704  # our own files
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
