"""Promises about faults, how they are tested, and how often for docs/reliability.md.

With the fixture `count`, a test records how often it tried a promise and how often it held, under
a key defined here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One row of the table.

    Attributes:
        text: Text of the promise.
        tried: Description of how it is tested.
        keys: Keys under which tests count it.
        counts: Names of environment variables without the prefix ``FINETUNE_COUNT_``, with their
            values for the full run.
        tests: Tests (file::name) that do not count; each of their cases is one trial.
    """

    text: str
    tried: str
    keys: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()
    tests: tuple[str, ...] = ()


PROMISES = (
    Promise(
        "A killed run resumes bit for bit like an uninterrupted one",
        "kill -9 at random moments of real training, with 0, 1 and 2 loader workers",
        ("kills",),
        (("KILLS", 200),),
    ),
    Promise(
        "After the first checkpoint, a complete and verified one always exists",
        "kill -9 while a checkpoint is written",
        ("kills-in-save",),
        (("KILLS_IN_SAVE", 200),),
    ),
    Promise(
        "A killed computation of features loses no block that was complete",
        "kill -9 at random moments while a store is filled",
        ("kills-in-fill",),
        (("KILLS_IN_FILL", 200),),
    ),
    Promise(
        "A damaged last checkpoint is detected, and the previous one is used, with a warning",
        "files with flipped bits, truncated, empty, or swapped",
        tests=(
            "integration/test_resume.py::test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken",
            "integration/test_resume.py::test_where_both_are_damaged_nothing_begins_anew",
        ),
    ),
    Promise(
        "After SIGINT or SIGTERM, the run saves, prints how to resume, leaves no process, and "
        "resumes bit for bit",
        "signals at random times and in every phase of a run",
        ("signals",),
        (("SIGNALS", 50),),
        (
            "faults/test_signals.py::test_a_signal_ends_the_run_and_says_how_it_goes_on",
            "faults/test_signals.py::test_a_signal_to_the_whole_group_reaches_no_worker",
            "faults/test_signals.py::test_workers_that_die_of_the_same_signal_lose_nothing",
        ),
    ),
    Promise("… and ends within ten seconds", "signals at random times", ("signals-in-time",)),
    Promise(
        "A second signal aborts at once, and the last checkpoint stays intact",
        "signals during a step, a save and an evaluation",
        tests=(
            "faults/test_signals.py::test_a_second_signal_leaves_at_once_and_the_last_checkpoint_is_whole",
        ),
    ),
    Promise(
        "--resume rejects what does not match the run, and reports the difference",
        "changed frozen set, classes, data or architecture; fewer epochs; no checkpoint; no run",
        tests=(
            "integration/test_resume.py::test_another_training_is_refused_with_what_differs",
            "integration/test_resume.py::test_all_differences_are_shown_at_once",
            "integration/test_resume.py::test_another_image_is_refused_with_the_class_it_is_in",
            "integration/test_resume.py::test_a_renamed_image_is_refused",
            "integration/test_resume.py::test_another_class_is_refused_by_name",
            "integration/test_resume.py::test_fewer_epochs_than_were_done_are_refused",
            "integration/test_resume.py::test_a_folder_without_a_run_never_starts_from_nothing",
        ),
    ),
    Promise(
        "A non-finite value stops the run at that step and is never saved in best.pt or last.pt",
        "non-finite images, weights, class weights and gradients; in the first, a middle and the "
        "last step",
        tests=(
            "unit/training/test_step.py::test_a_poisoned_image_stops_the_step_before_it_moves_a_weight",
            "unit/training/test_step.py::test_a_gradient_that_is_no_number_moves_no_weight",
            "unit/training/test_step.py::test_a_label_weight_that_is_no_number_stops_the_first_step",
            "unit/training/test_step.py::test_in_a_step_of_several_batches_the_one_is_named",
            "integration/test_resume.py::test_a_number_that_is_none_names_rate_batch_and_images",
            "integration/test_resume.py::test_a_weight_that_is_none_is_never_saved",
        ),
    ),
    Promise(
        "When memory runs out, the micro-batch is halved and the gradient stays the same",
        "allocations that fail during a step",
        tests=(
            "unit/training/test_step.py::"
            "test_out_of_memory_halves_what_is_computed_at_once_and_the_gradient_stays",
            "unit/training/test_step.py::test_memory_for_less_than_two_images_ends_the_run_with_what_to_do",
            "unit/training/test_step.py::test_a_run_that_goes_on_computes_as_few_at_once_as_before",
        ),
    ),
    Promise(
        "A failed save keeps the old file, gives one error message, and leaves no partial file",
        "ENOSPC and EIO at the 1st, 2nd, 3rd … operation, until a save succeeds",
        ("write-faults",),
        (("FAULT_TENSORS", 60),),
    ),
    Promise(
        "… also if the operating system causes the failure",
        "RLIMIT_FSIZE below the file size; a real disk with 0, 1, 2 … free pages",
        ("file-size-limits", "full-disk"),
        (("FAULT_LIMITS", 400),),
    ),
    Promise(
        "A damaged checkpoint is detected",
        "flipped bits and truncation",
        ("checkpoint-flips", "checkpoint-cuts"),
        (("FLIPS", 1000), ("CUTS", 100)),
    ),
    Promise(
        "Damaged cached features and inspection results are recomputed, never used",
        "flipped bits and truncation, in each file of a feature store and of the inspection cache",
        ("cache-flips", "cache-cuts", "looks-damage"),
        (("CACHE_FLIPS", 1000), ("CACHE_CUTS", 100)),
    ),
    Promise(
        "Opening a file runs no code",
        "malicious checkpoints, opened by every command that reads one; a malicious file in the "
        "download cache",
        ("hostile-payloads", "poisoned-cache"),
    ),
    Promise(
        "A malicious checkpoint is rejected with one message",
        "files with code, false sizes, packed data or wrong metadata, opened by every command",
        ("hostile-checkpoints",),
        (("HOSTILE", 100),),
    ),
    Promise(
        "… and needs no more memory than the size of the file",
        "all of them in one process, limited to 400 MiB above its start",
        ("hostile-memory",),
    ),
    Promise(
        "An unusual image gets the verdict that is documented for it",
        "unusual images in the preflight check, in check-data and in decoding",
        ("odd-images",),
    ),
    Promise(
        "… needs less than 1 GB and starts no process",
        "the same images, decoded and resized in three ways in one process",
        ("odd-images-memory", "odd-images-processes"),
    ),
    Promise(
        "A label is the name of the class folder",
        "generated folder trees, read by train, eval, eval --data and check-data",
        ("folder-trees",),
        (("TREES", 200),),
    ),
    Promise(
        "A wrong config gives one clear message that names the key",
        "generated configs",
        ("configs",),
        (("CONFIGS", 1000),),
    ),
    Promise(
        "… and so does a malicious config",
        "handwritten configs, including YAML bombs",
        ("config-traps",),
    ),
    Promise(
        "Nothing is deleted outside the run folder or the cache",
        "random sequences of 25 steps: train, save, export, rename, link, clear, delete",
        ("rotation",),
        (("ROTATIONS", 500),),
    ),
    Promise(
        "Frozen parameters and buffers stay bit for bit the same",
        "tensors of every family with norm layers, while the last block is trained",
        ("frozen-bits",),
    ),
)

TESTS = (
    *(
        "faults/test_kills.py",
        "integration/test_resume.py",
        "faults/test_signals.py",
        "unit/training/test_step.py",
        "faults/test_write_faults.py",
    ),
    *("faults/test_damage.py", "faults/test_hostile_checkpoints.py", "faults/test_odd_images.py"),
    *(
        "unit/data/test_folder_trees.py",
        "unit/config/test_config_fuzz.py",
        "faults/test_deletions.py",
        "unit/freezing/test_frozen_bits.py",
    ),
)
"""Test files, relative to tests/; a missing file is reported and skipped."""
