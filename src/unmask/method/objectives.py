"""Training objectives: clean tokens in, a loss as a sum and its divisor out.

Every objective is called as `objective(model, tokens, condition, *, mask_id, rand) -> Loss`. The model is any callable
`(tokens, condition, at) -> logits` that returns one row of K logits for each True in `at`: logits are computed only
where they are needed. Sums and counts are not averaged before the end, so micro-batches and ranks cannot bias the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask.method.guidance import NULL, Condition
from unmask.method.masking import ABSENT, complementary, mask_bernoulli, mask_exact, only_present, stratified
from unmask.method.rand import Rand
from unmask.method.schedules import Cosine, Power, Shape, likelihood_weight

Model = Callable[..., Float[Tensor, "..."]]


@dataclass(frozen=True)
class Loss:
    """A sum in nats and the weight it is to be divided by, once, after everything has been added up."""

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What stands at a masked token, which is to be predicted in any case (BERT, arXiv 1810.04805, section 3.1).

    A share `keep` shows the token itself, a share `random` any token but never the mask, and the others the mask: each
    place by its own draw. The shares are x-transformers' (`no_replace_prob`, `random_token_prob`). `coins`: what its
    code makes of them, 7.5 % and 4.3 % on average: either happens with a chance of 1/2 only, and the second is
    `random` times what the first left, of what the first left. Differs from it: a coin per row, not one per batch.
    """

    keep: float = 0.15
    random: float = 0.1
    coins: bool = False

    def __post_init__(self) -> None:
        if not (self.keep >= 0 and self.random >= 0 and self.keep + self.random <= 1):
            raise ValueError(f"{self}: shares are at least 0, and keep + random at most 1")

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
class Task:
    """One question: the canvas as it is shown, which places are masked, what each answer counts, and the divisor.

    `remember`: the rows that see what the model itself thought before, if any. `rand` has a row for each of the task.
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
        """The places to predict."""
        return self.masked | (self.weight > 0)


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[target], with label smoothing: what F.cross_entropy is, in two thirds of its memory.

    It keeps the logits and one number per row, and the gradient is softmax minus target; the library's keeps the log
    softmax, makes the gradient of that first, and holds three arrays of a vocabulary each at once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, smoothing: float) -> Tensor:
        total = logits.logsumexp(-1)
        ctx.save_for_backward(logits, target, total)
        ctx.smoothing = smoothing
        nats = total - logits.gather(-1, target[:, None])[:, 0]
        return nats if smoothing == 0 else (1 - smoothing) * nats + smoothing * (total - logits.mean(-1))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, target, total = ctx.saved_tensors
        p = (logits - total[:, None]).exp_()
        if ctx.smoothing:
            p -= ctx.smoothing / p.shape[-1]
        share = torch.full_like(total, ctx.smoothing - 1)
        return p.scatter_add_(-1, target[:, None], share[:, None]).mul_(gradient[:, None]), None, None


def solve(model: Model, task: Task) -> tuple[Loss, Float[Tensor, "n k"]]:
    """The weighted sum of -log p(clean | visible), and the logits at `task.at` that it was made of."""
    at = task.at
    if task.remember is None:
        logits = model(task.visible, task.condition, at)
    else:
        logits = model(task.visible, task.condition, at, recall(model, task.visible, task.condition, task.remember))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    lost: Tensor = CrossEntropy.apply(logits, task.clean[at], task.label_smoothing)
    return Loss((lost * task.weight[at]).sum(), task.count), logits


@torch.no_grad()
def recall(
    model: Model, visible: Int[Tensor, "b l"], condition: Condition, rows: Bool[Tensor, "b"]
) -> Float[Tensor, "b l k"]:
    """The probabilities that a first pass gives, in the chosen `rows`; zeros, that is no memory, in the others."""
    logits = model(visible, condition, torch.ones_like(visible, dtype=torch.bool))
    # Autocast of older torch keeps the weights it cast here, without gradients: the next pass would learn nothing.
    torch.clear_autocast_cache()
    return logits.softmax(-1).unflatten(0, visible.shape) * rows[:, None, None]


@dataclass(frozen=True, kw_only=True)
class MaskGIT:
    """Masked visual token modelling (arXiv 2202.04200, eq. 1): draw t, mask a fraction g(t), predict what was masked.

    `visible_weight`: loss weight of the tokens left visible (0 in the paper, 0.1 in TiTok, 1 in valeoai's code).
    `drop`: share of rows trained without their condition, so that guidance has an unconditional twin.
    `independent`: mask each token by its own coin instead of an exact count. `stratified`: spread t evenly over the
    global batch. `complementary`: train every row under a mask and under its complement, two forward rows per row; half
    of the tokens are then masked on average, whatever the schedule. `corruption`: of masked tokens, none by default.
    `self_condition`: share of rows that see what the model itself thought in a first pass without gradients (0.75 in
    x-transformers, 0.9 in muse-maskgit).
    """

    schedule: Shape = Cosine()
    visible_weight: float = 0.0
    label_smoothing: float = 0.0
    drop: float = 0.1
    independent: bool = False
    stratified: bool = True
    complementary: bool = False
    corruption: Corruption | None = None
    self_condition: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "visible_weight", "label_smoothing", "drop", "self_condition")

    @property
    def share(self) -> float:
        """What `Task.count` is per token on average."""
        ratio = self.schedule((torch.arange(1000) + 0.5) / 1000).mean().item()
        masked = 0.5 if self.complementary else ratio
        return masked + self.visible_weight * (1 - masked)

    def task(self, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand) -> Task:
        """What one batch of clean `tokens` asks; `complementary` doubles its rows."""
        t = rand("time")
        if self.stratified:
            t = stratified(t, rand.rows, rand.num_rows)
        u = only_present(rand("mask", tokens.shape[1]), tokens)
        mask = (mask_bernoulli if self.independent else mask_exact)(self.schedule(t), u)
        condition = dropped(condition, self.drop, rand)
        if self.complementary:
            mask = torch.cat(complementary(mask, u))
            tokens = torch.cat([tokens, tokens])
            condition = None if condition is None else torch.cat([condition, condition])
            rand = replace(rand, rows=rand.rows.repeat(2))
        weight = mask + self.visible_weight * (~mask & (tokens != ABSENT))
        return Task(
            clean=tokens,
            visible=hidden(tokens, mask, self.corruption, mask_id, rand),
            masked=mask,
            weight=weight,
            count=weight.sum(),
            condition=condition,
            rand=rand,
            label_smoothing=self.label_smoothing,
            remember=remembered(self.self_condition, rand),
        )

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """The loss of one batch of clean `tokens`; `condition` holds class ids, or is None."""
        return solve(model, self.task(tokens, condition, mask_id=mask_id, rand=rand))[0]


@dataclass(frozen=True, kw_only=True)
class MaskedDiffusion:
    """The bound on -log p(tokens) of masked diffusion (MDLM, arXiv 2406.07524, eq. 10), in nats per token.

    Draw t, mask each token by its own coin of chance g(t), and weigh each masked one by -g'(t)/g(t); the sum is divided
    by the number of all tokens. Its expectation is the same for every `schedule`; only its noise is not. t is spread
    evenly over the global batch. The other fields as in MaskGIT; with either of the last two it bounds no likelihood.
    Differs from x-transformers' `use_simple_mdlm_loss_weight`: g'(t)/(1 - g(t)) there has the wrong sign and pole.
    """

    schedule: Shape = Power()
    drop: float = 0.1
    corruption: Corruption | None = None
    self_condition: float = 0.0

    def __post_init__(self) -> None:
        check_shares(self, "drop", "self_condition")
        if float(self.schedule(torch.tensor(1e-9))) < 1 - 1e-3:
            raise ValueError(
                f"MaskedDiffusion(schedule={self.schedule}): it jumps at t = 0 and misses part of the bound"
            )

    @property
    def share(self) -> float:
        """What `Task.count` is per token."""
        return 1.0

    def task(self, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand) -> Task:
        """What one batch of clean `tokens` asks."""
        t = stratified(rand("time"), rand.rows, rand.num_rows)
        mask = only_present(rand("mask", tokens.shape[1]), tokens) < self.schedule(t)[:, None]
        weight = likelihood_weight(self.schedule, t)[:, None] * mask
        return Task(
            clean=tokens,
            visible=hidden(tokens, mask, self.corruption, mask_id, rand),
            masked=mask,
            weight=weight,
            count=(tokens != ABSENT).sum().to(weight.dtype),
            condition=dropped(condition, self.drop, rand),
            rand=rand,
            remember=remembered(self.self_condition, rand),
        )

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """The bound for one batch of clean `tokens`; `condition` holds class ids, or is None."""
        return solve(model, self.task(tokens, condition, mask_id=mask_id, rand=rand))[0]


def hidden(
    clean: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"], corruption: Corruption | None, mask_id: int, rand: Rand
) -> Int[Tensor, "b l"]:
    """The canvas: masked places show the mask, or what `corruption` puts there."""
    if corruption is None:
        return torch.where(mask, mask_id, clean)
    return corruption(clean, mask, mask_id=mask_id, rand=rand)


def dropped(condition: Condition, share: float, rand: Rand) -> Condition:
    """The condition, but NULL in a `share` of the rows."""
    return None if condition is None else torch.where(rand("drop") < share, NULL, condition)


def remembered(share: float, rand: Rand) -> Bool[Tensor, "b"] | None:
    """The `share` of rows that get a memory."""
    return rand("self_condition") < share if share else None


def check_shares(objective: object, *names: str) -> None:
    """ValueError unless the fields of these `names` lie in [0, 1]."""
    for name in names:
        value = getattr(objective, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{type(objective).__name__}({name}={value}): must lie in [0, 1]")


Objective = MaskGIT | MaskedDiffusion
"""Every objective of this page, as one closed type: what a configuration may hold."""
