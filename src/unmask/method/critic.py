"""The token critic (arXiv 2209.04439): a model that learns which sampled tokens are wrong.

It is a model called with `judge=True`: `(tokens, condition, at, judge=True) -> logits`, one logit per token, high if
the token is the original. It is a head of the generator or a separate network, trained with the generator or after it.
In sampling it is a priority: it chooses the tokens that stay.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int

from unmask.errors import FACTORS, check_ranges
from unmask.lazy import F, Tensor, torch
from unmask.method.guidance import Condition, ConditionalModel
from unmask.method.masking import ABSENT
from unmask.method.objectives import Loss, MaskedBatch, MaskedDiffusion, MaskGIT, Model, check_shares, compute_loss
from unmask.method.rand import Rand
from unmask.method.sampling.decode import sample_tokens
from unmask.method.sampling.priorities import Canvas, Logits, Mask, PriorityScore
from unmask.method.schedules import Cosine, Shape


@dataclass(frozen=True, kw_only=True)
class WithCritic:
    """Train a generator and a critic of its samples together (Token-Critic, arXiv 2209.04439, eq. 6).

    The loss is the generator's plus `weight` times the mean binary cross-entropy of the critic, which is the same model
    called with `judge=True`. Sampling passes no gradient, so the two affect each other only through shared weights.
    """

    generator: MaskGIT | MaskedDiffusion = MaskGIT()
    """Objective of the generator."""
    weight: float = 1.0
    """Weight of the critic's loss, positive (x-transformers' default)."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(
                f"WithCritic(weight={self.weight}): must be positive and finite; to train no critic, use the generator"
            )
        check_ranges(self, {"weight": FACTORS})

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        batch = self.generator.mask_batch(tokens, condition, mask_id=mask_id, rand=rand)
        loss, logits = compute_loss(model, batch)
        # Both sums are divided by the generator's count, on average `share` of the tokens that the critic judges.
        critic = self.weight * self.generator.share * compute_critic_loss(model, batch, fill_masked(batch, logits))
        return Loss(loss.total + critic, loss.count)


@dataclass(frozen=True, kw_only=True)
class Critic:
    """Train the critic alone, as in the paper: another model judges the samples of a trained `generator`.

    `functools.partial(Critic(), generator)` is an objective like the others. `generator(tokens, condition)` is any
    callable that returns logits, and gets no gradient. Masks and dropped conditions are those of MaskGIT.
    """

    schedule: Shape = Cosine()
    """Fraction of tokens to mask at time t, g(t)."""
    drop: float = 0.1
    """Share of rows trained without their condition."""

    def __post_init__(self) -> None:
        check_shares(self, "drop")

    def __call__(
        self,
        generator: ConditionalModel,
        model: Model,
        tokens: Int[Tensor, "b l"],
        condition: Condition,
        *,
        mask_id: int,
        rand: Rand,
    ) -> Loss:
        batch = MaskGIT(schedule=self.schedule, drop=self.drop).mask_batch(
            tokens, condition, mask_id=mask_id, rand=rand
        )
        with torch.no_grad():
            logits = generator(batch.visible, batch.condition)[batch.at]
        total = compute_critic_loss(model, batch, fill_masked(batch, logits))
        return Loss(total, (batch.clean != ABSENT).sum().to(total.dtype))


def fill_masked(batch: MaskedBatch, logits: Float[Tensor, "n k"]) -> Int[Tensor, "b l"]:
    """Return the clean tokens with the masked ones sampled from the logits at `batch.at`.

    The temperature of a row is uniform in (0, 1), as in x-transformers, so that a critic sees good and bad samples.
    """
    at = batch.at
    temperature = batch.rand("critic_temperature")[:, None].expand(at.shape)[at]
    u = batch.rand("critic_token", at.shape[1])[at]
    tempered = (logits.detach() / temperature[:, None]).to(logits.dtype)
    drawn = sample_tokens(tempered[None], 1.0, None, None, u[None])[0]
    return torch.where(batch.masked, batch.clean.masked_scatter(at, drawn), batch.clean)


def compute_critic_loss(model: Model, batch: MaskedBatch, canvas: Int[Tensor, "b l"]) -> Float[Tensor, ""]:
    """Return the critic's binary cross-entropy on "is this the original token?", summed over all tokens.

    Visible tokens are right by definition. x-transformers compares them with a sample that the canvas does not show, so
    it trains the critic to call some of them wrong.
    """
    present = batch.clean != ABSENT
    judged = model(canvas, batch.condition, present, judge=True)
    judged = judged.to(torch.promote_types(judged.dtype, torch.float32))
    right = (canvas == batch.clean)[present].to(judged.dtype)
    return F.binary_cross_entropy_with_logits(judged, right, reduction="sum")


@dataclass(frozen=True)
class CriticScore:
    """judge(canvas) + noise (1 - t) Gumbel.

    With `decode(remask=True)` every token is judged again in each step, as in the paper; otherwise only the new ones.
    The noise is added to a logit and falls to exactly 0 at the last step, as in x-transformers, but with its sign only
    if `subtracts`: the sum of a score and Gumbel noise decides which tokens stay, there which tokens are masked.
    """

    judge: Callable[[Int[Tensor, "b l"]], Float[Tensor, "b l"]]
    """Returns for each token the logit that it is right."""
    noise: float = 1.0
    """Factor of the Gumbel noise, at least 0 (x-transformers' default)."""
    subtracts: bool = False
    """Subtract the noise, as x-transformers, which adds it to the score of the tokens to mask."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"CriticScore(noise={self.noise}): must be a finite number >= 0; 0 is deterministic")

    def __call__(self, logits: Logits, sample: Canvas, *, masked: Mask, t: float, rand: Rand) -> PriorityScore:
        with torch.no_grad():
            score = self.judge(sample).float()
        if self.noise == 0 or t == 1:
            return score
        gumbel = -torch.log(-torch.log(rand("order", sample.shape[1])))
        return score + (-self.noise if self.subtracts else self.noise) * (1 - t) * gumbel
