"""Classes by number or by name: what a person says, and what a network is given."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import ConfigError
from unmask.pipelines.labels import describe_ambiguity, resolve_filled_labels, resolve_labels, share_out_labels

NAMES = ("heron", "owl", "7")


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        (["owl", "heron"], [1, 0]),
        ([2, 0, 1], [2, 0, 1]),
        (["7", 7, "5", 5], [2, 2, 5, 5]),  # first as a name, as on the command line
        (["-1", -1, 1000], [-1, -1, 1000]),  # their range is for the model to check
        (np.array([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        ([], []),
    ],
)
def test_numbers_and_names_may_be_mixed(said, ids):
    assert torch.equal(resolve_labels(said, NAMES), torch.tensor(ids, dtype=torch.int64))


@given(ids=st.lists(st.integers(-(2**40), 2**40), max_size=9))
def test_numbers_come_back_as_they_are(ids):
    assert resolve_labels(ids, NAMES[:2]).tolist() == ids
    tensor = torch.tensor(ids, dtype=torch.int64)
    assert resolve_labels(tensor, NAMES) is tensor


@pytest.mark.parametrize(
    ("said", "classes", "told"),
    [
        (["hero"], NAMES, "no class hero: did you mean heron?"),
        (["xyz"], NAMES, "no class xyz: there are heron, owl, 7"),
        (["heron"], (), "no class heron: this model has no class names; give a number, or leave it out"),
        ([1.5], NAMES, "no class 1.5"),
        ([None], NAMES, "no class None"),
        (["1e3"], NAMES, "no class 1e3"),
        ("heron", NAMES, r"give a list, such as \['heron'\]"),
    ],
)
def test_anything_else_is_one_line(said, classes, told):
    with pytest.raises(ConfigError, match=told) as caught:
        resolve_labels(said, classes)
    assert "\n" not in str(caught.value)


def test_a_number_means_the_same_as_text_or_is_refused():
    """Folders called 1 to 3: "2" is the class of that name, as on the command line; the number 2 may be either."""
    names = ("1", "2", "3")
    assert resolve_labels(["1", "2", "3", 3, 0], names).tolist() == [0, 1, 2, 2, 0]
    said = r"label 2 may mean the class called 2 \(id 1\) and the class with id 2 \(called 3\): give the name '2'"
    with pytest.raises(ConfigError, match=said):
        resolve_labels([2], names)
    assert resolve_labels(torch.tensor([2]), names).tolist() == [2]
    assert describe_ambiguity("2", names) is not None
    assert [describe_ambiguity(label, names) for label in ("0", "3", "x")] == [None] * 3
    assert [describe_ambiguity(str(i), tuple("0123456789")) for i in range(10)] == [None] * 10


def test_a_class_without_pictures_is_refused_by_name():
    assert resolve_filled_labels("owl", NAMES, (0,)).tolist() == [1]
    with pytest.raises(ConfigError, match=r"class heron \(id 0\) had no training picture"):
        resolve_filled_labels(["owl", "heron"], NAMES, (0,))


# -- shares ------------------------------------------------------------------------------------------------------------

weights = st.lists(st.integers(0, 200), min_size=1, max_size=12).filter(any)


@given(weights=weights, num=st.integers(0, 400))
def test_labels_have_the_shares_of_the_weights(weights, num):
    counts = torch.tensor(weights)
    labels = share_out_labels(counts, num)
    assert len(labels) == num
    found = labels.bincount(minlength=len(weights))
    assert not found[counts == 0].any()
    # Within one sample of its share, but for the rare cases of this rule with many classes: two.
    assert float((found - counts * num / counts.sum()).abs().max()) < 2


@given(weights=weights, num=st.integers(1, 300), times=st.integers(1, 3))
def test_label_number_i_depends_on_nothing_else(weights, num, times):
    counts = torch.tensor(weights)
    assert torch.equal(share_out_labels(counts, num), share_out_labels(counts, num * 3 + 5)[:num])
    assert torch.equal(share_out_labels(counts, num), share_out_labels(counts * times, num))
    whole = share_out_labels(counts, times * int(counts.sum()))
    assert torch.equal(whole.bincount(minlength=len(weights)), times * counts)


@given(num_classes=st.integers(1, 30), each=st.integers(1, 9), num=st.integers(0, 99))
def test_equal_shares_run_through_the_classes(num_classes, each, num):
    assert torch.equal(share_out_labels(torch.full((num_classes,), each), num), torch.arange(num) % num_classes)


def test_shares_are_spread_over_the_row():
    """Of a class of 5 %, every 100 labels in a row hold 5, give or take one."""
    rare = share_out_labels(torch.tensor([95, 5]), 1000) == 1
    counts = rare.long().unfold(0, 100, 1).sum(1)
    assert (int(counts.min()), int(counts.max())) == (5, 5)


def test_no_pictures_at_all_are_refused():
    with pytest.raises(ConfigError, match="no class has a picture"):
        share_out_labels(torch.zeros(3, dtype=torch.int64), 5)
