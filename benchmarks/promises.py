"""What is promised, how it is tried, and how often for the record.

A test says with the fixture `count` how often it tried a promise and how often that held, under the
key that stands here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """One row of the table.

    Attributes:
        keys: What tests count it under.
        tried: How, in words.
        counts: Environment variables without their beginning ``FINETUNE_COUNT_``, and what they
            are for the record.
    """

    text: str
    tried: str
    keys: tuple[str, ...]
    counts: tuple[tuple[str, int], ...] = ()


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
        "A stopped run ends within ten seconds, leaves no process and resumes bit for bit",
        "SIGINT and SIGTERM at random times; a second one",
        ("signals", "second-signal"),
        (("SIGNALS", 50),),
    ),
    Promise(
        "What no longer fits is refused under --resume, with the difference",
        "freeze set, class list, data, architecture, no checkpoint",
        ("resume-refused",),
    ),
    Promise(
        "Not-a-number stops the run, and best and last never hold one",
        "in image, weight, gradient; first, middle and last step",
        ("not-a-number",),
    ),
    Promise(
        "Out of memory halves the batch, doubles accumulation and says so",
        "allocations refused in the step",
        ("out-of-memory",),
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
        "files that run, claim, unpack to or state what they should not, times commands",
        ("hostile-checkpoints",),
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
    *("test_kills.py", "test_resume.py", "test_signals.py", "test_step.py", "test_write_faults.py"),
    *("test_damage.py", "test_hostile_checkpoints.py", "test_odd_images.py"),
    *("test_folder_trees.py", "test_config_fuzz.py", "test_deletions.py", "test_frozen_bits.py"),
)
"""Files below tests/; one that is absent is said and passed over."""
