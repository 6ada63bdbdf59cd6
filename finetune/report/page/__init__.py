"""Self-contained HTML pages, with templates, style and script.

There are pages of a run, of ``check-data`` and of ``suspects``.
"""

from finetune.report.page.build import Facts, Listed, Picture
from finetune.report.page.data_page import CheckFacts, OddPhotos, Pair, Photo
from finetune.report.page.data_rows import DataFacts
from finetune.report.page.embedding_map import EmbeddingMap, MapPoint
from finetune.report.page.render import render_check_page, render_page, render_suspects_page
from finetune.report.page.suspects_page import SuspectsFacts

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
    "SuspectsFacts",
    "render_check_page",
    "render_page",
    "render_suspects_page",
]
