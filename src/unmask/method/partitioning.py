"""The objective of partition models: predict two groups of tokens from each other, in one pass (arXiv 2505.18883)."""

from dataclasses import dataclass

from jaxtyping import Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import Condition
from unmask.method.masking import ABSENT, exclude_absent, mask_count, mask_exact, stratify_times
from unmask.method.objectives import Loss, Model, check_shares, drop_condition
from unmask.method.rand import Rand
from unmask.method.schedules import Power, Shape


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Split each row into two groups and predict each group from the other: every token is a target once.

    The model is called as `model(tokens, condition, at, groups=groups)`, such as a `PartitionTransformer`. If one group
    is the whole row, the other is empty: all tokens are then predicted from nothing.
    """

    schedule: Shape = Power()
    """Fraction of tokens in the first group at time t, g(t); the second group has the others."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy, 0 to 1."""
    drop: float = 0.1
    """Share of rows trained without their condition, so that guidance has an unconditional twin."""
    likelihood: bool = False
    """Weight each token so that the mean is the bound on -log p, for any schedule; label smoothing must be 0."""

    def __post_init__(self) -> None:
        check_shares(self, "label_smoothing", "drop")
        if self.likelihood and self.label_smoothing:
            raise ValueError("Partition(likelihood=True): a smoothed loss is no likelihood; set label_smoothing to 0")

    @property
    def share(self) -> float:
        """The mean of `Loss.count` per token."""
        return 1.0

    def __call__(
        self, model: Model, tokens: Int[Tensor, "b l"], condition: Condition, *, mask_id: int, rand: Rand
    ) -> Loss:
        """Return the loss of one batch of clean `tokens`; `condition` holds class ids, or is None."""
        present = tokens != ABSENT
        n = present.sum(1)
        t = stratify_times(rand("time"), rand.rows, rand.num_rows)
        u = exclude_absent(rand("mask", tokens.shape[1]), tokens)
        if self.likelihood:  # 0..n tokens, each number equally likely
            first = ((n + 1) * t).long().minimum(n)
            groups = mask_count(first, u) & (first > 0)[:, None]
        else:
            groups = mask_exact(self.schedule(t), u)
        logits = model(tokens, drop_condition(condition, self.drop, rand), present, groups=groups)
        from unmask.method.cross_entropy import CrossEntropy  # it imports torch

        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        nats: Tensor = CrossEntropy.apply(logits, tokens[present], self.label_smoothing)
        if self.likelihood:
            # A group of s tokens is asked for with probability 2 / (n + 1); the bound weights it by 1 / s.
            size = torch.where(groups, groups.sum(1, keepdim=True), (~groups & present).sum(1, keepdim=True))
            nats = nats * ((n[:, None] + 1) / (2 * size.clamp(min=1)))[present]
        return Loss(nats.sum(), n.sum().to(nats.dtype))
