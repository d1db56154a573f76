"""torch at its first use: what is imported when, and that annotations and `isinstance` mean torch's tensor."""

import json
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from beartype import beartype
from jaxtyping import Float, TypeCheckError, jaxtyped

from unmask import lazy

PROGRAM = """
import json, sys
from jaxtyping import Float
from unmask.lazy import F, Tensor, nn, torch

found = []
def add(step):
    found.append([step, "torch" in sys.modules])

def double(x: Float[Tensor, "n"] | None, kind: "torch.dtype") -> "nn.Module":
    return x + x

add("annotate")
isinstance(3, Tensor), isinstance([], Float[Tensor, "n"])
add("isinstance")
one = torch.ones(2)
add("use")
assert isinstance(one, Tensor) and isinstance(one, Float[Tensor, "n"]) and double(one, torch.float32).sum() == 4
print(json.dumps(found))
"""


def test_torch_is_imported_when_it_is_used():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == [["annotate", False], ["isinstance", False], ["use", True]]


def test_the_names_are_those_of_torch():
    assert lazy.torch.arange is torch.arange
    assert lazy.nn.Linear is torch.nn.Linear
    assert lazy.F.softmax is F.softmax
    with pytest.raises(AttributeError, match="no attribute 'arrange'"):
        lazy.torch.arrange  # noqa: B018


@pytest.mark.parametrize("value", [torch.ones(2), torch.nn.Parameter(torch.ones(2))])
def test_a_tensor_is_one(value):
    assert isinstance(value, lazy.Tensor)


@pytest.mark.parametrize("value", [3, [1.0], None, torch.Tensor, torch.ones(2).numpy()])
def test_nothing_else_is_a_tensor(value):
    assert not isinstance(value, lazy.Tensor)


def test_shapes_are_checked():
    @jaxtyped(typechecker=beartype)
    def add(a: Float[lazy.Tensor, "n"], b: Float[lazy.Tensor, "n"]) -> Float[lazy.Tensor, "n"]:
        return a + b

    add(torch.ones(2), torch.ones(2))
    for wrong in (torch.ones(3), torch.ones(2, dtype=torch.int64), torch.ones(2).numpy()):
        with pytest.raises(TypeCheckError):
            add(torch.ones(2), wrong)
