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
        "A killed run resumes bit for bit as if never stopped",
        "kill -9 at random moments of real training, loaders with 0, 1 and 2 workers",
        ("kills",),
        (("KILLS", 200),),
    ),
    Promise(
        "There is always a complete, verified checkpoint after the first",
        "kill -9 inside a save",
        ("kills-in-save",),
        (("KILLS_IN_SAVE", 200),),
    ),
    Promise(
        "A damaged last checkpoint is noticed and the one before it taken, aloud",
        "flipped, cut, emptied, exchanged",
        tests=(
            "integration/test_resume.py::test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken",
            "integration/test_resume.py::test_where_both_are_damaged_nothing_begins_anew",
        ),
    ),
    Promise(
        "SIGINT or SIGTERM: saved, said how to go on, no process left, resumed bit for bit",
        "at random times, and in each place that a run passes",
        ("signals",),
        (("SIGNALS", 50),),
        (
            "faults/test_signals.py::test_a_signal_ends_the_run_and_says_how_it_goes_on",
            "faults/test_signals.py::test_a_signal_to_the_whole_group_reaches_no_worker",
            "faults/test_signals.py::test_workers_that_die_of_the_same_signal_lose_nothing",
        ),
    ),
    Promise("… within ten seconds", "the random times", ("signals-in-time",)),
    Promise(
        "A second signal leaves at once, the last checkpoint whole",
        "in a step, a save, an evaluation",
        tests=(
            "faults/test_signals.py::test_a_second_signal_leaves_at_once_and_the_last_checkpoint_is_whole",
        ),
    ),
    Promise(
        "What no longer fits is refused under --resume, with the difference",
        "freeze set, class list, data, architecture, fewer epochs, no checkpoint, no run",
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
        "Not-a-number stops the run at its step, and best and last never hold one",
        "in image, weight, label weight, gradient; first, middle and last step",
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
        "Out of memory halves what is computed at once, and the gradient stays",
        "allocations refused in the step",
        tests=(
            "unit/training/test_step.py::"
            "test_out_of_memory_halves_what_is_computed_at_once_and_the_gradient_stays",
            "unit/training/test_step.py::test_memory_for_less_than_two_images_ends_the_run_with_what_to_do",
            "unit/training/test_step.py::test_a_run_that_goes_on_computes_as_few_at_once_as_before",
        ),
    ),
    Promise(
        "A save that fails keeps the old file, says why in one line, leaves no half file",
        "ENOSPC and EIO at the 1st, 2nd, 3rd … operation until the whole save passes",
        ("write-faults",),
        (("FAULT_TENSORS", 60),),
    ),
    Promise(
        "… also where the system itself refuses",
        "RLIMIT_FSIZE at sizes up to the whole; a real disk with 0, 1, 2 … free pages",
        ("file-size-limits", "full-disk"),
        (("FAULT_LIMITS", 400),),
    ),
    Promise(
        "A damaged checkpoint is noticed",
        "single bits flipped, ends cut off",
        ("checkpoint-flips", "checkpoint-cuts"),
        (("FLIPS", 1000), ("CUTS", 100)),
    ),
    Promise(
        "Damaged features and what is known of photos are computed again, never wrong",
        "single bits flipped, ends cut off, in each file of a store and in the memory of photos",
        ("cache-flips", "cache-cuts", "looks-damage"),
        (("CACHE_FLIPS", 1000), ("CACHE_CUTS", 100)),
    ),
    Promise(
        "Opening a file runs no code",
        "hostile checkpoints through every command that reads one; a poisoned download cache",
        ("hostile-payloads", "poisoned-cache"),
    ),
    Promise(
        "A hostile checkpoint is refused in one line",
        "files that run, claim, unpack to or state what they should not, through every command",
        ("hostile-checkpoints",),
        (("HOSTILE", 100),),
    ),
    Promise(
        "… and takes no more memory than the file has",
        "all of them in one process, 400 MiB above its start",
        ("hostile-memory",),
    ),
    Promise(
        "An odd image has the verdict that is written down for it",
        "in the look before a run, in check-data and in decoding",
        ("odd-images",),
    ),
    Promise(
        "… takes less than 1 GB and starts no process",
        "the same images, decoded and fitted three ways in one process",
        ("odd-images-memory", "odd-images-processes"),
    ),
    Promise(
        "A label is the name of the class folder",
        "generated folder trees, read by training, evaluation, other data and check-data",
        ("folder-trees",),
        (("TREES", 200),),
    ),
    Promise(
        "A wrong config is one clear message that names the key",
        "generated configs",
        ("configs",),
        (("CONFIGS", 1000),),
    ),
    Promise(
        "… so is a trap",
        "hand-made ones, YAML bombs among them",
        ("config-traps",),
    ),
    Promise(
        "Nothing is deleted outside the run folder or the cache",
        "random lives of 25 steps: begin, save, export, rename, link, clear, lose",
        ("rotation",),
        (("ROTATIONS", 500),),
    ),
    Promise(
        "Frozen parameters and buffers stay bit for bit",
        "tensors of every family with norm layers, its last block training",
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
