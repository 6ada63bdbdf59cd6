"""Past bugs about lost data, hostile input or wrong messages, and their regression tests."""

from __future__ import annotations

LOST: tuple[tuple[str, str], ...] = (
    (
        "A checkpoint that named a torchvision detector caused its backbone to be unpickled "
        "from the download cache, which executed malicious code in that file",
        "tests/faults/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A run that was killed while it created its folder left a file without the run marker, "
        "and the next run rejected the folder as foreign",
        "tests/integration/test_cli_errors.py::test_a_folder_is_ours_before_anything_else_is_in_it",
    ),
    (
        "A checkpoint of 2 MB used 2 GB of memory (packed zeros), and one of 10 MB used 6 GB (a "
        "million classes)",
        "tests/faults/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A checkpoint with integer or non-finite weights was evaluated and ended in a traceback",
        "tests/faults/test_hostile_checkpoints.py::test_no_hostile_checkpoint_does_harm",
    ),
    (
        "A flipped bit in a checkpoint was not detected",
        "tests/faults/test_damage.py::test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed",
    ),
    (
        "A flipped bit in cached inspection results made valid photos count as broken, and "
        "broken ones as valid",
        "tests/faults/test_damage.py::test_a_damaged_memory_of_photos_is_never_wrong",
    ),
    (
        "Clearing the cache deleted the target files of a link in it, and *.bin files of other "
        "programs",
        "tests/faults/test_deletions.py::test_emptying_the_cache_does_not_follow_links",
    ),
    (
        "Features were written through a link into a foreign file",
        "tests/faults/test_deletions.py::test_a_store_with_a_link_in_it_is_not_written_through",
    ),
    (
        "Foreign files in a feature store's folder were deleted with a store of another version",
        "tests/faults/test_deletions.py::"
        "test_a_foreign_store_in_the_place_of_ours_loses_only_what_stores_are_made_of",
    ),
    (
        "train --overwrite deleted exported models that a link in the run folder pointed to",
        "tests/faults/test_deletions.py::test_replacing_a_run_does_not_follow_a_link_to_a_folder",
    ),
    (
        "A photo of 1 x 60,000 pixels (300 bytes) used 10 GB of memory; one of 12,000 x 12,000 "
        "was decoded",
        "tests/faults/test_odd_images.py::test_no_odd_image_takes_a_gigabyte",
    ),
    (
        "A damaged PNG with EXIF data crashed the process (SIGSEGV in torchvision 0.29)",
        "tests/unit/data/test_decoding.py::test_a_photo_with_flipped_bits_ends_no_process",
    ),
    (
        "Floating-point images passed the preflight check and stopped training; CIELAB images "
        "were rejected only by check-data",
        "tests/faults/test_odd_images.py::test_every_odd_image_has_the_verdict_that_is_expected",
    ),
    (
        "A full disk was reported as `[enforce fail at inline_container.cc:671] . unexpected "
        "pos 6751 vs 6698`",
        "tests/faults/test_write_faults.py::"
        "test_a_fault_at_any_operation_of_a_save_keeps_the_old_checkpoint",
    ),
    (
        "A full disk left a partial line in metrics.jsonl, and no report could be written for "
        "the run",
        "tests/faults/test_write_faults.py::test_a_line_that_does_not_fit_leaves_no_half",
    ),
    (
        "A full disk during an export, or under standard output, was reported as a bug in finetune",
        "tests/faults/test_write_faults.py::test_a_command_that_cannot_write_keeps_what_there_was",
    ),
    (
        "Photos removed during a run were reported as a full cache (code 6) or as a bug in "
        "finetune (code 1)",
        "tests/faults/test_write_faults.py::"
        "test_photos_that_vanish_before_their_features_are_computed_are_a_data_error",
    ),
    (
        "schedule.step_epochs: null was accepted and ended in a traceback; momentum: null "
        "trained without momentum, but the saved config had one",
        "tests/unit/config/test_config_fuzz.py::test_no_generated_config_ends_in_a_traceback",
    ),
    (
        "A config key named section ended in a traceback",
        "tests/unit/config/test_config_fuzz.py::test_no_generated_config_ends_in_a_traceback",
    ),
    (
        "Configs with 3,000 unknown keys, 20,000 parentheses in a pattern, or a std that is 0 "
        "in float32 took minutes or ended in a traceback",
        "tests/unit/config/test_config_fuzz.py::test_a_trap_is_answered_in_words",
    ),
    (
        "A config file without end was read until memory was full",
        "tests/unit/config/test_config_fuzz.py::test_a_config_that_never_ends_is_not_read_whole",
    ),
    (
        "An escape sequence in a key or an override was printed to the terminal",
        "tests/unit/config/test_config_fuzz.py::test_an_override_cannot_steer_a_terminal",
    ),
    (
        "A signal while a checkpoint was read was reported as a damaged file (code 5 instead of "
        "143)",
        "tests/faults/test_signals.py::test_a_signal_ends_the_run_and_says_how_it_goes_on",
    ),
)
"""Pairs of bug and test (file::test)."""
