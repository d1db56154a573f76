"""The token critic: its labels, its share of the loss, whose gradient is whose, and what it is good for on toys."""

import dataclasses
import functools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unmask.decoding.rules import Line
from unmask.method.critic import Critic, CriticScore, WithCritic, fill_masked
from unmask.method.guidance import NULL, guided
from unmask.method.masking import ABSENT
from unmask.method.models.transformer import MaskedTransformer, TransformerConfig
from unmask.method.objectives import Corruption, Loss, MaskedDiffusion, MaskGIT
from unmask.method.rand import Rand, seeded
from unmask.method.sampling.decode import decode
from unmask.method.schedules import Cosine, Power, count_reveals, ratios
from unmask.storage.config import dump_json, from_json

K, LENGTH, CLASSES = 5, 8, 3
GENERATORS = [
    MaskGIT(), MaskGIT(visible_weight=0.3, label_smoothing=0.1), MaskGIT(complementary=True),
    MaskGIT(corruption=Corruption(coins=True), self_condition=0.5), MaskedDiffusion(),
    MaskedDiffusion(corruption=Corruption(), self_condition=0.75),
]  # fmt: skip
every_generator = pytest.mark.parametrize("generator", GENERATORS, ids=range(len(GENERATORS)))


def build(critic: str = "head", std: float = 0.4) -> MaskedTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        dim=16, depth=1, heads=2, num_classes=CLASSES, critic=critic, self_condition=critic != "only"
    )
    model = MaskedTransformer(config, K, (LENGTH,))
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model


def clean(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, K, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


class Spy:
    """A model with a critic that notes what the critic was shown, and what it said."""

    def __init__(self, critic: str = "head") -> None:
        self.model, self.judged = build(critic), []

    def __call__(self, tokens, condition, at=None, memory=None, *, judge=False):
        out = self.model(tokens, condition, at, memory, judge=judge)
        if judge:
            self.judged.append((tokens, condition, at, out))
        return out


# -- labels and loss ---------------------------------------------------------------------------------------------------


@every_generator
def test_the_loss_is_the_generators_plus_a_cross_entropy_with_right_labels(generator):
    rows, spy, rand = 30, Spy(), seeded(1, 30)
    condition = torch.arange(rows) % CLASSES
    loss = WithCritic(generator=generator, weight=0.7)(spy, clean(rows), condition, mask_id=K, rand=rand)
    alone = generator(build(), clean(rows), condition, mask_id=K, rand=rand)
    batch = generator.mask_batch(clean(rows), condition, mask_id=K, rand=rand)
    ((canvas, seen, at, said),) = spy.judged
    assert at.all()
    assert torch.equal(seen, batch.condition), "the critic sees the generator's condition"
    assert (canvas < K).all(), "and no mask"
    assert torch.equal(canvas[~batch.masked], batch.clean[~batch.masked]), "and visible tokens as they are"
    right = (canvas == batch.clean).flatten()
    assert 0.02 < (~right).double().mean() < 0.98
    nats = sum(math.log1p(math.exp(-x if ok else x)) for x, ok in zip(said.tolist(), right.tolist(), strict=True))
    assert loss.count == alone.count
    assert loss.total.item() == pytest.approx(alone.total.item() + 0.7 * generator.share * nats, rel=1e-5)


@every_generator
def test_visible_tokens_are_right_by_definition(generator):
    """x-transformers compares them with draws that the canvas does not show: a part of them would be called wrong."""
    rows = 200
    batch = generator.mask_batch(clean(rows), None, mask_id=K, rand=seeded(1, rows))
    logits = torch.zeros(int(batch.at.sum()), K)
    canvas = fill_masked(batch, logits)
    assert (canvas == batch.clean)[~batch.masked].all()
    everywhere = dataclasses.replace(batch, masked=torch.ones_like(batch.masked))
    theirs = fill_masked(everywhere, torch.zeros(batch.masked.numel(), K)) == batch.clean
    assert theirs[~batch.masked].double().mean().item() == pytest.approx(1 / K, abs=0.06)


@every_generator
def test_divided_once_it_is_the_mean_over_all_tokens(generator):
    """A critic that is undecided loses log 2 a token; the generator's own count must not change that."""

    def undecided(tokens, condition, at, memory=None, *, judge=False):
        return torch.zeros(int(at.sum())) if judge else torch.zeros(int(at.sum()), K)

    rows, length = 64, 400
    tokens = torch.randint(0, K, (rows, length), generator=torch.Generator().manual_seed(0))
    rand = seeded(0, rows)
    alone = generator(undecided, tokens, None, mask_id=K, rand=rand)
    loss = WithCritic(generator=generator)(undecided, tokens, None, mask_id=K, rand=rand)
    assert ((loss.total - alone.total) / loss.count).item() == pytest.approx(math.log(2), rel=0.01)


def test_draws_have_the_law_of_a_temperature_uniform_per_row():
    rows = 40_000
    batch = MaskGIT().mask_batch(torch.zeros(rows, 2, dtype=torch.long), None, mask_id=3, rand=seeded(0, rows))
    batch = dataclasses.replace(batch, masked=torch.ones(rows, 2, dtype=torch.bool))
    logits = torch.tensor([0.0, 1.0, -0.5])
    canvas = fill_masked(batch, logits.expand(2 * rows, 3))
    temperature = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    law = (logits / temperature[:, None]).softmax(-1)
    seen = torch.bincount(canvas[:, 0], minlength=3) / rows
    torch.testing.assert_close(seen, law.mean(0).float(), atol=0.01, rtol=0)
    both_best = (canvas == 1).all(1).double().mean()
    assert both_best.item() == pytest.approx((law[:, 1] ** 2).mean().item(), abs=0.006), "one temperature a row"
    assert law[:, 1].square().mean() > law[:, 1].mean() ** 2 + 0.015


def test_absent_places_are_neither_drawn_nor_judged():
    rows = 20
    tokens = clean(rows).masked_fill(torch.arange(LENGTH) >= (torch.arange(rows) % 6 + 2)[:, None], ABSENT)

    def spy(visible, condition, at, *, judge=False):
        assert torch.equal(visible == ABSENT, tokens == ABSENT)
        if judge:
            assert torch.equal(at, tokens != ABSENT)
        return torch.zeros(int(at.sum())) if judge else torch.zeros(int(at.sum()), K)

    for objective in (WithCritic(), WithCritic(generator=MaskedDiffusion())):
        loss = objective(spy, tokens, None, mask_id=K, rand=seeded(0, rows))
        assert loss.total.isfinite()
    generator = guided(lambda tokens, condition: torch.zeros(*tokens.shape, K), None)
    alone = Critic()(lambda tokens, _: generator(tokens, 0.0), spy, tokens, None, mask_id=K, rand=seeded(0, rows))
    assert alone.count == (tokens != ABSENT).sum()
    assert (alone.total / alone.count).item() == pytest.approx(math.log(2), rel=1e-5)


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradients(model: nn.Module, loss: Loss) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss.total, parameters, allow_unused=True), strict=True))


