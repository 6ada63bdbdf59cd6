"""Ranks of the processes of one run."""

from __future__ import annotations

import pytest

from finetune.cli.app import _without_nproc
from finetune.core.errors import ConfigError
from finetune.data.loading.sampler import KeyedBatches
from finetune.data.loading.views import Views
from finetune.distributed.ranks import ALONE, Ranks

LAUNCHED = {
    "RANK": "2",
    "WORLD_SIZE": "3",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}


def test_they_are_what_a_launcher_has_set() -> None:
    assert Ranks.of_environment(LAUNCHED) == Ranks(rank=2, size=3, local_rank=0, local_size=1)
    assert Ranks.of_environment({}) == Ranks.of_environment({"WORLD_SIZE": "1"}) == ALONE


@pytest.mark.parametrize(("name", "value"), [("RANK", None), ("LOCAL_RANK", "first")])
def test_an_incomplete_launch_is_refused(name: str, value: str | None) -> None:
    environment = LAUNCHED | ({} if value is None else {name: value})
    if value is None:
        del environment[name]
    with pytest.raises(ConfigError) as caught:
        Ranks.of_environment(environment)
    assert caught.value.kind == "config.no_launcher"
    assert caught.value.source is not None
    assert "WORLD_SIZE" in caught.value.source


@pytest.mark.parametrize("count", [0, 1, 2, 7, 32, 33])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_shares_of_a_batch_are_its_rows(count: int, size: int) -> None:
    shares = [list(Ranks(rank, size).rows(count)) for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_batches_of_all_ranks_are_those_of_one(shuffle: bool) -> None:
    def batches(ranks: Ranks) -> list[list[tuple[int, int]]]:
        views = Views.of("flip", seed=3)
        sampler = KeyedBatches(21, 5, views=views, shuffle=shuffle, ranks=ranks)
        sampler.epoch, sampler.start = 2, 1
        return list(sampler)

    whole = batches(ALONE)
    parts = [batches(Ranks(rank, 3)) for rank in range(3)]
    if shuffle:
        joined = [[key for share in shares for key in share] for shares in zip(*parts, strict=True)]
        assert joined == whole
    else:
        assert [parts[at % 3][at // 3] for at in range(len(whole))] == whole


def test_a_share_of_a_mixed_batch_begins_with_the_row_before_it() -> None:
    views = Views.of("none")
    shares = [
        next(
            iter(
                KeyedBatches(
                    6, 6, views=views, shuffle=True, ranks=Ranks(rank, 2), previous_row=True
                )
            )
        )
        for rank in range(2)
    ]
    assert shares[0][0] == shares[1][-1]
    assert shares[1][0] == shares[0][-1]
    assert len(shares[0]) == len(shares[1]) == 4


def test_processes_get_the_arguments_without_their_number() -> None:
    words = ["--config", "c.yaml", "--nproc", "2", "--set", "seed=1", "--nproc=3"]
    assert _without_nproc(words) == ["--config", "c.yaml", "--set", "seed=1"]
