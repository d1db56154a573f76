"""Shuffling without memory: a bijection for any number of rows, another one per seed and epoch, and nearly uniform."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.shuffle import LARGEST_SORTED, choose_shuffle, permute_by_sorting, permute_places
from unmask.data.tokens import Batches


class Numbered:
    """As many rows as wanted, without memory: row i is the number i."""

    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def read_rows(self, index, device, u=None):
        return index[:, None], None


@settings(deadline=None, max_examples=150)
@given(num=st.integers(1, 5000), seed=st.integers(-(2**63), 2**63 - 1), epoch=st.integers(0, 2**40))
def test_it_is_a_bijection(num, seed, epoch):
    rows = permute_places(torch.arange(num), num, seed, epoch)
    assert rows.sort().values.tolist() == list(range(num))


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 65_537])
def test_it_is_a_bijection_around_powers_of_two(num):
    assert permute_places(torch.arange(num), num, 0, 0).sort().values.tolist() == list(range(num))


@settings(deadline=None, max_examples=50)
@given(num=st.integers(2**20, 2**40), places=st.lists(st.integers(0, 2**20 - 1), min_size=2, max_size=20, unique=True))
def test_a_place_of_a_huge_set_needs_no_other_place(num, places):
    together = permute_places(torch.tensor(places), num, 3, 1)
    alone = torch.cat([permute_places(torch.tensor([place]), num, 3, 1) for place in places])
    assert torch.equal(together, alone)
    assert len(set(together.tolist())) == len(places)
    assert 0 <= int(together.min()) <= int(together.max()) < num


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(permute_places(torch.arange(100), 100, *key).tolist()) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    assert len(orders) == 4
    assert tuple(range(100)) not in orders


@pytest.mark.parametrize("num", [10, 100])
def test_every_place_is_about_equally_likely(num):
    """The rows at the first places over 2,000 seeds: chi-square stays below its 99.9 % point (27.9 and 148.2)."""
    some = torch.tensor([0, 1, num // 2, num - 1])
    found = torch.stack([permute_places(some, num, seed, 0) for seed in range(2000)])
    for place in found.T:
        counts = place.bincount(minlength=num).double()
        assert float(((counts - 2000 / num) ** 2 / (2000 / num)).sum()) < {10: 27.9, 100: 148.2}[num]


def test_neighbours_are_scattered():
    """The distance of neighbours is that of two random rows, a third of the set, within four deviations."""
    rows = permute_places(torch.arange(20_000), 20_000, 0, 0).double()
    assert float(rows.diff().abs().mean()) / 20_000 == pytest.approx(1 / 3, abs=4 * 0.236 / 20_000**0.5)


def test_small_sets_keep_the_order_of_earlier_versions():
    """The numbers are those of the version before there was another way to shuffle."""
    assert permute_by_sorting(10, 0, 0).tolist() == [2, 4, 7, 9, 0, 3, 6, 8, 5, 1]
    assert choose_shuffle(LARGEST_SORTED) == "sorted"
    assert choose_shuffle(LARGEST_SORTED + 1) == "feistel"


def test_a_large_set_is_shuffled_without_memory():
    batches, rows = Batches(Numbered(2**40), 64, 0, torch.device("cpu")), torch.arange(64)
    seen = torch.cat([batches(step, rows)[0] for step in range(20)])
    assert len(seen.unique()) == 20 * 64
    assert float(seen.double().mean()) == pytest.approx(2**39, rel=0.1)