def test_a_separate_critic_and_its_generator_do_not_touch():
    """Trained together they get the gradients of training apart: the draw passes none on."""
    rows, model, rand = 20, build("separate"), seeded(2, 20)
    got = gradients(model, WithCritic(generator=MaskedDiffusion())(model, clean(rows), None, mask_id=K, rand=rand))
    plain = gradients(model, MaskedDiffusion()(model, clean(rows), None, mask_id=K, rand=rand))
    batch = MaskedDiffusion().mask_batch(clean(rows), None, mask_id=K, rand=rand)
    with torch.no_grad():
        canvas = fill_masked(batch, model(batch.visible, None, batch.at))
    right = (canvas == batch.clean).float()
    said = model.critic(canvas, judge=True)
    bce = -(right * F.logsigmoid(said) + (1 - right) * F.logsigmoid(-said)).sum()
    critic = gradients(model, Loss(bce, bce))
    for name, gradient in got.items():
        assert gradient is not None, name
        want = critic[name] if name.startswith("critic.") else plain[name]
        torch.testing.assert_close(gradient, want, atol=1e-4, rtol=1e-4)


@every_generator
@pytest.mark.parametrize("critic", ["head", "separate"])
def test_every_parameter_learns(generator, critic):
    model = build(critic)
    got = gradients(model, WithCritic(generator=generator)(model, clean(20), None, mask_id=K, rand=seeded(2, 20)))
    assert all(g is not None for g in got.values()), "processes that train together wait for all of them"
    assert got["head.weight"].abs().max() > 0
    assert got["verdict.weight" if critic == "head" else "critic.verdict.weight"].abs().max() > 0


def test_a_shared_trunk_gets_the_sum():
    rows, model, rand = 20, build("head"), seeded(2, 20)
    one, two, none = (
        gradients(model, objective(model, clean(rows), None, mask_id=K, rand=rand))
        for objective in (WithCritic(weight=1.0), WithCritic(weight=2.0), MaskGIT())
    )
    for name in one:
        base = torch.zeros_like(one[name]) if none[name] is None else none[name]
        torch.testing.assert_close(two[name] - base, 2 * (one[name] - base), atol=1e-3, rtol=1e-3)
    assert (one["embedding.weight"] - none["embedding.weight"]).abs().max() > 1e-3


