"""Self-contained HTML pages of a run and of ``check-data``, with templates, style and script."""

from finetune.report.page.build import Facts, Listed, Picture
from finetune.report.page.data_page import CheckFacts, OddPhotos, Pair, Photo
from finetune.report.page.data_rows import DataFacts
from finetune.report.page.embedding_map import EmbeddingMap, MapPoint
from finetune.report.page.render import render_check_page, render_page

__all__ = [
    "CheckFacts",
    "DataFacts",
    "EmbeddingMap",
    "Facts",
    "Listed",
    "MapPoint",
    "OddPhotos",
    "Pair",
    "Photo",
    "Picture",
    "render_check_page",
    "render_page",
]
