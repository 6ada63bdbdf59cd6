"""Each case in which something was lost, let in or said wrongly at first, and the test that failed
then and guards it now."""

from __future__ import annotations

LOST: tuple[tuple[str, str], ...] = (
    (
        "A checkpoint that named one of torchvision's detectors would have had it unpickle the "
        "backbone in the download cache",
        "tests/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
)
"""Case, and file::test."""
