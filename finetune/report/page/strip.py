"""The network's bars in the coordinates of an SVG: its names, its cut, and the words at the cut."""

from __future__ import annotations

from typing import Any

from finetune.report.lettering import text_width
from finetune.report.network import STEP, TALLEST, strip_of
from finetune.results import FreezeReport

_SAID = "computed once for each image, up to the cut"


def strip(freeze: FreezeReport) -> dict[str, Any]:
    """The template's ``page.strip``, with room for every label."""
    drawn = strip_of(freeze.parameters, freeze.cut.after)
    longest = max(text_width(bar.name) for bar in drawn.bars)
    base = TALLEST + 22
    # The names below the bars lean by 50 degrees to the right.
    width = 8 + STEP * len(drawn.bars) + round(0.65 * longest) + 8
    cut, said = None, None
    if drawn.cut is not None:
        cut = round(8 + STEP * drawn.cut - 2, 1)
        room = 6 + text_width(_SAID)
        # Left of the cut where the words have the room, right of it otherwise.
        said = {
            "text": _SAID,
            "x": cut - 6 if cut > room else cut + 6,
            "anchor": "end" if cut > room else "start",
        }
        width = width if cut > room else max(width, round(cut + room))
    return {
        "bars": [
            {
                "x": 8 + STEP * at,
                "y": base - bar.height,
                "width": STEP - 4,
                "height": bar.height,
                "state": bar.state,
                "name": bar.name,
                "text": bar.text,
            }
            for at, bar in enumerate(drawn.bars)
        ],
        "base": base,
        "width": width,
        "total": base + round(0.77 * longest) + 22,
        "cut": cut,
        "said": said,
    }
