"""HTML rendering of the page with Jinja2, with every value escaped.

The page's content security policy allows only its own style and script, by hash, so that injected
markup could neither run nor load anything. For this reason there are no style attributes; elements
with a computed length are SVG.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from finetune.report.page.build import Facts, build_page


def render_page(facts: Facts) -> str:
    """Render the page as a single self-contained file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("finetune.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    folder = resources.files("finetune.report.page")
    parts = ["page"] if facts.embedding_map is None else ["page", "embedding_map"]
    style, script = (
        "".join(folder.joinpath(f"{part}.{kind}").read_text(encoding="utf-8") for part in parts)
        for kind in ("css", "js")
    )
    return environment.get_template("page.html.j2").render(
        page=build_page(facts),
        style=Markup(style),  # noqa: S704  # our own files
        script=Markup(script),  # noqa: S704
        style_hash=_hash(style),
        script_hash=_hash(script),
    )


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
