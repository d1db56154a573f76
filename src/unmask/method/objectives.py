"""Training objectives: take clean tokens, return the loss as a sum and its divisor.

Every objective is called as `objective(model, tokens, condition, *, mask_id, rand) -> Loss`. The model is any callable
`(tokens, condition, at) -> logits` that returns one row of K logits for each True in `at`. So logits are computed only
where they are needed. Sums and counts are divided once, at the end, so micro-batches and ranks cannot bias the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import NULL, Condition
from unmask.method.masking import (
    ABSENT,
    exclude_absent,
    mask_bernoulli,
    mask_exact,
    split_complementary,
    stratify_times,
)
from unmask.method.rand import Rand
from unmask.method.schedules import Cosine, Power, Shape, compute_likelihood_weight

Model = Callable[..., Float[Tensor, "..."]]


@dataclass(frozen=True)
class Loss:
    """A sum in nats and its divisor. Add both up over all batches and ranks, then divide once."""

    total: Float[Tensor, ""]
    """Sum of the losses, in nats."""
    count: Float[Tensor, ""]
    """What the sum is divided by: a number of tokens."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What the model sees at a masked token, which it predicts in any case (BERT, arXiv 1810.04805, section 3.1).

    Each position draws on its own. All other masked tokens show the mask. The shares are x-transformers' defaults.
    With `coins`, `keep` and `random` each apply with probability 1/2, and `random` is multiplied by (1 - keep)^2. That
    is 7.5 % and 4.3 % on average, as in its code. Differs from it: a coin per row, not one per batch.
    """

    keep: float = 0.15
    """Share of masked tokens that show the token itself (x-transformers' `no_replace_prob`)."""
    random: float = 0.1
    """Share of masked tokens that show a random token, never the mask (x-transformers' `random_token_prob`)."""
    coins: bool = False
    """Apply the two shares as x-transformers' code does, which halves them."""

    def __post_init__(self) -> None:
        if not (self.keep >= 0 and self.random >= 0 and self.keep + self.random <= 1):
            raise ValueError(f"{self}: the shares must be at least 0, and keep + random at most 1")

    def __call__(
        self, clean: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"], *, mask_id: int, rand: Rand
    ) -> Int[Tensor, "b l"]:
        u = rand("corruption", clean.shape[1])
        keep, other = torch.full_like(u, self.keep), torch.full_like(u, self.random)
        if self.coins:
            first, second = (rand("corruption_coins", 2) < 0.5)[..., None].unbind(1)
            keep = keep * first
            other = other * second * (1 - keep) ** 2
        anything = (rand("corruption_token", clean.shape[1]) * mask_id).long()
        shown = torch.where(u < keep, clean, torch.where(u < keep + other, anything, mask_id))
        return torch.where(mask, shown, clean)


@dataclass(frozen=True, kw_only=True)
class MaskedBatch:
    """A batch to predict: the visible canvas, the masked positions, the weight of each prediction, and the divisor.

    `remember` marks the rows that see the model's first prediction. `rand` has one row for each row of the batch.
    """

    clean: Int[Tensor, "b l"]
    visible: Int[Tensor, "b l"]
    masked: Bool[Tensor, "b l"]
    weight: Float[Tensor, "b l"]
    count: Float[Tensor, ""]
    condition: Condition
    rand: Rand
    label_smoothing: float = 0.0
    remember: Bool[Tensor, "b"] | None = None

    @property
    def at(self) -> Bool[Tensor, "b l"]:
        """The positions to predict."""
        return self.masked | (self.weight > 0)


def compute_loss(model: Model, batch: MaskedBatch) -> tuple[Loss, Float[Tensor, "n k"]]:
    """Return the weighted sum of -log p(clean | visible), and its logits at `batch.at`."""
    from unmask.method.cross_entropy import CrossEntropy  # here: it extends a class of torch

    at = batch.at
    if batch.remember is None:
        logits = model(batch.visible, batch.condition, at)
    else:
        logits = model(
            batch.visible, batch.condition, at, predict_memory(model, batch.visible, batch.condition, batch.remember)
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lost: Tensor = CrossEntropy.apply(logits, batch.clean[at], batch.label_smoothing)
    return Loss((lost * batch.weight[at]).sum(), batch.count), logits


def predict_memory(
    model: Model, visible: Int[Tensor, "b l"], condition: Condition, rows: Bool[Tensor, "b"]
) -> Float[Tensor, "b l k"]:
    """Return the probabilities of a first forward pass in the chosen `rows`, and zeros (no memory) in the others."""
    with torch.no_grad():
        logits = model(visible, condition, torch.ones_like(visible, dtype=torch.bool))
    # Autocast of older torch caches the weights that it cast here without gradients: the next pass would learn nothing.
    torch.clear_autocast_cache()
    return logits.softmax(-1).unflatten(0, visible.shape) * rows[:, None, None]


@dataclass(frozen=True, kw_only=True)
class MaskGIT:
    """Masked visual token modelling (arXiv 2202.04200, eq. 1): draw t, mask a fraction g(t), predict these tokens."""

    schedule: Shape = Cosine()
    """Fraction of tokens to mask at time t, g(t)."""
    visible_weight: float = 0.0
    """Loss weight of the visible tokens, 0 to 1 (0 in the paper, 0.1 in TiTok, 1 in valeoai's code)."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy, 0 to 1."""
    drop: float = 0.1
    """Share of rows trained without their condition, so that guidance has an unconditional twin."""
    independent: bool = False
    """Mask each token by its own coin instead of masking an exact count."""
    stratified: bool = True
    """Spread the times t evenly over the global batch."""
    complementary: bool = False
    """Train each row under a mask and its complement: on average half of it is masked, whatever the schedule."""
    corruption: Corruption | None = None
    """What masked tokens show instead of the mask; by default always the mask."""
    self_condition: float = 0.0
    """Share of rows that see a first prediction, made without gradients (x-transformers 0.75, muse-maskgit 0.9)."""

    def __post_init__(self) -> None:
        check_shares(self, "visible_weight", "label_smoothing", "drop", "self_condition")

    @property
    def share(self) -> float:
        """The mean of `MaskedBatch.count` per token."""
        ratio = self.schedule((torch.arange(1000) + 0.5) / 1000).mean().item()
        masked = 0.5 if self.complementary else ratio
        return masked + self.visible_weight * (1 - masked)

    def mask_batch(self, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand) -> MaskedBatch:
        """Mask one batch of clean `tokens`; `complementary` doubles its rows."""
        t = rand("time")
        if self.stratified:
            t = stratify_times(t, rand.rows, rand.num_rows)
        u = exclude_absent(rand("mask", tokens.shape[1]), tokens)
        mask = (mask_bernoulli if self.independent else mask_exact)(self.schedule(t), u)
        condition = drop_condition(condition, self.drop, rand)
        if self.complementary:
            mask = torch.cat(split_complementary(mask, u))
            tokens = torch.cat([tokens, tokens])
            condition = None if condition is None else torch.cat([condition, condition])
            rand = replace(rand, rows=rand.rows.repeat(2))
        weight = mask + self.visible_weight * (~mask & (tokens != ABSENT))
        return MaskedBatch(
            clean=tokens,
            visible=corrupt_masked(tokens, mask, self.corruption, mask_id, rand),
            masked=mask,
            weight=weight,
            count=weight.sum(),
            condition=condition,
            rand=rand,
            label_smoothing=self.label_smoothing,
            remember=choose_remembered_rows(self.self_condition, rand),
        )

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """Return the loss of one batch of clean `tokens`; `condition` holds class ids, or is None."""
        return compute_loss(model, self.mask_batch(tokens, condition, mask_id=mask_id, rand=rand))[0]


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """The bound on -log p(tokens) of masked diffusion (MDLM, arXiv 2406.07524, eq. 10), in nats per token.

    Draw t, spread evenly over the global batch. Mask each token with probability g(t), and weight each masked token by
    -g'(t)/g(t). Divide the sum by the number of all tokens. With `corruption` or `self_condition` it is no bound.
    Differs from x-transformers' `use_simple_mdlm_loss_weight`: its g'(t)/(1 - g(t)) has the wrong sign and pole.
    """

    schedule: Shape = Power()
    """Fraction of tokens to mask, g(t). It changes the noise of the loss, but not its expectation."""
    drop: float = 0.1
    """Share of rows trained without their condition, so that guidance has an unconditional twin."""
    corruption: Corruption | None = None
    """What masked tokens show instead of the mask; by default always the mask."""
    self_condition: float = 0.0
    """Share of rows that see a first prediction, made without gradients."""

    def __post_init__(self) -> None:
        check_shares(self, "drop", "self_condition")
        # Power() does not jump, so help need not import torch to try it.
        if self.schedule != Power() and float(self.schedule(torch.tensor(1e-9))) < 1 - 1e-3:
            raise ValueError(
                f"MaskedDiffusion(schedule={self.schedule}): it jumps at t = 0: part of the bound is lost; use Power()"
            )

    @property
    def share(self) -> float:
        """`MaskedBatch.count` per token."""
        return 1.0

    def mask_batch(self, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand) -> MaskedBatch:
        """Mask one batch of clean `tokens`."""
        t = stratify_times(rand("time"), rand.rows, rand.num_rows)
        mask = exclude_absent(rand("mask", tokens.shape[1]), tokens) < self.schedule(t)[:, None]
        weight = compute_likelihood_weight(self.schedule, t)[:, None] * mask
        return MaskedBatch(
            clean=tokens,
            visible=corrupt_masked(tokens, mask, self.corruption, mask_id, rand),
            masked=mask,
            weight=weight,
            count=(tokens != ABSENT).sum().to(weight.dtype),
            condition=drop_condition(condition, self.drop, rand),
            rand=rand,
            remember=choose_remembered_rows(self.self_condition, rand),
        )

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """Return the bound for one batch of clean `tokens`; `condition` holds class ids, or is None."""
        return compute_loss(model, self.mask_batch(tokens, condition, mask_id=mask_id, rand=rand))[0]


def corrupt_masked(
    clean: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"], corruption: Corruption | None, mask_id: int, rand: Rand
) -> Int[Tensor, "b l"]:
    """Return the visible canvas: masked positions show the mask, or what `corruption` puts there."""
    if corruption is None:
        return torch.where(mask, mask_id, clean)
    return corruption(clean, mask, mask_id=mask_id, rand=rand)


def drop_condition(condition: Condition, share: float, rand: Rand) -> Condition:
    """Replace the condition by NULL in a `share` of the rows."""
    return None if condition is None else torch.where(rand("drop") < share, NULL, condition)


def choose_remembered_rows(share: float, rand: Rand) -> Bool[Tensor, "b"] | None:
    """Draw the `share` of rows that get a memory; None if the share is 0."""
    return rand("self_condition") < share if share else None


def check_shares(objective: object, *names: str) -> None:
    """Raise ValueError unless the named fields lie in [0, 1]."""
    for name in names:
        value = getattr(objective, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{type(objective).__name__}({name}={value}): must lie in [0, 1]")


Objective = MaskGIT | MaskedDiffusion
"""Every objective of this file as one closed type, for configurations."""
