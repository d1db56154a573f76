"""Guidance of a self-conditioned model, which reads its own last prediction (arXiv 2208.04202)."""

from collections.abc import Callable

from jaxtyping import Float, Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import Condition, GuidanceRamp, Predict, guided


def guided_with_memory(
    model: Callable[..., Float[Tensor, "b l k"]],
    condition: Condition,
    null: Condition = None,
    *,
    scale: float | GuidanceRamp = 1.0,
) -> Predict:
    """Return `guided` for a self-conditioned model `(tokens, condition, *, memory) -> logits` (arXiv 2208.04202).

    Each step reads the probabilities of the step before. Under guidance both twins read the conditional ones, as in
    muse-maskgit. The memory belongs to one batch of samples: call this again for each batch.
    """
    memory: Tensor | None = None

    def predict_and_store(tokens: Int[Tensor, "b l"], both: Condition) -> Float[Tensor, "b l k"]:
        nonlocal memory
        rows = len(tokens) if condition is None else len(condition)
        twice = memory if memory is None or len(tokens) == rows else torch.cat([memory, memory])
        logits = model(tokens, both, memory=twice)
        memory = logits[:rows].softmax(-1)
        return logits

    return guided(predict_and_store, condition, null, scale=scale)
