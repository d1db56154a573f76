"""Quantizers against vector-quantize-pytorch, brute force and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.tokenizers.quantizers import FSQ, LFQ, VQ, Codebook, Quantized

MOST = float(torch.finfo(torch.float32).max)
HUGE = st.one_of(st.floats(-6, 6, width=32), st.floats(-MOST, MOST, width=32))


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def grid_of(x: Tensor) -> Tensor:
    """[n d] as one image of n cells in a column."""
    return x.T[None, :, :, None]


def column(z: Tensor) -> Tensor:
    """The inverse of `grid_of`."""
    return z[0, :, :, 0].T


def gradient_of(quantize, z: Tensor, weights: Tensor) -> Tensor:
    """What a weighted sum of the quantized latents sends back to z."""
    z = z.clone().requires_grad_()
    (quantize(z) * weights).sum().backward()
    return z.grad


# -- all of them -------------------------------------------------------------------------------------------------------

ALL = pytest.mark.parametrize(
    "config",
    [
        FSQ(levels=(5, 4, 3)),
        VQ(vocab_size=20, dim=3),
        VQ(vocab_size=20, dim=3, normalize=False, decay=0.0),
        LFQ(bits=4),
    ],
    ids=["fsq", "vq", "vq-gradient", "lfq"],
)


def built(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return config.build()


@ALL
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4, 1)])
def test_shapes_ranges_and_lookup(config, shape):
    module, z = built(config), noise(5, config.dim, *shape, scale=2.0)
    out = module(z)
    assert isinstance(out, Quantized)
    assert out.latents.shape == z.shape
    assert out.tokens.shape == (5, shape[0] * shape[1])
    assert out.tokens.dtype == torch.int64
    assert out.tokens.min() >= 0
    assert out.tokens.max() < config.vocab_size
    assert torch.equal(module.look_up(out.tokens).transpose(1, 2).reshape(z.shape), out.latents)
    for cell in range(shape[0] * shape[1]):  # tokens are in the row-major order of the cells
        alone = module(z[:, :, cell // shape[1], cell % shape[1]][:, :, None, None])
        assert torch.equal(alone.tokens[:, 0], out.tokens[:, cell])


@ALL
def test_latents_are_the_codes_to_the_bit_also_far_away(config):
    """x + (code - x) would lose a code of size 1 beside an x of size 1e8."""
    module = built(config)
    z = grid_of(torch.cat([noise(50, config.dim, scale=s) for s in (1e-6, 0.1, 3.0, 1e3, 1e8)]))
    out = module(z)
    assert torch.equal(module.look_up(out.tokens)[0], column(out.latents))


@ALL
def test_every_code_is_its_own_code(config):
    module = built(config)
    tokens = torch.arange(config.vocab_size)[None]
    codes = module.look_up(tokens)
    if isinstance(config, FSQ):
        # A code's latents in [-1, 1] are bounded again on the way in: go back through the bound first.
        half, odd = (module.levels - 1) * 1.001 / 2, module.levels % 2
        shift = (0.5 * (1 - odd) / half).atanh()
        codes = ((codes * (module.levels // 2) + 0.5 * (1 - odd)) / half).clamp(-0.9999, 0.9999).atanh() - shift
    assert torch.equal(module(grid_of(codes[0])).tokens, tokens)


@ALL
def test_loss_is_a_sum_over_images(config):
    module, z = built(config), noise(6, config.dim, 2, 2)
    if isinstance(config, LFQ):
        config = LFQ(bits=config.bits, diversity=0.0)  # the other term is of the batch
        module = built(config)
    parts = [module(part).loss for part in z.split([1, 2, 3])]
    torch.testing.assert_close(sum(parts), module(z).loss)


@ALL
def test_autocast_changes_no_token(config):
    module, z = built(config), noise(8, config.dim, 16, 16, scale=2.0)
    plain = module(z)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(z)
    assert torch.equal(plain.tokens, inside.tokens)
    torch.testing.assert_close(plain.loss, inside.loss, rtol=1e-6, atol=1e-6)


@ALL
def test_bfloat16_latents_are_quantized_in_float32(config):
    module, z = built(config), noise(2, config.dim, 4, 4, scale=2.0).bfloat16()
    out = module(z)
    assert out.latents.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.tokens, module(z.float()).tokens)


@ALL
def test_nan_is_a_token_in_range_and_nan_latents(config):
    module, z = built(config), noise(2, config.dim, 2, 2)
    z[1, 0, 0, 1] = torch.nan
    out = module(z)
    assert out.tokens.min() >= 0
    assert out.tokens.max() < config.vocab_size
    assert out.latents[1, 0, 0, 1].isnan()
    assert torch.equal(out.tokens[0], module(z[:1]).tokens[0])


# -- finite scalars ----------------------------------------------------------------------------------------------------

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 4), (3,), (7, 4, 9), (4, 4)])
def test_fsq_is_the_published_one(levels):
    oracle_module = pytest.importorskip("vector_quantize_pytorch")
    ours, oracle = FSQ(levels=levels).build(), oracle_module.FSQ(levels=list(levels))
    z, weights = noise(4, len(levels), 6, 7, scale=2.0), noise(4, len(levels), 6, 7, seed=1)
    codes, tokens = oracle(z)
    out = ours(z)
    assert torch.equal(out.tokens, tokens.flatten(1).long())
    torch.testing.assert_close(out.latents, codes)
    torch.testing.assert_close(
        gradient_of(lambda x: ours(x).latents, z, weights), gradient_of(lambda x: oracle(x)[0], z, weights)
    )
    every = torch.arange(math.prod(levels))[None]
    torch.testing.assert_close(ours.look_up(every), oracle.indices_to_codes(every))


@given(levels=LEVELS, values=st.lists(HUGE, min_size=1, max_size=30))
@settings(max_examples=60)
def test_fsq_tokens_stay_in_range_for_any_number(levels, values):
    config = FSQ(levels=levels)
    z = torch.tensor(values, dtype=torch.float32)[:, None].expand(-1, len(levels))
    out = config.build()(grid_of(z))
    assert out.tokens.min() >= 0
    assert out.tokens.max() < config.vocab_size
    assert torch.equal(config.build().look_up(out.tokens)[0], column(out.latents))
    assert column(out.latents).abs().max() <= 1


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 16, 255, 256, 999, 1000])
def test_fsq_reaches_each_level_and_no_other(count):
    config = FSQ(levels=(count, 3))
    x = torch.linspace(-30, 30, 200_001)
    out = config.build()(grid_of(torch.stack([x, torch.zeros_like(x)], dim=1)))
    first = out.tokens[0] % count
    assert (first.diff() >= 0).all()
    assert (first[0], first[-1]) == (0, count - 1)
    assert (out.tokens[0] // count == 1).all()
    if count < 300:
        assert len(first.unique()) == count


def test_fsq_gradient_is_that_of_the_bound():
    """Odd levels: half * (1 - tanh^2) / (levels // 2)."""
    z = noise(50, 1)
    ours = gradient_of(lambda x: FSQ(levels=(5,)).build()(x).latents, grid_of(z), torch.ones(1))
    torch.testing.assert_close(column(ours), 2 * 1.001 * (1 - z.tanh() ** 2) / 2)


@pytest.mark.parametrize(
    ("levels", "words"),
    [((), "2 to 1000"), ((8, 1), "2 to 1000"), ((1001,), "2 to 1000"), ((8,) * 7, "2097152 codes")],
)
def test_fsq_refuses(levels, words):
    with pytest.raises(ValueError, match=words):
        FSQ(levels=levels)


# -- a learned codebook ------------------------------------------------------------------------------------------------


def codebook(**changes) -> Codebook:
    """With distinct codes of size about 1."""
    module = VQ(**{"vocab_size": 12, "dim": 4, **changes}).build()
    with torch.no_grad():
        module.table.copy_(module.normalize(noise(*module.table.shape, seed=5)))
        module.sum.copy_(module.table)
    return module


def oracle_vq(module: Codebook, **changes):
    """The same codes in vector-quantize-pytorch, with no smoothing of its counts."""
    config = module.config
    vq = pytest.importorskip("vector_quantize_pytorch").VectorQuantize(
        dim=config.dim,
        codebook_size=config.vocab_size,
        use_cosine_sim=config.normalize,
        accept_image_fmap=True,
        rotation_trick=False,
        commitment_weight=config.commitment,
        eps=0.0,
        **changes,
    )
    vq._codebook.embed.data.copy_(module.table.detach()[None])
    vq._codebook.embed_avg.copy_(module.table.detach()[None])
    return vq


NORMALIZE = pytest.mark.parametrize("normalize", [True, False], ids=["sphere", "plain"])


@NORMALIZE
@given(count=st.integers(2, 40), dim=st.integers(1, 6), seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_nearest_is_nearest(normalize, count, dim, seed):
    module = codebook(vocab_size=count, dim=dim, normalize=normalize)
    x = module.normalize(noise(70, dim, seed=seed, scale=2.0))
    distances = (x[:, None] - module.look_up(torch.arange(count)[None])[0]).double().square().sum(-1)
    chosen = distances.gather(1, module.find_nearest(x)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), rtol=0, atol=1e-5)


def test_nearest_is_the_same_in_parts(monkeypatch):
    module = codebook(vocab_size=1 << 14)
    x = module.normalize(noise(2500, 4))  # in parts of 1024
    whole = (x @ module.normalize(module.table).T).argmax(1)
    assert torch.equal(module.find_nearest(x), whole)


@NORMALIZE
def test_vq_is_the_oracle_in_values_gradients_and_loss(normalize):
    module = codebook(normalize=normalize, revive=0.0)
    oracle = oracle_vq(module)
    oracle.train()
    z, weights = noise(3, 4, 5, 6), noise(3, 4, 5, 6, seed=1)
    latents, tokens, loss = oracle(z, freeze_codebook=True)
    out = module(z)
    assert torch.equal(out.tokens, tokens.flatten(1))
    torch.testing.assert_close(out.latents, latents)
    torch.testing.assert_close(out.loss, 3 * loss[0] if loss.ndim else 3 * loss)  # a sum over images, not their mean

    def total(quantize):
        x = z.clone().requires_grad_()
        latents, loss = quantize(x)
        ((latents * weights).sum() + 3 * loss).backward()
        return x.grad

    def theirs(x):
        latents, _, loss = oracle(x, freeze_codebook=True)
        return latents, loss.sum()

    torch.testing.assert_close(total(lambda x: (module(x).latents, module(x).loss / 3)), total(theirs))


@NORMALIZE
def test_gradient_codebook_loss_is_the_closed_form(normalize):
    """d/dc sum_n |c - x_n|^2 / (l d) = 2 (count c - sum x) / (l d), through the unit sphere where there is one."""
    module = codebook(normalize=normalize, decay=0.0, commitment=0.5)
    z = noise(3, 4, 5, 6)
    out = module(z)
    x = module.normalize(z.flatten(2).transpose(1, 2)).flatten(0, 1)
    codes = module.normalize(module.table.detach())
    square = (x - codes[out.tokens.flatten()]).square().sum()
    torch.testing.assert_close(out.loss.detach(), (0.5 + 1) * square / (30 * 4))
    out.loss.backward()
    hot = F.one_hot(out.tokens.flatten(), 12).float()
    pull = 2 * (hot.sum(0)[:, None] * codes - hot.T @ x) / (30 * 4)
    if normalize:
        length = module.table.detach().norm(dim=1, keepdim=True)
        pull = (pull - codes * (codes * pull).sum(1, keepdim=True)) / length
    torch.testing.assert_close(module.table.grad, pull)


def test_gradient_codebook_is_the_oracles():
    """Theirs weighs both halves of the loss alike."""
    module = codebook(normalize=False, decay=0.0, commitment=1.0)
    oracle = oracle_vq(module, learnable_codebook=True, ema_update=False)
    oracle.train()
    z = noise(1, 4, 5, 6)
    ours, theirs = (x.requires_grad_() for x in (z.clone(), z.clone()))
    module(ours).loss.backward()
    oracle(theirs)[2].sum().backward()
    torch.testing.assert_close(module.table.grad, oracle._codebook.embed.grad[0])
    torch.testing.assert_close(ours.grad, theirs.grad)


def step(module: Codebook, z: Tensor, candidates: Tensor | None = None) -> None:
    with torch.no_grad():
        sums = module.sum_latents(z, module(z).tokens)
    module.update(sums, z.flatten(2)[:, :, 0] if candidates is None else candidates)


@NORMALIZE
def test_moving_means_by_hand(normalize):
    module = codebook(normalize=normalize, decay=0.9, revive=0.0)
    old, z = module.table.detach().clone(), noise(2, 4, 3, 3)
    tokens = module(z).tokens.flatten()
    x = module.normalize(z.flatten(2).transpose(1, 2)).flatten(0, 1)
    step(module, z)
    for code in range(12):
        mine = x[tokens == code]
        count = 0.9 + 0.1 * len(mine)
        mean = (0.9 * old[code] + 0.1 * mine.sum(0)) / count
        assert float(module.count[code]) == pytest.approx(count)
        torch.testing.assert_close(module.table[code].detach(), module.normalize(mean) if len(mine) else old[code])
        torch.testing.assert_close(module.sum[code], mean * count)


@NORMALIZE
def test_moving_means_are_the_oracles_after_many_steps(normalize):
    module = codebook(normalize=normalize, decay=0.8, revive=0.0)
    oracle = oracle_vq(module, decay=0.8)
    oracle.train()
    for i in range(12):
        z = noise(4, 4, 3, 3, seed=i)
        oracle(z)
        step(module, z)
    torch.testing.assert_close(module.table.detach(), oracle.codebook, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.count, oracle._codebook.cluster_size[0])


def test_a_code_that_nobody_sees_stays_where_it_is():
    module = codebook(normalize=False, decay=0.5, revive=0.0)
    z = module.table.detach()[3].expand(9, 4).clone()
    before = module.table.detach().clone()
    for _ in range(400):  # 2^-400 is 0 in float32
        step(module, grid_of(z))
    others = torch.arange(12) != 3
    assert torch.equal(module.table.detach()[others], before[others])
    assert (module.count[others] == 0).all()
    step(module, grid_of(before + 1e-3))
    torch.testing.assert_close(module.table.detach(), before, rtol=0, atol=2e-3)


def test_sums_add_up_over_micro_batches():
    module, z = codebook(), noise(8, 4, 5, 5)
    tokens = module(z).tokens
    whole = module.sum_latents(z, tokens)
    parts = [module.sum_latents(z[rows], tokens[rows]) for rows in (slice(0, 8, 3), slice(1, 8, 3), slice(2, 8, 3))]
    torch.testing.assert_close(sum(parts), whole)
    assert torch.equal(whole[:, 0], tokens.flatten().bincount(minlength=12).float())
    hot = F.one_hot(tokens.flatten(), 12).float()
    torch.testing.assert_close(whole[:, 1:], hot.T @ module.normalize(z.flatten(2).transpose(1, 2)).flatten(0, 1))


@NORMALIZE
def test_it_starts_at_the_means_of_its_latents(normalize):
    """Lloyd's iterations by hand, from every eighth latent."""
    module = VQ(vocab_size=25, dim=3, normalize=normalize).build()
    assert not module.started
    x = module.normalize(noise(200, 3))
    centres = x[::8].clone()
    for _ in range(7):
        mine = torch.cdist(x, centres).argmin(1)
        means = [x[mine == i].mean(0) if (mine == i).any() else centres[i] for i in range(25)]
        centres = module.normalize(torch.stack(means))
    module.start(x * 3 if normalize else x, iterations=7)
    torch.testing.assert_close(module.table.detach(), centres)
    assert torch.equal(module.sum, module.table.detach())
    assert torch.equal(module.count, torch.ones(25))
    assert module.started


def test_kmeans_only_ever_comes_closer():
    x = noise(500, 3)
    errors = []
    for iterations in (0, 1, 3, 10, 30):
        module = VQ(vocab_size=20, dim=3, normalize=False).build()
        module.start(x, iterations)
        errors.append(float((x - module.table.detach()[module.find_nearest(x)]).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_it_starts_with_fewer_latents_than_codes():
    module = VQ(vocab_size=20, dim=3, normalize=False).build()
    x = noise(7, 3)
    module.start(x)
    assert torch.equal(module.table.detach()[module.find_nearest(x)], x)


@pytest.mark.parametrize("decay", [0.9, 0.0], ids=["mean", "gradient"])
@pytest.mark.parametrize("num", [2, 3, 9])
def test_dead_codes_move_onto_candidates(decay, num):
    module = codebook(normalize=False, decay=decay, revive=0.5)
    dead = torch.tensor([2, 5, 11])
    module.count[dead] = 0.1
    before, candidates = module.table.detach().clone(), noise(num, 4, seed=9)
    module.update(torch.zeros(12, 5), candidates)
    moved = dead[:num]
    assert torch.equal(module.table.detach()[moved], candidates[: len(moved)])
    assert torch.equal(module.sum[moved], candidates[: len(moved)])
    assert (module.count[moved] == 1).all()
    others = [i for i in range(12) if i not in moved.tolist()]
    assert torch.equal(module.table.detach()[others], before[others])
    assert (module.count[dead[num:]] < 0.5).all()


def test_a_code_dies_after_as_many_steps_as_the_config_says():
    """count = decay^n falls below `revive` at n = log(revive) / log(decay)."""
    module = codebook(normalize=False, decay=0.9, revive=0.1)
    z = module.table.detach()[:1].expand(9, 4).clone()
    alive = module.table.detach()[5].clone()
    far = torch.full((1, 4), 7.0)
    steps = 0
    while torch.equal(module.table.detach()[5], alive):
        step(module, grid_of(z), far.expand(12, 4))
        steps += 1
    assert steps == math.ceil(math.log(0.1) / math.log(0.9))
    assert torch.equal(module.table.detach()[5], far[0])


def test_a_table_without_gradient_is_still_a_parameter():
    assert [(n, p.requires_grad) for n, p in codebook().named_parameters()] == [("table", False)]
    assert [(n, p.requires_grad) for n, p in codebook(decay=0.0).named_parameters()] == [("table", True)]


@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 1}, {"vocab_size": 1 << 19}, {"dim": 0}, {"decay": 1.0}, {"commitment": -1.0}, {"revive": -0.1}],
)
def test_vq_refuses(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        VQ(**changes)


# -- bits --------------------------------------------------------------------------------------------------------------


def by_brute_force(x: Tensor, sharpness: float, diversity: float) -> Tensor:
    """A softmax over all codes with logits -sharpness |x - c|^2, in float64."""
    bits = x.shape[1]
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1).to(x) * 2 - 1
    log_p = (-sharpness * (x[:, None] - codes).square().sum(-1)).log_softmax(1)
    each = -(log_p.exp() * log_p).sum(1).mean()
    return each - diversity * torch.special.entr(log_p.exp().mean(0)).sum()