@every_generator
@pytest.mark.parametrize("sizes", [[4, 4, 4], [1] * 12, [7, 5]], ids=str)
def test_the_cut_of_the_batch_changes_nothing(generator, sizes):
    objective, whole, parts, tokens = WithCritic(generator=generator), build(), build(), clean(12)
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
        torch.testing.assert_close(p.grad, q.grad, atol=1e-3, rtol=1e-4)


def test_autocast_loses_no_gradient():
    model = build()
    with torch.autocast("cpu", torch.bfloat16):
        objective = WithCritic(generator=MaskGIT(self_condition=0.75))
        loss = objective(model, clean(20), None, mask_id=K, rand=seeded(2, 20))
    assert all(g is not None for g in gradients(model, loss).values())


def test_alone_it_leaves_the_generator_as_it_is():
    generator, critic = build("none"), build("only")
    objective = functools.partial(Critic(drop=1.0), generator)
    rows = 40
    loss = objective(critic, clean(rows), torch.arange(rows) % CLASSES, mask_id=K, rand=seeded(0, rows))
    loss.total.backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None for p in critic.parameters())
    assert loss.count == rows * LENGTH
    batch = MaskGIT(drop=1.0).mask_batch(clean(rows), torch.arange(rows), mask_id=K, rand=seeded(0, rows))
    canvas = fill_masked(batch, generator(batch.visible, torch.full((rows,), NULL))[batch.at])
    said = critic(canvas, torch.full((rows,), NULL), judge=True)
    want = F.binary_cross_entropy_with_logits(said, (canvas == batch.clean).float(), reduction="sum")
    torch.testing.assert_close(loss.total, want)


def test_options_of_the_critic_alone_change_its_loss():
    generator, critic, rows = build("none"), build("only"), 40
    losses = {
        objective(
            generator, critic, clean(rows), torch.arange(rows) % CLASSES, mask_id=K, rand=seeded(0, rows)
        ).total.item()
        for objective in (Critic(), Critic(drop=1.0), Critic(schedule=Power()))
    }
    assert len(losses) == 3


@every_generator
def test_it_is_data(generator):
    objective = WithCritic(generator=generator, weight=0.5)
    assert from_json(WithCritic, json.loads(dump_json(objective))) == objective


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_trains_no_critic_is_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        WithCritic(weight=weight)
    with pytest.raises(ValueError, match="drop"):
        Critic(drop=1.5)


# -- who stays ---------------------------------------------------------------------------------------------------------


def score(priority: CriticScore, canvas: torch.Tensor, t: float) -> torch.Tensor:
    masked = torch.ones_like(canvas, dtype=torch.bool)
    rand = seeded(0, len(canvas))
    return priority(torch.zeros(*canvas.shape, K), canvas, masked=masked, t=t, rand=rand)


def test_the_score_is_the_verdict_plus_noise_that_falls_to_nothing():
    canvas, rows = clean(2000), 2000

    def judge(tokens):
        return tokens.float() - 2

    assert torch.equal(score(CriticScore(judge), canvas, 1.0), judge(canvas))
    assert torch.equal(score(CriticScore(judge, noise=0.0), canvas, 0.0), judge(canvas))
    early, late = (score(CriticScore(judge, noise=2.0), canvas, t) - judge(canvas) for t in (0.0, 0.75))
    torch.testing.assert_close(early, 4 * late, atol=1e-4, rtol=1e-4)
    assert early.mean().item() == pytest.approx(2 * 0.5772, abs=0.1)
    assert early.var().item() == pytest.approx(4 * math.pi**2 / 6, rel=0.05)
    gumbel = -torch.log(-torch.log(seeded(0, rows)("order", LENGTH)))
    torch.testing.assert_close(early.double(), 2 * gumbel, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_bad_noise_is_refused(bad):
    with pytest.raises(ValueError, match="noise"):
        CriticScore(lambda tokens: tokens.float(), noise=bad)


def test_what_the_critic_calls_wrong_is_masked_again_only_with_remask():
    """A judge that likes nothing but token 0, and draws by chance: with `remask` the 0s gather."""

    def predict(tokens, t):
        return torch.zeros(*tokens.shape, K)

    blank = torch.full((300, LENGTH), K)
    share = {}
    for remask in (False, True):
        priority = CriticScore(lambda tokens: (tokens == 0).float(), noise=0.0)
        *_, last = decode(
            predict, blank, ratios(Power(), 8), mask_id=K, rand=seeded(0, 300), priority=priority, remask=remask
        )
        share[remask] = (last.tokens == 0).double().mean().item()
    assert share[False] > 1.5 / K, "the new draws alone compete"
    assert share[True] > share[False] + 0.05


def test_images_and_classes_have_critics_too():
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=1, heads=2, num_classes=CLASSES, critic="head")
    model = MaskedTransformer(config, K, (3, 4))
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    condition, blank = torch.tensor([0, 1, 2, 0]), torch.full((4, 12), K)
    found = []
    for noise in (0.0, 5.0):
        priority = CriticScore(lambda tokens: model(tokens, condition, judge=True), noise=noise)
        *_, last = decode(
            guided(model, condition), blank, ratios(Cosine(), 6), mask_id=K, rand=seeded(0, 4), priority=priority,
            remask=True, temperature=Line().list_values(1.0, 6),
        )  # fmt: skip
        assert (last.tokens < K).all()
        found.append(last.tokens)
    assert (found[0] != found[1]).any()


