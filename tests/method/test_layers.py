"""The parts of a block: how it starts, what rotary positions mean, and attention against its formula."""

import math

import pytest
import torch
from torch import nn

from unmask.method.models import layers
from unmask.method.models.layers import Attention, Block, RMSNorm, attend, compute_rotary_angles, rotate


@pytest.mark.parametrize("modulated", [True, False])
def test_blocks_start_as_the_identity(modulated):
    block = Block(16, 4.0, attention=Attention(16, 2, qk_norm=True), gated=True, modulated=modulated)
    x, c = torch.randn(2, 5, 16), torch.randn(2, 16) if modulated else None
    assert torch.equal(block(x, c, None), x)
    nn.init.normal_(block.modulation.weight if modulated else block.attention.out.weight)
    assert not torch.allclose(block(x, c, None), x)


# -- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(9,), (5, 6), (3, 4, 5)], ids=str)
def test_rotary_products_depend_on_the_offset_only(grid):
    angles = compute_rotary_angles(grid, 24, 0).double()
    gen = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 24, generator=gen).double().expand(math.prod(grid), 2, 24).permute(1, 0, 2)[:, None, None]
    q, k = (rotate(x, angles.cos(), angles.sin())[0, 0] for x in (q, k))
    products = (q @ k.T).reshape(*grid, *grid)
    where = torch.cartesian_prod(*[torch.arange(n) for n in grid]).view(-1, len(grid)).tolist()
    seen: dict[tuple[int, ...], float] = {}
    for a in where:
        for b in where:
            offset = tuple(i - j for i, j in zip(a, b, strict=True))
            product = products[(*a, *b)].item()
            assert seen.setdefault(offset, product) == pytest.approx(product, abs=1e-5)
    values = torch.tensor(list(seen.values()))
    assert values.unique().numel() == len(seen), "each offset along each axis has its own product"


def test_registers_are_not_rotated_and_cells_are():
    angles = compute_rotary_angles((3, 4), 16, 2)
    assert angles.shape == (14, 8)
    assert (angles[:2] == 0).all()
    assert torch.equal(angles[2:], compute_rotary_angles((3, 4), 16, 0))
    assert angles[3:].abs().amax(1).min() > 0
    x = torch.randn(1, 1, 14, 16)
    turned = rotate(x, angles.cos(), angles.sin())
    assert torch.equal(turned[:, :, :2], x[:, :, :2])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_each_axis_turns_its_own_pairs(grid):
    pairs = 12 // len(grid)
    angles = compute_rotary_angles(grid, 24, 0).view(*grid, 12)
    for axis in range(len(grid)):
        mine = angles[..., axis * pairs : (axis + 1) * pairs]
        others = [a for a in range(len(grid)) if a != axis]
        assert all((mine.diff(dim=a) == 0).all() for a in others)
        steps = mine.diff(dim=axis)
        assert steps.min() > 0
        assert steps.flatten(0, -2)[0, 0] == pytest.approx(1.0), "the first frequency is one radian per cell"


# -- attention --------------------------------------------------------------------------------------------------------


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    return torch.softmax(torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1]), -1) @ v


