"""Ids out of range raise a clear error on a CPU. Other devices and graph capture do not read the ids."""

import subprocess
import sys

import pytest
import torch

from unmask.method.guidance import NULL
from unmask.pretrained.ids import can_read, check_class_labels, check_ids, check_rows


def test_the_ends_of_the_range_are_inside_and_nothing_beyond():
    check_ids("codes", torch.tensor([[-1, 4]]), -1, 4, "")
    check_ids("codes", torch.tensor([], dtype=torch.int64), 0, 0, "")
    for ids in ([-2, 0], [0, 5]):
        with pytest.raises(ValueError, match=rf"^codes span {ids[0]}\.\.{ids[1]}, not -1\.\.4 \(-1 is none\)$"):
            check_ids("codes", torch.tensor(ids), -1, 4, "-1 is none")


def test_rows_and_classes():
    check_rows(torch.tensor([[0, 7]]), (1, 2), 7)
    with pytest.raises(ValueError, match=r"got 2 tokens per row; this model's grid \(2, 2\) has 4"):
        check_rows(torch.tensor([[0, 7]]), (2, 2), 7)
    with pytest.raises(ValueError, match=r"tokens span 0\.\.8, not 0\.\.7 \(7 is the mask\)"):
        check_rows(torch.tensor([[0, 8]]), (1, 2), 7)
    check_class_labels(None, 3)
    check_class_labels(torch.tensor([NULL, 2]), 3)
    with pytest.raises(ValueError, match=r"classes span 3\.\.3, not -1\.\.2 \(-1 is no class\)"):
        check_class_labels(torch.tensor([3]), 3)


def test_another_device_is_not_waited_for():
    there = torch.zeros(2, 3, dtype=torch.int64, device="meta")  # has no values, so reading one raises
    assert not can_read(there)
    check_ids("codes", there, 5, 6, "")
    check_rows(there, (3,), 1)


GRAPHS = """
import torch
from unmask.pretrained import google, halton_maskgit, titok_bert, titok_uvit, valeoai

kinds = (valeoai.ValeoaiMaskGIT, google.GoogleMaskGIT, halton_maskgit.HaltonMaskGIT, titok_bert.TiTokBert,
         titok_uvit.TiTokUViT)
tokens, classes = torch.tensor([[0, 4, 5, 5]]), torch.tensor([1])
for kind in kinds:
    model = kind(dim=8, depth=2, heads=2, num_classes=3).build(5, (2, 2)).eval()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(tokens, classes), model(tokens, classes))
"""


def test_a_network_is_one_graph():
    """Reading values would cut the graph, which `fullgraph` refuses. A new process has no type checks."""
    done = subprocess.run([sys.executable, "-c", GRAPHS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
