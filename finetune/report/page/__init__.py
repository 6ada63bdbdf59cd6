"""One self-contained HTML page of a run; the template, its style and its script lie beside."""

from finetune.report.page.build import Facts, Picture
from finetune.report.page.render import render_page

__all__ = ["Facts", "Picture", "render_page"]