@pytest.mark.parametrize("route", ["explicit", "fused"])
def test_both_routes_of_attention_agree_with_the_formula(route, monkeypatch):
    """bf16 on a CPU takes the explicit route up to a length; moving that length forces either one."""
    monkeypatch.setattr(layers, "EXPLICIT_ATTENTION_LENGTH", 10_000 if route == "explicit" else 0)
    fused = []
    original = layers.F.scaled_dot_product_attention
    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", lambda *x, **y: fused.append(1) or original(*x, **y))
    gen = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 3, 17, 8, generator=gen).bfloat16().requires_grad_() for _ in range(3)]
    same = [x.detach().double().requires_grad_() for x in leaves]
    out, want = attend(*leaves), by_hand(*same)
    assert bool(fused) == (route == "fused")
    torch.testing.assert_close(out.double(), want, atol=0.02, rtol=0.02)
    weight = torch.randn(out.shape, generator=gen).bfloat16()
    (out * weight).sum().backward()
    (want * weight.double()).sum().backward()
    for a, b in zip(leaves, same, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("scores", [1, 257 * 257 * 4, layers.SCORES], ids=["a head", "four heads", "all at once"])
@pytest.mark.parametrize("length", [17, 256, 257])
@pytest.mark.parametrize("masked", [False, True])
def test_without_gradients_attention_is_the_same_and_leaves_its_input_alone(scores, length, masked, monkeypatch):
    monkeypatch.setattr(layers, "SCORES", scores)
    gen = torch.Generator().manual_seed(0)
    leaves = [torch.randn(2, 3, length, 8, generator=gen).bfloat16() for _ in range(3)]
    before = [x.clone() for x in leaves]
    present = (torch.arange(length) < torch.tensor([[11], [length]]))[:, None, None] if masked else None
    with torch.no_grad():
        out = attend(*leaves, present)
    assert all(torch.equal(a, b) for a, b in zip(leaves, before, strict=True))
    kept = slice(0, 11) if masked else slice(None)
    want = by_hand(*(x[:1, :, kept] for x in leaves))
    torch.testing.assert_close(out[:1, :, kept].double(), want, atol=0.02, rtol=0.02)
    torch.testing.assert_close(out[1:].double(), by_hand(*(x[1:] for x in leaves)), atol=0.02, rtol=0.02)
    if length <= layers.EXPLICIT_ATTENTION_LENGTH:
        assert torch.equal(out, attend(*(x.requires_grad_() for x in leaves), present).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(0, 17), (2, 0)])
def test_no_rows_and_no_tokens_are_no_attention(rows, length, learns, dtype):
    q, k, v = torch.randn(3, rows, 3, length, 8, dtype=dtype).requires_grad_()
    with torch.set_grad_enabled(learns):
        out = attend(q, k, v)
    assert (out.shape, out.dtype) == ((rows, 3, length, 8), dtype)
    if learns:
        out.sum().backward()


@pytest.mark.parametrize("spread", [1, 4, 16])
def test_the_rounding_of_scores_is_bounded(spread):
    """bfloat16 has 8 bits: a score is off by up to 2^-9 of itself, and so is the logarithm of its weight."""
    q, k, v = torch.randn(3, 2, 3, 257, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    q = q * spread
    with torch.no_grad():
        off = attend(q, k, v).double() - by_hand(q, k, v)
    scores = torch.einsum("bhid,bhjd->bhij", q.double(), k.double()) / math.sqrt(8)
    most = 2**-9 * scores.abs().amax() * 2 + 2**-7  # of a weighted mean's own rounding
    assert off.norm() / by_hand(q, k, v).norm() < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_absent_tokens_are_attended_to_by_nobody(dtype):
    q, k, v = torch.randn(3, 2, 3, 17, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    present = torch.arange(17) < torch.tensor([[11], [17]])
    out = attend(q, k, v, present[:, None, None])
    want = by_hand(q[:1, :, :, :], k[:1, :, :11], v[:1, :, :11])
    torch.testing.assert_close(out[:1].double(), want, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=2e-2)
    torch.testing.assert_close(out[1], attend(q, k, v)[1])


def test_single_precision_attention_is_the_formula():
    q, k, v = torch.randn(3, 2, 3, 17, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(q, k, v).double(), by_hand(q, k, v), atol=1e-5, rtol=1e-5)


def test_attention_without_positions_is_equivariant_and_with_them_is_not():
    torch.manual_seed(0)
    attention, x, order = Attention(16, 2, True), torch.randn(1, 6, 16), torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(attention(x[:, order], None), attention(x, None)[:, order])
    angles = compute_rotary_angles((6,), 8, 0)
    rotation = (angles.cos(), angles.sin())
    assert not torch.allclose(attention(x[:, order], rotation), attention(x, rotation)[:, order], atol=1e-3)


@pytest.mark.parametrize("size", [7.0, 0.02, 1e-3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_norm_is_the_same_with_and_without_gradients(dtype, tolerance, size):
    norm = RMSNorm(32).to(dtype)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)).to(dtype) * torch.tensor(size).to(dtype)
    x[0, 0] = 0
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 32))
        written_out = norm(x)
    torch.testing.assert_close(written_out, norm(x).detach(), atol=tolerance, rtol=tolerance)
