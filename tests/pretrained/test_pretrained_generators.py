"""The base of the published generators: one contract for all families, and the files that name their sizes."""

import math

import pytest
import torch

from unmask.method.guidance import NULL
from unmask.method.models.protocol import Generator
from unmask.pretrained.google import GoogleMaskGIT
from unmask.pretrained.halton_maskgit import HaltonMaskGIT
from unmask.pretrained.titok_bert import TiTokBert
from unmask.pretrained.titok_uvit import TiTokUViT
from unmask.pretrained.valeoai import ValeoaiMaskGIT
from unmask.storage.config import to_json

KINDS = (ValeoaiMaskGIT, HaltonMaskGIT, GoogleMaskGIT, TiTokBert, TiTokUViT)
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SIZES = {"dim": 8, "depth": 2, "heads": 2, "num_classes": 3}
PUBLISHED = {
    ValeoaiMaskGIT: {"dim": 768, "depth": 24, "heads": 16, "mlp_dim": 3072, "num_classes": 1000},
    HaltonMaskGIT: {"dim": 768, "depth": 12, "heads": 12, "hidden": 2048, "num_classes": 1000},
    GoogleMaskGIT: {"dim": 768, "depth": 24, "heads": 16, "mlp_dim": 3072, "num_classes": 1000, "null_class": False},
    TiTokBert: {"dim": 768, "depth": 24, "heads": 16, "mlp_dim": 3072, "num_classes": 1000},
    TiTokUViT: {"dim": 1024, "depth": 20, "heads": 16, "mlp_dim": 4096, "num_classes": 1000},
}


@each
def test_the_fields_that_config_json_holds(kind):
    assert {name: value for name, value in to_json(kind()).items() if name != "type"} == PUBLISHED[kind]
    assert repr(kind()).startswith(f"{kind.__name__}(dim=")
    assert all(kind() != other() for other in KINDS if other is not kind)


@each
@pytest.mark.parametrize("grid", [(6,), (2, 3), (1, 2, 3)], ids=str)
def test_one_contract_for_all_families(kind, grid):
    model = kind(**SIZES).build(5, grid).eval()
    assert isinstance(model, Generator)
    assert (model.vocab_size, model.mask_id, model.grid, model.length) == (5, 5, grid, math.prod(grid))
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 5, 5, 5, 5, 5]])
    with torch.no_grad():
        logits = model(tokens, torch.tensor([0, 2]))
        some = model(tokens, torch.tensor([0, 2]), tokens == model.mask_id)
    assert logits.shape == (2, 6, 5)
    torch.testing.assert_close(some, logits[tokens == model.mask_id])


@each
def test_logits_are_float32_or_wider(kind):
    for dtype, wanted in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        model = kind(**SIZES).build(5, (2, 2)).to(dtype).eval()
        assert model(torch.full((1, 4), 5), torch.tensor([1])).dtype == wanted


@each
def test_only_google_without_null_class_needs_a_class(kind):
    config = kind(**SIZES)
    model = config.build(5, (2, 2)).eval()
    tokens = torch.full((1, 4), 5)
    if isinstance(config, GoogleMaskGIT):
        for condition in (None, torch.tensor([NULL])):
            with pytest.raises(ValueError, match="without a null class"):
                model(tokens, condition)
    else:
        torch.testing.assert_close(model(tokens), model(tokens, torch.tensor([NULL])))


@each
def test_impossible_vocabularies_and_grids_are_one_line(kind):
    for vocab_size, grid in ((0, (2, 2)), (5, ()), (5, (2, 0)), (5, (1, 1, 1, 1))):
        with pytest.raises(ValueError, match=r"vocab_size \d and grid \(.*\): give at least 1 token.*cell$"):
            kind(**SIZES).build(vocab_size, grid)
