"""Training objectives: clean tokens in, a loss as a sum and its divisor out.

Every objective is called as `objective(model, tokens, condition, *, mask_id, rand) -> Loss`. The model is any callable
`(tokens, condition, at) -> logits` that returns one row of K logits for each True in `at`: logits are computed only
where they are needed. Sums and counts are not averaged before the end, so micro-batches and ranks cannot bias the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.guidance import NULL, Condition
from unmask.masking import ABSENT, complementary, mask_bernoulli, mask_exact, only_present, stratified
from unmask.rand import Rand
from unmask.schedules import Cosine, Power, Shape, likelihood_weight

Model = Callable[..., Float[Tensor, "n k"]]


@dataclass(frozen=True)
class Loss:
    """A sum in nats and the weight it is to be divided by, once, after everything has been added up."""

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]


def nats(
    model: Model,
    visible: Int[Tensor, "b l"],
    clean: Int[Tensor, "b l"],
    at: Bool[Tensor, "b l"],
    condition: Condition,
    *,
    label_smoothing: float = 0.0,
    memory: Float[Tensor, "b l k"] | None = None,
) -> Float[Tensor, "n"]:
    """-log p(clean | visible) of the tokens `at`; `memory` is what a self-conditioned model thought before."""
    logits = model(visible, condition, at) if memory is None else model(visible, condition, at, memory)
    return F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        clean[at],
        label_smoothing=label_smoothing,
        reduction="none",
    )


def masked_cross_entropy(
    model: Model,
    clean: Int[Tensor, "b l"],
    mask: Bool[Tensor, "b l"],
    condition: Condition,
    *,
    mask_id: int,
    visible_weight: float = 0.0,
    label_smoothing: float = 0.0,
) -> Loss:
    """-log p(clean | visible tokens), summed over masked tokens; visible ones count with `visible_weight`, if any."""
    at = clean != ABSENT if visible_weight > 0 else mask
    visible = torch.where(mask, mask_id, clean)
    lost = nats(model, visible, clean, at, condition, label_smoothing=label_smoothing)
    weight = torch.where(mask, 1.0, visible_weight)[at]
    return Loss((lost * weight).sum(), weight.sum())


@dataclass(frozen=True, kw_only=True)
class MaskGIT:
    """Masked visual token modelling (arXiv 2202.04200, eq. 1): draw t, mask a fraction g(t), predict what was masked.

    `visible_weight`: loss weight of the tokens left visible (0 in the paper, 0.1 in TiTok, 1 in valeoai's code).
    `drop`: share of rows trained without their condition, so that guidance has an unconditional twin.
    `independent`: mask each token by its own coin instead of an exact count. `stratified`: spread t evenly over the
    global batch. `complementary`: train every row under a mask and under its complement, two forward rows per row; half
    of the tokens are then masked on average, whatever the schedule.
    """

    schedule: Shape = Cosine()
    visible_weight: float = 0.0
    label_smoothing: float = 0.0
    drop: float = 0.1
    independent: bool = False
    stratified: bool = True
    complementary: bool = False

    def __post_init__(self) -> None:
        for name in ("visible_weight", "label_smoothing", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"MaskGIT({name}={getattr(self, name)}): must lie in [0, 1]")

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """The loss of one batch of clean `tokens`; `condition` holds class ids, or is None."""
        t = rand("time")
        if self.stratified:
            t = stratified(t, rand.rows, rand.num_rows)
        u = only_present(rand("mask", tokens.shape[1]), tokens)
        mask = (mask_bernoulli if self.independent else mask_exact)(self.schedule(t), u)
        if condition is not None:
            condition = torch.where(rand("drop") < self.drop, NULL, condition)
        if self.complementary:
            mask = torch.cat(complementary(mask, u))
            tokens = torch.cat([tokens, tokens])
            condition = None if condition is None else torch.cat([condition, condition])
        return masked_cross_entropy(
            model,
            tokens,
            mask,
            condition,
            mask_id=mask_id,
            visible_weight=self.visible_weight,
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """The bound on -log p(tokens) of masked diffusion (MDLM, arXiv 2406.07524, eq. 10), in nats per token.

    Draw t, mask each token by its own coin of chance g(t), and weigh each masked one by -g'(t)/g(t); the sum is divided
    by the number of all tokens. Its expectation is the same for every `schedule`; only its noise is not. t is spread
    evenly over the global batch. `drop` as in MaskGIT.
    Differs from x-transformers' `use_simple_mdlm_loss_weight`: g'(t)/(1 - g(t)) there has the wrong sign and pole.
    """

    schedule: Shape = Power()
    drop: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise ValueError(f"MaskedDiffusion(drop={self.drop}): must lie in [0, 1]")

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """The bound for one batch of clean `tokens`; `condition` holds class ids, or is None."""
        t = stratified(rand("time"), rand.rows, rand.num_rows)
        mask = only_present(rand("mask", tokens.shape[1]), tokens) < self.schedule(t)[:, None]
        if condition is not None:
            condition = torch.where(rand("drop") < self.drop, NULL, condition)
        lost = nats(model, torch.where(mask, mask_id, tokens), tokens, mask, condition)
        weight = likelihood_weight(self.schedule, t)[:, None].expand(mask.shape)[mask]
        return Loss((lost * weight).sum(), (tokens != ABSENT).sum().to(lost.dtype))


Objective = MaskGIT | MaskedDiffusion
"""Every objective of this page, as one closed type: what a configuration may hold."""
