"""``finetune suspects --report``: a page on which a person decides about each photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetune.core.files import write_text
from finetune.core.reporter import Reporter
from finetune.core.text import today
from finetune.core.threads import on_cores
from finetune.data.loading.decoding import read_photo
from finetune.inference.thumbnails import data_url
from finetune.report.page import SuspectsFacts, render_suspects_page
from finetune.report.page.suspects_page import drawn_paths, printable
from finetune.results.suspects import SuspectsReport

_LARGE, _SMALL = (220, 62), (112, 60)
"""Maximum side in pixels, and JPEG quality, of a photo and of a neighbour."""
_AT_ONCE = 32


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
        report=printable(report, _shown),
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

    def drawn(path: str) -> str | None:
        try:
            return data_url(read_photo(str(base / path)), side=side, quality=quality)
        except OSError:  # it was readable before
            return None

    batches = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    urls: dict[str, str] = {}
    for batch in reporter.track(batches, what, total=len(batches)):
        for path, url in zip(batch, on_cores(drawn, batch), strict=True):
            if url is not None:
                urls[_shown(path)] = url
    return urls


def _shown(path: str) -> str:
    """Return a path as valid UTF-8, with other bytes escaped."""
    return path.encode("utf-8", "backslashreplace").decode()
