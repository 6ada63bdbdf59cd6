"""``finetune suspects --report``: a page on which a person decides about each photo."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from finetune.core.files import write_text
from finetune.core.reporter import Reporter
from finetune.core.text import today, valid_utf8
from finetune.inference.thumbnails import data_url, photo_urls
from finetune.report.page import SuspectsFacts, render_suspects_page
from finetune.report.page.suspects_page import drawn_paths, printable
from finetune.results.suspects import SuspectsReport

_LARGE, _SMALL = (220, 62), (112, 60)
"""Maximum side in pixels, and JPEG quality, of a photo and of a neighbour."""


def write_suspects_page(
    report: SuspectsReport, page: Path, *, table: str, reporter: Reporter
) -> SuspectsReport:
    """Write the page, and return the report with its path among the files.

    Args:
        page: Path of the page.
        table: Name of the file of all suspects, which the page names.

    Raises:
        OutputError: The file cannot be written.
    """
    large, small = drawn_paths(report)
    base = Path(report.base)
    facts = SuspectsFacts(
        report=printable(report, valid_utf8),
        photos=_pictures(base, large, _LARGE, "pictures", reporter),
        small=_pictures(base, small, _SMALL, "pictures of neighbours", reporter),
        table=table,
        written=today(),
    )
    write_text(page, render_suspects_page(facts))
    return replace(report, files=(*report.files, str(page)))


def _pictures(
    base: Path, paths: list[str], form: tuple[int, int], what: str, reporter: Reporter
) -> dict[str, str]:
    """Return the data URL of each readable photo by its path as the page shows it."""
    side, quality = form
    places = {str(base / path): path for path in paths}
    encode = partial(data_url, side=side, quality=quality)
    urls = photo_urls([*places], encode, reporter, what=what)
    return {valid_utf8(places[place]): url for place, url in urls.items()}
