"""Classes by number or by name: what a person says, and what a network is given."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.errors import ConfigError
from unmask.pipelines.labels import resolve_labels

NAMES = ("heron", "owl", "7")


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        (["owl", "heron"], [1, 0]),
        ([2, 0, 1], [2, 0, 1]),
        (["7", 7, "5"], [2, 7, 5]),  # a name wins; a number is a number
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
    assert resolve_labels(ids, NAMES).tolist() == ids
    tensor = torch.tensor(ids, dtype=torch.int64)
    assert resolve_labels(tensor, NAMES) is tensor


@pytest.mark.parametrize(
    ("said", "classes", "told"),
    [
        (["hero"], NAMES, "no class hero: did you mean heron?"),
        (["xyz"], NAMES, "no class xyz: there are heron, owl, 7"),
        (["heron"], (), "no class heron: give its number"),
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
