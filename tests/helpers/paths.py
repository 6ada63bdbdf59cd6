"""Paths of the repository and of shared test data."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
REPOSITORY = TESTS.parent
