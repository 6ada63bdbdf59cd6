"""Past bugs about lost data, hostile input or wrong messages, and their regression tests."""

from __future__ import annotations

LOST: tuple[tuple[str, str], ...] = (
    (
        "A checkpoint that named one of torchvision's detectors had it unpickle the backbone in "
        "the download cache: a payload there ran",
        "tests/faults/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A run that was killed while it marked its new folder left a file and no mark: the next "
        "run refused the folder as somebody else's",
        "tests/integration/test_cli_errors.py::test_a_folder_is_ours_before_anything_else_is_in_it",
    ),
    (
        "A checkpoint of 2 MB took 2 GB (packed zeros), one of 10 MB took 6 GB (a million classes)",
        "tests/faults/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A checkpoint of integers, or of what is no number, was evaluated; a traceback came of it",
        "tests/faults/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A flipped bit in a checkpoint was loaded without a word",
        "tests/faults/test_damage.py::test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed",
    ),
    (
        "A flipped bit in what is remembered of photos made sound ones broken, and broken ones "
        "sound",
        "tests/faults/test_damage.py::test_a_damaged_memory_of_photos_is_never_wrong",
    ),
    (
        "Emptying the cache deleted the files behind a link in it, and another program's *.bin",
        "tests/faults/test_deletions.py::test_emptying_the_cache_does_not_follow_links",
    ),
    (
        "Features were written through a link into somebody else's file",
        "tests/faults/test_deletions.py::test_a_store_with_a_link_in_it_is_not_written_through",
    ),
    (
        "Notes that lay in a store's folder were deleted with it when the store was of another "
        "kind",
        "tests/faults/test_deletions.py::"
        "test_a_foreign_store_in_the_place_of_ours_loses_only_what_stores_are_made_of",
    ),
    (
        "train --overwrite deleted exported models behind a link in the run's folder",
        "tests/faults/test_deletions.py::test_replacing_a_run_does_not_follow_a_link_to_a_folder",
    ),
    (
        "A photo of 1 x 60,000 pixels, 300 bytes, took 10 GB; one of 12,000 x 12,000 was decoded",
        "tests/faults/test_odd_images.py::test_no_odd_image_takes_a_gigabyte",
    ),
    (
        "A damaged PNG with EXIF ended the process (SIGSEGV in torchvision 0.29)",
        "tests/unit/data/test_decoding.py::test_a_photo_with_flipped_bits_ends_no_process",
    ),
    (
        "Floating point photos passed the check before training and stopped training; CIELAB ones "
        "were broken to check-data alone",
        "tests/faults/test_odd_images.py::test_every_odd_image_has_the_verdict_that_is_expected",
    ),
    (
        "A full disk was `[enforce fail at inline_container.cc:671] . unexpected pos 6751 vs 6698`",
        "tests/faults/test_write_faults.py::"
        "test_a_fault_at_any_operation_of_a_save_keeps_the_old_checkpoint",
    ),
    (
        "A full disk left half a line in metrics.jsonl, and the run had no page any more",
        "tests/faults/test_write_faults.py::test_a_line_that_does_not_fit_leaves_no_half",
    ),
    (
        "A full disk in an export, or behind standard output, was a mistake of finetune",
        "tests/faults/test_write_faults.py::test_a_command_that_cannot_write_keeps_what_there_was",
    ),
    (
        "Photos that vanished were a full cache (code 6), or a mistake of finetune (code 1)",
        "tests/faults/test_write_faults.py::"
        "test_photos_that_vanish_before_their_features_are_computed_are_a_data_error",
    ),
    (
        "schedule.step_epochs: null passed the config and ended in a traceback; a momentum of null "
        "trained without and reran with one",
        "tests/unit/config/test_config_fuzz.py::test_no_generated_config_ends_in_a_traceback",
    ),
    (
        "A key named section was a traceback",
        "tests/unit/config/test_config_fuzz.py::test_no_generated_config_ends_in_a_traceback",
    ),
    (
        "Configs of 3,000 unknown keys, of 20,000 parentheses in a pattern, of a std that vanishes "
        "in float32: minutes, or a traceback",
        "tests/unit/config/test_config_fuzz.py::test_a_trap_is_answered_in_words",
    ),
    (
        "A config that never ends was read until the memory was full",
        "tests/unit/config/test_config_fuzz.py::test_a_config_that_never_ends_is_not_read_whole",
    ),
    (
        "An escape sequence in a key or an override reached the terminal",
        "tests/unit/config/test_config_fuzz.py::test_an_override_cannot_steer_a_terminal",
    ),
    (
        "A signal that came while a checkpoint was read made it a damaged file (code 5 for 143)",
        "tests/faults/test_signals.py::test_a_signal_ends_the_run_and_says_how_it_goes_on",
    ),
)
"""Pairs of bug and test (file::test)."""
