"""Which sample stands in which row: every sample once per epoch, for any batch, ranks and micro-batches."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.tokens import Batches, TokenSet, count_rows_at_once
from unmask.errors import DataError

CPU = torch.device("cpu")


def numbered(num, dtype=torch.int64):
    """Sample i is the tokens (i, i) of class i."""
    index = torch.arange(num)
    return TokenSet(tokens=index[:, None].repeat(1, 2).to(dtype), condition=index)


def order(num, batch_size, samples, seed=0):
    """The sample numbers in the order in which they come."""
    batches, rows = Batches(numbered(num), batch_size, seed, CPU), torch.arange(batch_size)
    steps = -(-samples // batch_size)
    return torch.cat([batches(step, rows)[0][:, 0] for step in range(steps)])[:samples]


@settings(deadline=None, max_examples=50)
@given(num=st.integers(1, 40), batch_size=st.integers(1, 100), epochs=st.integers(1, 3))
def test_every_sample_exactly_once_per_epoch(num, batch_size, epochs):
    for epoch in order(num, batch_size, num * epochs).split(num):
        assert epoch.sort().values.tolist() == list(range(num))


@settings(deadline=None, max_examples=50)
@given(num=st.integers(1, 40), a=st.integers(1, 100), b=st.integers(1, 100))
def test_the_order_does_not_depend_on_the_batch_size(num, a, b):
    assert torch.equal(order(num, a, 2 * num), order(num, b, 2 * num))


@settings(deadline=None, max_examples=50)
@given(
    num=st.integers(1, 30),
    batch_size=st.integers(1, 64),
    step=st.integers(0, 1000),
    ranks=st.integers(1, 5),
    accumulate=st.integers(1, 4),
)
def test_any_cut_into_ranks_and_micro_batches_gives_the_same_rows(num, batch_size, step, ranks, accumulate):
    data = numbered(num)
    tokens, condition = Batches(data, batch_size, 3, CPU)(step, torch.arange(batch_size))
    seen = torch.full((batch_size,), -1)
    for rank in range(ranks):
        batches = Batches(data, batch_size, 3, CPU)  # each rank has its own, and comes at any step first
        for micro in range(accumulate):
            rows = torch.arange(batch_size)[rank + ranks * micro :: ranks * accumulate]
            part, labels = batches(step, rows)
            assert torch.equal(part[:, 0], labels)
            seen[rows] = labels
    assert torch.equal(seen, condition)
    assert torch.equal(tokens[:, 0], condition)


@settings(deadline=None, max_examples=30)
@given(steps=st.lists(st.integers(0, 50), min_size=1, max_size=10))
def test_batches_are_a_pure_function_of_the_step(steps):
    rows = torch.arange(7)
    used = Batches(numbered(10), 7, 0, CPU)
    for step in steps:
        assert torch.equal(used(step, rows)[0], Batches(numbered(10), 7, 0, CPU)(step, rows)[0])


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(x.tolist()) for seed in (0, 1) for x in order(100, 16, 500, seed).split(100)]
    assert len(set(orders)) == 10
    assert tuple(range(100)) not in orders


def test_every_place_is_equally_likely():
    """Sample 0's place over many seeds: chi-squared with 9 degrees of freedom stays below its 99.9 % point."""
    places = torch.tensor([order(10, 10, 10, seed).tolist().index(0) for seed in range(1000)])
    counts = places.bincount(minlength=10).double()
    assert float(((counts - 100) ** 2 / 100).sum()) < 27.88


def test_rows_are_int64_and_unconditional_sets_have_no_condition():
    tokens, condition = Batches(numbered(5, torch.int32), 4, 0, CPU)(0, torch.arange(4))
    assert tokens.dtype == condition.dtype == torch.int64
    plain = TokenSet(tokens=torch.zeros(5, 2, dtype=torch.long))
    assert Batches(plain, 4, 0, CPU)(0, torch.arange(4))[1] is None


def test_empty_or_mislabelled_sets_are_refused():
    with pytest.raises(DataError, match="empty"):
        TokenSet(tokens=torch.zeros(0, 2, dtype=torch.long))
    with pytest.raises(DataError, match="3 samples but 2 labels"):
        # Called by hand, since the run-time check of shapes, which only tests have, would come first.
        TokenSet.__post_init__(SimpleNamespace(tokens=torch.zeros(3, 2), condition=torch.zeros(2)))


def test_rows_at_once_bound_the_logits_and_are_never_none():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert count_rows_at_once(512, 64, 2048, gpu) == 512
    assert count_rows_at_once(512, 256, 50_304, gpu) * 256 * 50_304 <= 1 << 26
    assert count_rows_at_once(512, 64, 2048, cpu) * 64 == 2048
    assert count_rows_at_once(5, 64, 2048, cpu) == 5
    assert count_rows_at_once(512, 1 << 20, 1 << 20, gpu) == count_rows_at_once(512, 1 << 20, 1 << 20, cpu) == 1