@pytest.mark.parametrize("bits", [1, 2, 3, 7])
@pytest.mark.parametrize(("sharpness", "diversity"), [(1.0, 1.0), (0.3, 2.5), (20.0, 0.0)])
def test_entropy_loss_is_brute_force_with_its_gradient(bits, sharpness, diversity):
    module = LFQ(bits=bits, sharpness=sharpness, diversity=diversity).build()
    x = noise(25, bits, scale=0.7).requires_grad_()
    exact = x.detach().double().requires_grad_()
    loss, reference = module.compute_entropy_loss(x), by_brute_force(exact, sharpness, diversity)
    torch.testing.assert_close(loss.double(), reference, rtol=1e-4, atol=1e-5)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 3.0, 5.0, 50.0, 1e6])
def test_entropy_gradients_stay_finite_where_bits_are_certain(size):
    """p log p has an infinite slope at 0, and a bit that is certain in float32 must not turn that into NaN."""
    x = torch.full((4, 10), size).requires_grad_()
    LFQ().build().compute_entropy_loss(x).backward()
    assert x.grad.isfinite().all()


def test_entropy_is_that_of_the_oracle():
    oracle_module = pytest.importorskip("vector_quantize_pytorch")
    oracle = oracle_module.LFQ(dim=6, diversity_gamma=0.7, entropy_loss_weight=0.2, commitment_loss_weight=0.25).train()
    z = noise(3, 6, 4, 4, scale=0.5)
    # Theirs has logits 2 inv_temperature x.c, so ours, 2 sharpness x.c, is the same number.
    _, tokens, loss = oracle(z, inv_temperature=0.8)
    out = LFQ(bits=6, diversity=0.7, entropy=0.2, sharpness=0.8).build()(z)
    reverse = sum((tokens >> i & 1) << (5 - i) for i in range(6))  # their first bit is worth the most
    assert torch.equal(out.tokens, reverse.flatten(1).long())
    torch.testing.assert_close(out.loss, 3 * loss, rtol=1e-3, atol=1e-4)  # they clamp probabilities at 1e-5


def test_lfq_codes_and_gradients_are_the_oracles():
    oracle_module = pytest.importorskip("vector_quantize_pytorch")
    oracle, ours = oracle_module.LFQ(dim=6).train(), LFQ(bits=6).build()
    z, weights = noise(3, 6, 4, 4), noise(3, 6, 4, 4, seed=1)
    torch.testing.assert_close(ours(z).latents, oracle(z)[0])
    torch.testing.assert_close(gradient_of(lambda x: ours(x).latents, z, weights), weights)
    torch.testing.assert_close(gradient_of(lambda x: oracle(x)[0], z, weights), weights)


def test_lfq_commitment_is_the_mean_square():
    z = noise(3, 5, 2, 4)
    out = LFQ(bits=5, entropy=0.0, commitment=0.7).build()(z)
    torch.testing.assert_close(out.loss, 3 * 0.7 * (z - out.latents).square().mean())


@pytest.mark.parametrize(
    "changes", [{"bits": 0}, {"bits": 19}, {"entropy": -1.0}, {"diversity": -1.0}, {"sharpness": 0.0}]
)
def test_lfq_refuses(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        LFQ(**changes)
