"""Self-contained HTML page of a run; the template, style and script are in this folder."""

from finetune.report.page.build import Facts, Picture
from finetune.report.page.embedding_map import EmbeddingMap, MapPoint
from finetune.report.page.render import render_page

__all__ = ["EmbeddingMap", "Facts", "MapPoint", "Picture", "render_page"]
