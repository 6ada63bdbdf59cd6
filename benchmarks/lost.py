"""Each case in which something was lost, let in or said wrongly at first, and the test that failed
then and guards it now."""

from __future__ import annotations

LOST: tuple[tuple[str, str], ...] = (
    (
        "A checkpoint that named one of torchvision's detectors would have had it unpickle the "
        "backbone in the download cache",
        "tests/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A run that was killed while it marked its new folder left a file and no mark: the next "
        "run refused the folder as somebody else's",
        "tests/test_cli_errors.py::test_a_folder_is_ours_before_anything_else_is_in_it",
    ),
    (
        "What is remembered of photos had no checksum: a flipped bit made sound ones unreadable",
        "tests/test_damage.py::test_a_damaged_memory_of_photos_is_never_wrong",
    ),
)
"""Case, and file::test."""
