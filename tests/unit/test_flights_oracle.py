"""The flights job's exactly-once oracle, and the shares of batches it sums over."""

from __future__ import annotations

import numpy as np
import pytest

from tablebay.examples.flights import batches, oracle
from tablebay.examples.flights.model import batch_keys


def share(rank: int, workers: int, epochs: int = 2, seed: int = 3) -> batches.Share:
    """A share of 10 batches of 7 (the last of 4) of 67 examples."""
    return batches.Share(67, 7, epochs, seed, rank, workers)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_shares_of_all_ranks_are_every_example_once_an_epoch(workers: int) -> None:
    """Ranks take batches in turn; together they see each example exactly `epochs` times."""
    seen = np.zeros(67, int)
    steps = 0
    for rank in range(workers):
        of_rank = share(rank, workers)
        steps += of_rank.steps
        for step in range(of_rank.steps):
            seen[of_rank.positions(step)] += 1
    assert steps == 20
    assert seen.tolist() == [2] * 67


def test_rank_r_of_w_takes_batches_r_and_every_w_th_after() -> None:
    """Step s of rank r is batch r + s * W of the run that one worker alone would make."""
    alone = share(0, 1)
    for rank in range(3):
        of_rank = share(rank, 3)
        for step in range(of_rank.steps):
            assert np.array_equal(of_rank.positions(step), alone.positions(rank + step * 3)), (rank, step)


def test_a_step_number_alone_says_the_batch() -> None:
    """A share that begins in the middle, or goes back, gives what one gives that began at 0."""
    in_order = share(1, 2)
    wanted = [in_order.positions(step).tolist() for step in range(in_order.steps)]
    for step in (7, 2, 9, 0):
        assert share(1, 2).positions(step).tolist() == wanted[step]
        assert in_order.positions(step).tolist() == wanted[step]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    """The first batch differs between epochs, between seeds, and between seeds equal in their low 32 bits."""
    firsts = [share(0, 1).positions(0), share(0, 1).positions(10)]
    firsts += [share(0, 1, seed=seed).positions(0) for seed in (4, 3 | 1 << 40)]
    assert len({tuple(first.tolist()) for first in firsts}) == 4


def test_a_step_outside_the_share_is_refused() -> None:
    """The error names the rank, its steps and the step found."""
    for step in (-1, 10):
        with pytest.raises(ValueError, match=f"rank 1 has steps 0 to 9, found {step}"):
            share(1, 2).positions(step)


def test_mix_is_splitmix64() -> None:
    """The first outputs of splitmix64 for seeds 0 and 1234567, as published with its reference code."""
    assert oracle.mix(np.array([0, 1234567], np.uint64)).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]


def test_additions_are_63_bit_numbers_that_depend_on_rank_step_and_key() -> None:
    """100,000 of them all differ, none is negative, and each bit below the 64th is set in about a half."""
    keys = np.arange(1_000, dtype=np.uint64)
    found = np.concatenate([oracle.additions(rank, step, keys) for rank in range(10) for step in range(10)])
    assert found.dtype == np.int64 and found.min() >= 0
    assert len(np.unique(found)) == len(found) == 100_000
    for bit in range(63):
        assert 0.49 < float((found >> bit & 1).mean()) < 0.51, bit


def sums_by_loop(keys: np.ndarray[tuple[int, int], np.dtype[np.uint64]], workers: int) -> dict[int, int]:
    """What the rows must hold, one addition at a time in Python's own numbers."""
    sums: dict[int, int] = {}
    for rank in range(workers):
        of_rank = share(rank, workers)
        for step in range(of_rank.steps):
            for key in sorted(set(batch_keys(keys[of_rank.positions(step)]).tolist())):
                addition = int(oracle.additions(rank, step, np.array([key], np.uint64))[0])
                sums[key] = (sums.get(key, 0) + addition) % 2**64
    return sums


@pytest.mark.parametrize("workers", [1, 3])
def test_expected_sums_are_those_of_a_plain_loop(workers: int) -> None:
    """Any rank's share gives the sums over all ranks and steps, modulo 2**64; they do wrap here."""
    seed = 5
    keys = np.random.default_rng(seed).integers(1, 90, (67, 12), dtype=np.uint64)
    wanted = sums_by_loop(keys, workers)
    different, sums = oracle.expected(keys, share(workers - 1, workers))
    assert dict(zip(different.tolist(), sums.view(np.uint64).tolist(), strict=True)) == wanted, f"seed {seed}"
    assert sums.min() < 0, f"seed {seed}: no sum passed 2**63"


def test_a_lost_a_repeated_and_a_foreign_addition_all_show() -> None:
    """One addition less, one more, or one on another row is a difference, and so is a row too many."""
    keys = np.arange(1, 51, dtype=np.uint64)
    wanted = oracle.additions(0, 0, keys)
    one = oracle.additions(0, 0, keys[:1])[0]
    assert oracle.difference(keys, wanted, wanted.copy(), rows=50) is None
    for change in ({0: -one}, {0: one}, {1: one}):
        found = wanted.copy()
        for position, amount in change.items():
            found[position] += amount
        message = oracle.difference(keys, wanted, found, rows=50)
        (position,) = change
        assert message == (
            f"1 of 50 rows differ; key {keys[position]:#018x}: "
            f"found {found[position]}, wanted {wanted[position]}"
        )
    assert oracle.difference(keys, wanted, wanted.copy(), rows=51) == "found 51 rows, wanted 50"