def test_eighteen_steps_linear_and_cosine():
    """x-transformers' number of steps: linear reveals 5.5 % a step, cosine few tokens early and many late."""
    linear, cosine = (
        count_reveals(torch.tensor([256]), ratios(shape, 18)).flatten().tolist() for shape in (Power(), Cosine())
    )
    assert set(linear) == {14, 15}
    assert cosine[:4] == [1, 3, 5, 7]
    assert cosine[-3:] == [22, 22, 22]


def test_falling_temperatures_and_the_schedule_change_the_samples():
    model, blank = build("none"), torch.full((20, LENGTH), K)
    found = []
    for shape, temperature in [(Power(), 1.0), (Power(), Line().list_values(1.0, 6)), (Cosine(), 1.0)]:
        *_, last = decode(
            guided(model, None), blank, ratios(shape, 6), mask_id=K, rand=seeded(0, 20), temperature=temperature
        )
        found.append(last.tokens)
    assert all((a != b).any() for i, a in enumerate(found) for b in found[:i])


# -- a language of five sentences: one token, all along --------------------------------------------------------------


def sentences(rows: int, seed: int) -> torch.Tensor:
    return torch.randint(0, K, (rows, 1), generator=torch.Generator().manual_seed(seed)).expand(rows, LENGTH)


def unsure(tokens, condition):
    """A generator that has learned nothing."""
    return torch.zeros(*tokens.shape, K)


def learned(objective, critic: str, steps: int) -> MaskedTransformer:
    torch.manual_seed(0)
    model = MaskedTransformer(TransformerConfig(dim=16, depth=1, heads=2, critic=critic), K, (LENGTH,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        loss = objective(model, sentences(64, step), None, mask_id=K, rand=Rand(0, torch.arange(64), 64, step))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    return model


def samples(generator, judge, steps: int) -> torch.Tensor:
    """The share of the commonest token in each of 400 samples of few steps."""
    *_, last = decode(
        guided(generator, None), torch.full((400, LENGTH), K), ratios(Power(), steps), mask_id=K, rand=seeded(5, 400),
        priority=CriticScore(judge, noise=0.0), remask=True,
    )  # fmt: skip
    return F.one_hot(last.tokens, K).sum(1).amax(-1).double() / LENGTH


def deaf(tokens: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tokens.shape)


@torch.no_grad()
def test_alone_it_tells_right_from_wrong_and_improves_samples():
    """AUC: the chance that a token replaced at random scores below one that was not."""
    with torch.enable_grad():
        critic = learned(functools.partial(Critic(), unsure), "only", 120)
    tokens, gen = sentences(400, 10_000), torch.Generator().manual_seed(1)
    noise = torch.randint(1, K, tokens.shape, generator=gen) * (torch.rand(tokens.shape, generator=gen) < 0.25)
    said = critic((tokens + noise) % K, judge=True)
    auc = (said[noise == 0][:, None] > said[noise > 0][None]).double().mean().item()
    assert auc > 0.9

    def judge(tokens):
        return critic(tokens, judge=True)

    assert samples(unsure, judge, 6).mean() > samples(unsure, deaf, 6).mean() + 0.1


@torch.no_grad()
def test_trained_with_its_generator_it_makes_whole_sentences_of_few_steps():
    with torch.enable_grad():
        model = learned(WithCritic(), "head", 100)
    judged = (samples(model, lambda tokens: model(tokens, judge=True), 4) == 1).double().mean()
    assert judged > (samples(model, deaf, 4) == 1).double().mean() + 0.2
