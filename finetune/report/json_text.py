"""Result dataclasses as JSON documents."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

# Lists of numbers, which are put on one line. Strings cannot match: their line breaks are escaped.
_NUMBERS = re.compile(r"\[\n[\s\d.,eE+-]*\d(?=\n\s*\])\s*")


def to_json(result: Any) -> str:
    """Serialize a result dataclass; accuracies are fractions, keys are nested, NaN is an error."""
    text = json.dumps(asdict(result), indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[0][1:].split()), text)
