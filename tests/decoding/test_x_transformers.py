"""Our preset of x-transformers beside the package itself: with equal noise, equal tokens at every step."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from unmask.decoding.counts import count_x_transformers
from unmask.decoding.presets import make_sound_wrapper, make_x_transformers
from unmask.method.critic import CriticScore
from unmask.method.rand import seeded
from unmask.method.sampling.decode import sample_tokens
from unmask.method.schedules import Cosine, Power

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it compiles functions with torch.jit
    from x_transformers import Encoder, TransformerWrapper
    from x_transformers import nonautoregressive_wrapper as package

K, LENGTH, ROWS = 19, 24, 5
SCHEDULES = {"linear": Power(), "cosine": Cosine()}


class NeverMask(nn.Module):
    """A network of the package that never predicts the mask, which the package would sample."""

    def __init__(self):
        super().__init__()
        self.net = TransformerWrapper(
            num_tokens=K + 1, max_seq_len=LENGTH, attn_layers=Encoder(dim=16, depth=1, heads=2)
        )
        self.emb_dim, self.num_tokens, self.max_seq_len = 16, K + 1, LENGTH
        self.seen: list[torch.Tensor] = []

    def forward(self, tokens, sum_embeds=None, return_logits_and_embeddings=False):
        self.seen.append(tokens)
        logits = 8 * self.net(tokens)
        logits = logits.masked_fill(torch.arange(K + 1) == K, -torch.inf)
        return (logits, None) if return_logits_and_embeddings else logits


class CriticNet(nn.Module):
    """A critic of the package: one logit per token, high if it is wrong."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(K + 1, 8)
        self.mix = nn.Conv1d(8, 1, 5, padding=2)

    def forward(self, tokens):
        return 3 * self.mix(self.table(tokens).mT).mT


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NeverMask().eval(), CriticNet().eval()


def run_package(net, monkeypatch, **settings):
    """Return what its network saw in each step, and its result; its noise is ours."""
    step = iter(range(1000))
    now = {}

    def draw(logits, temperature=1.0, dim=-1):
        now["rand"] = seeded(3, ROWS).at(next(step))
        return sample_tokens(logits, temperature, None, None, now["rand"]("token", LENGTH))

    monkeypatch.setattr(package, "gumbel_sample", draw)
    monkeypatch.setattr(package, "gumbel_noise", lambda t: -torch.log(-torch.log(now["rand"]("order", LENGTH))))
    net.seen.clear()
    wrapper = package.NonAutoregressiveWrapper(net, mask_id=K, **settings)
    return wrapper.generate(ROWS), list(net.seen)


@torch.no_grad()
def run_ours(net, sampling, priority=None):
    seen = []

    def predict(tokens, t):
        seen.append(tokens)
        return net(tokens)[..., :K]

    canvas = torch.full((ROWS, LENGTH), K)
    order = sampling.priority if priority is None else priority
    *_, last = sampling.run(predict, canvas, mask_id=K, rand=seeded(3, ROWS), priority=order)
    return last.tokens, seen


def drop_repeats(canvases):
    """Without steps that have nothing to reveal, which cost us no forward pass."""
    kept = canvases[:1]
    for canvas in canvases[1:]:
        if not torch.equal(canvas, kept[-1]) and (canvas == K).any():
            kept.append(canvas)
    return kept


def assert_same(ours, theirs):
    assert torch.equal(ours[0], theirs[0])
    mine, its = drop_repeats(ours[1]), drop_repeats(theirs[1])
    assert len(mine) == len(its)
    assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))


every_way = pytest.mark.parametrize(("schedule", "steps", "remask"), [
    ("linear", 18, False), ("cosine", 18, False), ("linear", 7, False), ("cosine", 40, False),
    ("linear", 18, True), ("cosine", 18, True), ("cosine", 6, True), ("linear", 40, True),
])  # fmt: skip


@every_way
def test_equal_noise_gives_equal_tokens(schedule, steps, remask, net, monkeypatch):
    theirs = run_package(net[0], monkeypatch, schedule=schedule, steps=steps, can_mask_prev_unmasked=remask)
    sampling = make_x_transformers(K + 1, SCHEDULES[schedule], steps=steps, remask=remask)
    assert_same(run_ours(net[0], sampling), theirs)


@every_way
def test_a_critic_with_its_sign_of_the_noise_chooses_the_same_tokens(schedule, steps, remask, net, monkeypatch):
    generator, critic = net
    theirs = run_package(
        generator, monkeypatch, schedule=schedule, steps=steps, can_mask_prev_unmasked=remask, token_critic=critic
    )
    sampling = make_x_transformers(K + 1, SCHEDULES[schedule], steps=steps, remask=remask, critic=True)
    assert sampling.priority.subtracts

    def judge(tokens):
        return -critic(tokens)[..., 0]

    same, other = (CriticScore(judge, 1.0, subtracts=sign) for sign in (True, False))
    assert_same(run_ours(generator, sampling, same), theirs)
    assert not torch.equal(run_ours(generator, sampling, other)[0], theirs[0])


def test_our_sounder_way_gives_other_tokens(net, monkeypatch):
    theirs = run_package(net[0], monkeypatch)
    assert not torch.equal(run_ours(net[0], make_sound_wrapper())[0], theirs[0])


def test_its_filter_rounds_up():
    """ceil((1 - 0.7) V) in float64 is 4 of 10, not 3."""
    for vocab in (2, 7, 10, 20, 100, 256, 1025):
        kept = package.top_k(torch.arange(float(vocab))[None, None], 0.7).isfinite().sum()
        assert make_x_transformers(vocab).top_k == kept


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_counts_are_those_of_its_own_functions(schedule):
    theirs = {"linear": package.linear_schedule, "cosine": package.cosine_schedule}[schedule]
    for tokens in (1, 2, 16, 32, 49, 64, 100, 256, 576, 1000, 1024):
        for steps in (*range(1, 65), 90, 128, 300):
            masked = (theirs(torch.linspace(0.0, 1.0, steps + 1)[1:]) * tokens).long().tolist()
            left = [tokens, *masked[:-1], 0]
            wanted = [a - b for a, b in pairwise(left)]
            assert count_x_transformers(tokens, steps, SCHEDULES[schedule]) == wanted, (tokens, steps)
