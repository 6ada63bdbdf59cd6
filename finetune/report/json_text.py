"""A result as one JSON document."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

# Rows of a matrix, each on one line. Inside a string a line break is escaped: none is found there.
_NUMBERS = re.compile(r"\[\n[\s\d.,eE+-]*\d(?=\n\s*\])\s*")


def to_json(result: Any) -> str:
    """Any result dataclass; accuracies are fractions, keys are nested, nothing is NaN."""
    text = json.dumps(asdict(result), indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: "[" + " ".join(found[0][1:].split()), text)
