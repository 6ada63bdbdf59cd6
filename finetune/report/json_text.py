"""A result as one JSON document."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any


def to_json(result: Any) -> str:
    """Any result dataclass; accuracies are fractions, keys are nested, nothing is NaN."""
    return json.dumps(asdict(result), indent=2, ensure_ascii=False, allow_nan=False)
