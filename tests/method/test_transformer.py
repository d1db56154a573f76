"""The transformer: what it starts as, what each option does, and properties that any correct attention must have."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from unmask.method.guidance import NULL
from unmask.method.masking import ABSENT
from unmask.method.models.conditioning import ClassEmbedding
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig

K, GRID, CLASSES = 7, (3, 4), 5
LENGTH = 12
SMALL = TransformerConfig(dim=24, depth=2, heads=2, num_classes=CLASSES)


def build(config: TransformerConfig = SMALL, grid: tuple[int, ...] = GRID, perturb: bool = True) -> MaskedTransformer:
    """A model; `perturb` moves every parameter away from its start, by the same noise for the same name and shape."""
    torch.manual_seed(0)
    model = MaskedTransformer(config, K, grid)
    if perturb:
        with torch.no_grad():
            for name, p in model.named_parameters():
                gen = torch.Generator().manual_seed(sum(name.encode()))
                p.add_(torch.randn(p.shape, generator=gen) * 0.3)
    return model


def some_tokens(rows: int = 4, grid: tuple[int, ...] = GRID) -> torch.Tensor:
    return torch.randint(0, K + 1, (rows, math.prod(grid)), generator=torch.Generator().manual_seed(1))


def replace(**fields) -> TransformerConfig:
    return dataclasses.replace(SMALL, **fields)


VARIANTS = [
    SMALL, replace(num_classes=0), replace(prefix=True), replace(registers=3), replace(absolute=False, registers=1),
    replace(rotary=False), replace(gated=False, qk_norm=False), replace(prefix=True, registers=2, absolute=False),
]  # fmt: skip
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=range(len(VARIANTS)))


@every_variant
@pytest.mark.parametrize("grid", [(12,), (3, 4), (2, 3, 2), (1, 5), (1,)], ids=str)
def test_shapes(config, grid):
    model = build(config, grid)
    assert model.embedding.num_embeddings == K + 1
    assert model.mask_id == K
    logits = model(some_tokens(4, grid))
    assert logits.shape == (4, math.prod(grid), K), "K outputs: the mask cannot be predicted"
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_variant
def test_it_starts_uniform_or_unigram(config):
    model = build(config, perturb=False)
    assert (model(some_tokens()) == 0).all()
    counts = torch.tensor([5.0, 0.0, 1.0, 100.0, 3.0, 3.0, 8.0])
    model.set_unigram(counts)
    want = (counts + 1) / (counts.sum() + K)
    p = model(some_tokens()).softmax(-1)
    torch.testing.assert_close(p, want.expand_as(p))
    entropy = -(want * want.log()).sum()
    assert entropy < math.log(K)


def test_wrong_length_is_refused():
    with pytest.raises(ValueError, match="grid"):
        build()(some_tokens(2, (13,)))


@pytest.mark.parametrize(("vocab", "grid"), [(0, (4,)), (5, ()), (5, (0, 4)), (5, (2, 2, 2, 2))])
def test_bad_sizes_are_refused(vocab, grid):
    with pytest.raises(ValueError, match="grid"):
        MaskedTransformer(SMALL, vocab, grid)


@every_variant
def test_rows_asked_for_equal_the_full_logits(config):
    model, tokens = build(config), some_tokens()
    full = model(tokens, torch.tensor([0, 1, 2, 3]) if config.num_classes else None)
    for at in (tokens == K, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)):
        got = model(tokens, torch.tensor([0, 1, 2, 3]) if config.num_classes else None, at)
        torch.testing.assert_close(got, full[at])


@every_variant
def test_rows_do_not_see_each_other(config):
    model, tokens, order = build(config), some_tokens(), torch.tensor([2, 0, 3, 1])
    classes = torch.tensor([0, 4, NULL, 1]) if config.num_classes else None
    full = model(tokens, classes)
    torch.testing.assert_close(model(tokens[order], None if classes is None else classes[order]), full[order])
    torch.testing.assert_close(model(tokens[:1], None if classes is None else classes[:1]), full[:1])


@every_variant
def test_every_position_sees_every_other(config):
    """Bidirectional: a change of the last token moves the first logits, and the reverse."""
    model, tokens = build(config), some_tokens(1)
    full = model(tokens)
    for changed in range(LENGTH):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % (K + 1)
        assert ((model(other) - full).abs().amax(-1) > 1e-7).all(), changed


@every_variant
def test_logits_belong_to_their_own_token(config):
    """While the blocks are the identity a token moves its own logits and no others, registers and prefix or not."""
    model, tokens = build(config, perturb=False), some_tokens(1)
    nn.init.normal_(model.head.weight)
    for changed in range(LENGTH):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % (K + 1)
        moved = (model(other) != model(tokens))[0].any(-1)
        assert moved.nonzero().flatten().tolist() == [changed]


@every_variant
def test_an_all_masked_canvas_is_not_the_same_everywhere(config):
    """Without positions that attention can tell apart every cell would get the same logits."""
    logits = build(config)(torch.full((1, LENGTH), K))[0]
    assert torch.pdist(logits).min() > 1e-5


def test_unconditional_twins_agree():
    for config in (SMALL, replace(prefix=True)):
        model, tokens = build(config), some_tokens()
        assert torch.equal(model(tokens, torch.full((4,), NULL)), model(tokens, None))
        outputs = [model(tokens, torch.full((4,), c)) for c in (NULL, *range(CLASSES))]
        assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(outputs) for b in outputs[:i])


@pytest.mark.parametrize("bad", [CLASSES, CLASSES + 1, -2])
def test_class_ids_outside_the_table_are_refused(bad):
    with pytest.raises((IndexError, ValueError)):
        ClassEmbedding(CLASSES, 8)(torch.tensor([bad]), some_tokens(1))


def test_an_unconditional_model_refuses_classes():
    with pytest.raises(ValueError):
        build(replace(num_classes=0))(some_tokens(2), torch.tensor([1, 2]))


OPTIONS = {
    "dim": 32, "depth": 3, "heads": 3, "mlp_ratio": 2.0, "gated": False, "qk_norm": False, "rotary": False,
    "absolute": False, "registers": 2, "num_classes": 6, "prefix": True, "self_condition": True, "critic": "head",
}  # fmt: skip


def test_the_table_of_options_is_complete():
    assert {*OPTIONS, "padded"} == {f.name for f in dataclasses.fields(TransformerConfig)}


@pytest.mark.parametrize("field", OPTIONS)
def test_every_option_changes_the_parameters_or_the_output(field):
    base = replace(registers=1) if field == "absolute" else SMALL
    plain, other = build(base), build(dataclasses.replace(base, **{field: OPTIONS[field]}))
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (plain, other)]
    if shapes[0] == shapes[1]:
        tokens, classes = some_tokens(), torch.tensor([0, 1, 2, 3])
        assert (plain(tokens, classes) - other(tokens, classes)).abs().max() > 1e-4
    else:
        assert field != "rotary", "rotary positions have no parameters"


@pytest.mark.parametrize("bad", [
    {"dim": 0}, {"depth": 0}, {"heads": 0}, {"mlp_ratio": 0.0}, {"dim": 30, "heads": 4}, {"dim": 6, "heads": 2},
    {"registers": -1}, {"num_classes": -1}, {"prefix": True, "num_classes": 0}, {"absolute": False},
    {"critic": "only", "self_condition": True},
])  # fmt: skip
def test_impossible_configs_are_refused(bad):
    with pytest.raises(ValueError, match="TransformerConfig"):
        replace(**bad)


@pytest.mark.parametrize("extra", [{"registers": 1}, {"prefix": True}], ids=str)
def test_a_model_without_any_positions_is_refused(extra):
    with pytest.raises(ValueError, match="absolute"):
        replace(absolute=False, rotary=False, **extra)


@pytest.mark.parametrize(("grid", "head_dim"), [((3, 4), 2), ((2, 2, 3), 4)], ids=str)
def test_rotary_without_room_for_the_axes_is_refused(grid, head_dim):
    with pytest.raises(ValueError):
        MaskedTransformer(TransformerConfig(dim=2 * head_dim, depth=1, heads=2), K, grid)


# -- learning ----------------------------------------------------------------------------------------------------------


@every_variant
def test_no_parameter_is_dead(config):
    """After one random step every parameter tensor, and every row of those that all inputs share, gets a gradient."""
    model, tokens = build(config), some_tokens(16)
    classes = torch.arange(16) % (CLASSES + 1) - 1 if config.num_classes else None
    nn.functional.cross_entropy(model(tokens, classes).flatten(0, 1), tokens.flatten() % K).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert (p.grad.flatten(1) if p.dim() > 1 else p.grad[:, None]).abs().amax(1).min() > 0, name


def test_the_start_is_one_step_away_from_learning():
    """The zero head hides the rest at first; a step of the head, then of the gates, brings every parameter in."""
    model, tokens = build(perturb=False), some_tokens(16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        logits = model(tokens, torch.arange(16) % CLASSES)
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten() % K).backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@every_variant
def test_bf16_weights_are_close_to_single_precision(config):
    tokens = some_tokens()
    model = build(config)
    want = model(tokens)
    half = build(config).bfloat16()
    for guard in (torch.no_grad(), torch.enable_grad()):
        with guard:
            got = half(tokens)
        assert got.dtype == torch.float32
        assert got.isfinite().all()
        assert (got - want).norm() / want.norm() < 0.1


def test_autocast_is_close_to_single_precision():
    model, tokens = build(), some_tokens()
    want = model(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(tokens)
    assert got.dtype == torch.float32
    assert (got - want).norm() / want.norm() < 0.1


def test_weights_only_are_saved():
    """Rotary tables follow from the grid; a checkpoint that held them would break on another one."""
    assert set(build().state_dict()) == {name for name, _ in build().named_parameters()}


@pytest.mark.parametrize("extra", [{}, {"registers": 2}, {"prefix": True}], ids=repr)
def test_a_padded_row_gives_what_a_shorter_model_gives(extra):
    """Places without a token change nothing: the same weights on a grid of their own length say the same."""
    config = TransformerConfig(dim=24, depth=2, heads=2, num_classes=3, padded=True, **extra)
    torch.manual_seed(0)
    model = MaskedTransformer(config, 5, (9,))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    tokens, classes = torch.randint(0, 6, (4, 9)), torch.tensor([0, 1, 2, 0])
    lengths = torch.tensor([1, 4, 8, 9])
    out = model(tokens.masked_fill(torch.arange(9) >= lengths[:, None], ABSENT), classes)
    for row, length in enumerate(lengths.tolist()):
        short = MaskedTransformer(config, 5, (length,))
        weights = model.state_dict()
        weights["position"] = weights["position"][:length]
        short.load_state_dict(weights)
        want = short(tokens[row : row + 1, :length], classes[row : row + 1])
        torch.testing.assert_close(out[row : row + 1, :length], want, atol=1e-5, rtol=1e-5)
    at = torch.arange(9) < lengths[:, None]
    torch.testing.assert_close(model(tokens.masked_fill(~at, ABSENT), classes, at), out[at])


# -- self-conditioning and the critic ----------------------------------------------------------------------------------


def some_memory(rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, LENGTH, K, generator=torch.Generator().manual_seed(5)).softmax(-1)


CRITICS = [replace(critic="head"), replace(critic="separate"), replace(critic="only"), replace(critic="separate",
    prefix=True, registers=1), replace(critic="head", self_condition=True)]  # fmt: skip


def test_a_memory_changes_nothing_at_the_start():
    plain, model = build(perturb=False), build(replace(self_condition=True), perturb=False)
    names = {n for n, _ in model.named_parameters()} - {n for n, _ in plain.named_parameters()}
    assert names == {"recall.weight"}
    with torch.no_grad():
        for p in [plain.head.weight, model.head.weight]:
            p.copy_(torch.arange(p.numel()).view(p.shape) * 1e-2)
    model.load_state_dict(plain.state_dict(), strict=False)
    tokens, want = some_tokens(), plain(some_tokens())
    assert torch.equal(model(tokens), want)
    assert torch.equal(model(tokens, memory=some_memory()), want)


def test_a_memory_is_the_expected_embedding_times_a_matrix():
    """A certain memory of token v is the embedding of v; a row of zeros is no memory; rows keep to themselves."""
    model, tokens, memory = build(replace(self_condition=True)), some_tokens(), some_memory()
    assert (model(tokens, memory=memory) - model(tokens)).abs().max() > 1e-2
    torch.testing.assert_close(model(tokens, memory=torch.zeros_like(memory)), model(tokens))
    mixed = model(tokens, memory=memory * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None, None])
    torch.testing.assert_close(mixed[1::2], model(tokens)[1::2])
    torch.testing.assert_close(mixed[::2], model(tokens, memory=memory)[::2])
    at = tokens == K
    torch.testing.assert_close(model(tokens, None, at, memory), model(tokens, memory=memory)[at])
    doubled, known = build(), tokens % K
    with torch.no_grad():
        model.recall.weight.copy_(torch.eye(24))
        doubled.embedding.weight.mul_(2)
    torch.testing.assert_close(model(known, memory=nn.functional.one_hot(known, K).float()), doubled(known))


def test_memories_and_judges_that_a_model_has_not_are_refused():
    tokens = some_tokens()
    with pytest.raises(ValueError, match="self_condition"):
        build()(tokens, memory=some_memory())
    with pytest.raises(ValueError, match="judge"):
        build()(tokens, judge=True)
    alone = build(replace(critic="only"))
    with pytest.raises(ValueError, match="critic only"):
        alone(tokens)
    with pytest.raises(ValueError, match="predicts no tokens"):
        alone.set_unigram(torch.ones(K))


@pytest.mark.parametrize("config", CRITICS, ids=range(len(CRITICS)))
def test_a_judge_gives_a_logit_per_token(config):
    model, tokens, classes = build(config), some_tokens() % K, torch.tensor([0, 1, 2, NULL])
    verdict = model(tokens, classes, judge=True)
    assert verdict.shape == (4, LENGTH)
    assert verdict.dtype == torch.float32
    at = tokens > 2
    torch.testing.assert_close(model(tokens, classes, at, judge=True), verdict[at])
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % K
    assert ((model(other, classes, judge=True) - verdict).abs().amax(0) > 1e-6).all(), "it sees the whole canvas"
    assert (build(config, perturb=False)(tokens, judge=True) == 0).all(), "it starts undecided"


def test_a_head_shares_the_trunk_and_a_separate_critic_does_not():
    for kind in ("head", "separate"):
        model = build(replace(critic=kind))
        model(some_tokens() % K, judge=True).sum().backward()
        reached = {n for n, p in model.named_parameters() if p.grad is not None}
        every = {n for n, _ in model.named_parameters()}
        if kind == "head":
            assert every - reached == {"head.weight", "head.bias"}
        else:
            assert reached == {n for n in every if n.startswith("critic.")}


def test_a_critic_changes_no_logits():
    want = build()(some_tokens())
    for kind in ("head", "separate"):
        torch.testing.assert_close(build(replace(critic=kind))(some_tokens()), want)


def test_every_parameter_gets_a_gradient_with_and_without_a_memory():
    """Processes that train together wait for all gradients, so even an unused layer must have one: zeros."""
    for memory in (None, some_memory()):
        model = build(replace(self_condition=True))
        model(some_tokens(), torch.tensor([0, 1, 2, NULL]), memory=memory).square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        assert (model.recall.weight.grad.abs().max() > 0) == (memory is not None)


def test_a_memory_in_half_precision():
    model = build(replace(self_condition=True)).bfloat16()
    out = model(some_tokens(), memory=some_memory())
    assert out.dtype == torch.float32
    assert out.isfinite().all()
