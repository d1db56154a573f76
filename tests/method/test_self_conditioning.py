"""Self-conditioning: what the first pass gives, who sees it, whose gradient it is, and that sampling carries it on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.method.guidance import NULL, guided
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import MaskedDiffusion, MaskGIT, compute_loss, predict_memory
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.decode import decode
from unmask.method.self_conditioning import guided_with_memory

K, LENGTH, CLASSES = 5, 8, 3
OBJECTIVES = [MaskGIT(self_condition=0.75), MaskedDiffusion(self_condition=0.75)]
both = pytest.mark.parametrize("objective", OBJECTIVES, ids=["MaskGIT", "MaskedDiffusion"])


def build(self_condition: bool = True) -> MaskedTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=1, heads=2, num_classes=CLASSES, self_condition=self_condition)
    model = MaskedTransformer(config, K, (LENGTH,))
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model


def clean(rows: int) -> torch.Tensor:
    return torch.randint(0, K, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


class Spy:
    """A model that notes how it was called, and whether with gradients."""

    def __init__(self) -> None:
        self.model, self.calls = build(), []

    def __call__(self, tokens, condition, at=None, memory=None):
        self.calls.append((tokens, condition, at, memory, torch.is_grad_enabled()))
        return self.model(tokens, condition, at, memory)


@both
def test_the_memory_is_the_models_own_first_thought(objective):
    rows, spy = 40, Spy()
    condition = torch.arange(rows) % CLASSES
    objective(spy, clean(rows), condition, mask_id=K, rand=seeded(0, rows))
    (seen, first, at, memory, grad), (again, second, asked, remembered, learns) = spy.calls
    assert torch.equal(seen, again), "both passes see one canvas"
    assert torch.equal(first, second), "under one condition, dropped or not"
    assert at.all(), "the first gives every place"
    assert not asked.all(), "the second the masked ones"
    assert (memory, grad, learns) == (None, False, True)
    assert not remembered.requires_grad
    chosen = remembered.sum((1, 2)) > 0
    assert 0 < chosen.sum() < rows
    want = spy.model(seen, first).softmax(-1).detach()
    torch.testing.assert_close(remembered[chosen], want[chosen])
    assert (remembered[~chosen] == 0).all()


@both
@pytest.mark.parametrize("share", [0.75, 0.2])
def test_the_share_of_rows_with_a_memory(objective, share):
    rows = 20_000
    batch = type(objective)(self_condition=share).mask_batch(clean(rows), None, mask_id=K, rand=seeded(0, rows))
    assert batch.remember.double().mean().item() == pytest.approx(share, abs=0.015)
    masked = batch.masked.double().mean(1)
    assert abs(masked[batch.remember].mean() - masked[~batch.remember].mean()) < 0.02, "whatever their ratio"


def test_without_it_there_is_one_pass_and_no_memory():
    spy = Spy()
    MaskGIT()(spy, clean(4), None, mask_id=K, rand=seeded(0, 4))
    assert [call[3] for call in spy.calls] == [None]
    batch = MaskGIT(self_condition=1.0).mask_batch(clean(64), None, mask_id=K, rand=seeded(0, 64))
    assert batch.remember.all()


@both
def test_the_gradient_takes_the_memory_as_given(objective):
    rows, model, other = 16, build(), build()
    rand = seeded(1, rows)
    loss = objective(model, clean(rows), None, mask_id=K, rand=rand)
    loss.total.backward()
    batch = objective.mask_batch(clean(rows), None, mask_id=K, rand=rand)
    with torch.no_grad():
        memory = other(batch.visible).softmax(-1)
        memory[~batch.remember] = 0
    log_p = other(batch.visible, memory=memory).log_softmax(-1)
    total = -(log_p.gather(-1, batch.clean[..., None])[..., 0] * batch.weight).sum()
    total.backward()
    assert loss.total.item() == pytest.approx(total.item(), rel=1e-5)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)


def test_autocast_does_not_lose_the_gradients():
    """Weights cast to bfloat16 in the pass without gradients must not serve the pass that has them."""
    gradients = []
    for half in (False, True):
        model = build()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = MaskGIT(self_condition=1.0)(model, clean(16), None, mask_id=K, rand=seeded(1, 16))
        loss.total.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if n != "classes.table.weight"})
    for name, want in gradients[0].items():
        got = gradients[1][name]
        assert got is not None, name
        assert (got - want).norm() < 0.2 * want.norm(), name


@both
@pytest.mark.parametrize("sizes", [[4, 4, 4], [1] * 12, [7, 5]], ids=str)
def test_the_cut_of_the_batch_changes_nothing(objective, sizes):
    whole, parts, tokens = build(), build(), clean(12)
    condition = torch.arange(12) % CLASSES
    one = objective(whole, tokens, condition, mask_id=K, rand=seeded(3, 12))
    one.total.backward()
    total = count = 0.0
    for part in torch.arange(12).split(sizes):
        loss = objective(parts, tokens[part], condition[part], mask_id=K, rand=Rand(3, part, 12))
        loss.total.backward()
        total, count = total + loss.total.item(), count + loss.count.item()
    assert (total, count) == pytest.approx((one.total.item(), one.count.item()), rel=1e-5)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-4)


def test_a_row_and_its_complement_share_their_coin():
    batch = MaskGIT(complementary=True, self_condition=0.5).mask_batch(clean(50), None, mask_id=K, rand=seeded(0, 50))
    first, second = batch.remember.chunk(2)
    assert torch.equal(first, second)
    loss, logits = compute_loss(build(), batch)
    assert loss.total.isfinite()
    assert len(logits) == 50 * LENGTH


@both
def test_it_changes_the_loss(objective):
    model = build()
    plain = type(objective)()(model, clean(16), None, mask_id=K, rand=seeded(0, 16))
    other = objective(model, clean(16), None, mask_id=K, rand=seeded(0, 16))
    assert abs(plain.total - other.total).item() > 1e-2
    assert plain.count == other.count


@both
@pytest.mark.parametrize("bad", [-0.1, 1.5])
def test_shares_outside_the_unit_interval_are_refused(objective, bad):
    with pytest.raises(ValueError, match="self_condition"):
        type(objective)(self_condition=bad)


def test_the_first_pass_does_not_see_the_answer():
    """All masked, a copier of what it sees can remember nothing of the clean tokens."""

    def copier(tokens, condition, at):
        return (9 * F.one_hot(tokens, K + 1).float())[at][..., :K]

    memory = predict_memory(copier, torch.full((30, LENGTH), K), None, torch.ones(30, dtype=torch.bool))
    torch.testing.assert_close(memory, torch.full_like(memory, 1 / K))


# -- sampling ----------------------------------------------------------------------------------------------------------

STEPS = [0.75, 0.5, 0.25, 0.0]


def run(predict, rows: int = 6, first: int = 0) -> torch.Tensor:
    blank = torch.full((rows, LENGTH), K)
    *_, last = decode(predict, blank, STEPS, mask_id=K, rand=seeded(0, rows, first=first))
    return last.tokens


def test_each_step_reads_the_thought_of_the_last():
    spy = Spy()
    run(guided_with_memory(spy, None))
    assert len(spy.calls) == len(STEPS)
    assert spy.calls[0][3] is None
    for (tokens, _, _, before, _), (_, _, _, memory, _) in zip(spy.calls, spy.calls[1:], strict=False):
        torch.testing.assert_close(memory, spy.model(tokens, memory=before).softmax(-1).detach())


def test_under_guidance_both_twins_read_the_conditional_thought():
    spy, condition = Spy(), torch.arange(6) % CLASSES
    run(guided_with_memory(spy, condition, scale=3.0))
    for (tokens, classes, _, before, _), (_, _, _, memory, _) in zip(spy.calls, spy.calls[1:], strict=False):
        assert torch.equal(classes, torch.cat([condition, torch.full_like(condition, NULL)]))
        want = spy.model(tokens, classes, memory=before)[:6].softmax(-1).detach()
        torch.testing.assert_close(memory, torch.cat([want, want]))


def test_a_ramp_may_turn_guidance_off_and_on_again():
    spy, condition = Spy(), torch.arange(6) % CLASSES
    run(guided_with_memory(spy, condition, scale=lambda t: 2.0 if t in (0.25, 0.75) else 1.0))
    assert [len(call[0]) for call in spy.calls] == [6, 12, 6, 12]
    assert [None if call[3] is None else len(call[3]) for call in spy.calls] == [None, 12, 6, 12]


def test_it_changes_the_samples_and_no_row_another():
    model, condition = build(), torch.arange(6) % CLASSES
    got = run(guided_with_memory(model, condition, scale=2.0))
    assert (got != run(guided(model, condition, scale=2.0))).any()
    assert torch.equal(got, run(guided_with_memory(model, condition, scale=2.0))), "fresh ones agree"
    assert torch.equal(got[4:], run(guided_with_memory(model, condition[4:], scale=2.0), rows=2, first=4))


def test_a_zero_layer_changes_no_sample():
    model = build()
    nn.init.zeros_(model.recall.weight)
    assert torch.equal(run(guided_with_memory(model, None)), run(guided(model, None)))
