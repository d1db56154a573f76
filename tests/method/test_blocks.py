"""Blocks from left to right: any sampler inside, everything revealed in order, and exact laws kept."""

import pytest
import torch
from toy_joint import JOINT, exact, fits, word_counts

from unmask.method import schedules as S
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.adaptive import EntropyBound, Threshold, decode_adaptive
from unmask.method.sampling.ancestral import decode_ancestral
from unmask.method.sampling.blocks import decode_blocks, pad_canvas
from unmask.method.sampling.decode import decode
from unmask.method.sampling.priorities import Entropy
from unmask.method.sampling.remasking import Rescale, decode_remasking

K, LENGTH = 7, 20
TABLE = torch.randn(K + 1, K, generator=torch.Generator().manual_seed(0))
RATIOS = S.ratios(S.Cosine(), 3)
SAMPLERS = {
    "decode": lambda rand: lambda predict, tokens: decode(predict, tokens, RATIOS, mask_id=K, rand=rand),
    "ancestral": lambda rand: lambda predict, tokens: decode_ancestral(predict, tokens, RATIOS, mask_id=K, rand=rand),
    "remasking": lambda rand: lambda predict, tokens: decode_remasking(predict, tokens, RATIOS, mask_id=K, rand=rand,
                                                                   rule=Rescale(0.5)),
    "adaptive": lambda rand: lambda predict, tokens: decode_adaptive(predict, tokens, mask_id=K, rand=rand,
                                                                     rule=Threshold()),
}  # fmt: skip
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def predict(tokens: torch.Tensor, t: float) -> torch.Tensor:
    assert tokens.shape[1] == LENGTH, "the network sees the whole canvas"
    return TABLE[tokens].roll(1, 1) * 2 + TABLE[tokens].mean(1, keepdim=True)


def canvas() -> torch.Tensor:
    """Rows with different holes; the first has none, the last is all masked."""
    gen = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, K, (6, LENGTH), generator=gen)
    return torch.where(torch.rand(6, LENGTH, generator=gen) < torch.linspace(0, 1, 6)[:, None], K, tokens)


@every_sampler
@pytest.mark.parametrize("size", [1, 6, 20, 50])
def test_contract(name, size):
    start = canvas()
    kept = start.clone()
    states = list(decode_blocks(SAMPLERS[name](seeded(0, 6)), predict, start, size=size))
    end = states[-1].tokens
    assert torch.equal(start, kept)
    assert (end < K).all()
    assert torch.equal(end[start < K], start[start < K])
    assert [s.step for s in states] == list(range(len(states)))
    assert name == "remasking" or all(s.revealed.any() for s in states[1:]), "no state comes twice"
    times = [s.t for s in states]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(1) or name == "ancestral"
    edges = [*range(size, LENGTH, size), LENGTH]
    for state in states[1:]:
        block = min(int(state.t * len(edges) - 1e-9), len(edges) - 1)
        done, end_of_block = ([0, *edges])[block], edges[block]
        assert (state.tokens[:, :done] < K).all(), "earlier blocks are complete"
        assert torch.equal(state.tokens[:, end_of_block:], start[:, end_of_block:]), "later ones untouched"
        assert not state.revealed[:, :done].any()
        assert not state.revealed[:, end_of_block:].any()
    for rows in ([0, 1], [5], [3, 1]):
        *_, alone = decode_blocks(SAMPLERS[name](Rand(0, torch.tensor(rows), 6)), predict, start[rows], size=size)
        assert torch.equal(alone.tokens, end[rows])


@every_sampler
def test_one_block_is_the_sampler_itself(name):
    sampler = SAMPLERS[name](seeded(2, 6))
    *_, whole = sampler(predict, canvas())
    *_, block = decode_blocks(sampler, predict, canvas(), size=LENGTH)
    assert torch.equal(whole.tokens, block.tokens)


def test_blocks_of_one_follow_the_joint_law_and_two_at_once_do_not():
    rows = 20_000

    def at_once(predict, tokens):
        return decode(predict, tokens, [0.0], mask_id=2, rand=seeded(0, rows))

    for size, exactly in ((1, True), (2, False)):
        *_, end = decode_blocks(at_once, exact, torch.full((rows, 3), 2), size=size)
        assert (fits(word_counts(end.tokens), JOINT) > 1e-3) == exactly


def test_careful_blocks_follow_the_joint_law():
    rows = 20_000

    def careful(predict, tokens):
        return decode_adaptive(predict, tokens, mask_id=2, rand=seeded(0, rows), rule=EntropyBound(0.0))

    *_, end = decode_blocks(careful, exact, torch.full((rows, 3), 2), size=2)
    assert fits(word_counts(end.tokens), JOINT) > 1e-3


def test_predict_sees_what_was_given_behind_the_block_and_the_time_of_the_whole():
    seen = []

    def watched(tokens, t):
        seen.append((tokens, t))
        return predict(tokens, t)

    start = torch.full((1, LENGTH), K)
    start[0, 15] = 3
    list(decode_blocks(SAMPLERS["decode"](seeded(0, 1)), watched, start, size=10))
    assert all(tokens[0, 15] == 3 for tokens, _ in seen)
    assert [t for _, t in seen] == pytest.approx([s / 6 for s in range(6)])
    assert all((tokens[0, 10:15] == K).all() for tokens, _ in seen[:3])


def test_a_block_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="size"):
        list(decode_blocks(SAMPLERS["decode"](seeded(0, 6)), predict, canvas(), size=0))


@pytest.mark.parametrize("fill", [K, 2])
def test_pad_canvas(fill):
    short = canvas()[:, :8]
    whole = torch.cat([short, torch.full((6, LENGTH - 8), fill)], dim=1)
    assert torch.equal(pad_canvas(predict, LENGTH, fill)(short, 0.5), predict(whole, 0.5)[:, :8])
    assert torch.equal(pad_canvas(predict, LENGTH, fill)(canvas(), 0.5), predict(canvas(), 0.5))
    ratios = S.ratios(S.Power(), 4)
    *_, end = decode(pad_canvas(predict, LENGTH, fill), short, ratios, mask_id=K, rand=seeded(0, 6), priority=Entropy())
    assert end.tokens.shape == short.shape
    assert (end.tokens < K).all()


def test_a_canvas_beyond_the_network_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        pad_canvas(predict, 10, K)(canvas(), 0.5)
