"""Classifier-free guidance (Ho and Salimans, arXiv 2207.12598): turn a conditional model into a plain `predict`.

The guided logits are null + s (cond - null): s = 1 is the plain conditional model, s = 0 the unconditional one. Papers
that write (1 + w) cond - w null, such as the MaskGIT reproduction report, mean w = s - 1: their 3 is our 4.
"""

from collections.abc import Callable
from functools import partial

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, torch

NULL = -1
"""The class id for "no condition"; every class embedding has a row for it."""

Condition = Int[Tensor, "b"] | None
Predict = Callable[[Int[Tensor, "b l"], float], Float[Tensor, "b l k"]]
"""`predict(tokens, t) -> logits`: all that a sampler sees of a model; t is 0 where all is masked."""
ConditionalModel = Callable[..., Float[Tensor, "..."]]
GuidanceRamp = Callable[[float], float]  # t -> scale, as in ramps.py


def guided(
    model: ConditionalModel, condition: Condition, null: Condition = None, *, scale: float | GuidanceRamp = 1.0
) -> Predict:
    """Return `predict(tokens, t)` with guidance: one forward pass of both twins as a batch, or of the one it needs.

    `null` is the unconditional twin of `condition`; by default every row's class id becomes NULL.
    `predict` raises ValueError if the scale is not 1 and there is no condition. If the model `takes_places`, so does
    `predict(tokens, t, places)`: it returns the logits of the places that are True alone, [n, K] row by row. It leaves
    out rows without any, and at t = 0 it computes equal rows once: in an empty canvas, all of a class.
    """
    if condition is not None and null is None:
        null = torch.full_like(condition, NULL)
    takes_places = getattr(model, "takes_places", False)

    def predict(
        tokens: Int[Tensor, "b l"], t: float, places: Bool[Tensor, "b l"] | None = None
    ) -> Float[Tensor, "..."]:
        s = scale(t) if callable(scale) else scale
        cond, uncond = condition, null
        if s != 1 and (cond is None or uncond is None):
            raise ValueError(f"guidance scale {s} needs a condition; without a condition leave the scale at 1")
        if places is not None and not (rows := places.any(1)).all():
            tokens, places = tokens[rows], places[rows]
            cond, uncond = (c if c is None else c[rows] for c in (cond, uncond))
        ask = partial(_predict_once, model) if takes_places and t == 0 and bool((tokens == tokens[:1]).all()) else model
        at = () if places is None else (places,)
        if s in (0, 1) or cond is None or uncond is None:
            return ask(tokens, cond if s else uncond, *at)
        yes, no = ask(tokens.repeat(2, 1), torch.cat([cond, uncond]), *(p.repeat(2, 1) for p in at)).chunk(2)
        return no + s * (yes - no)

    predict.takes_places = takes_places  # type: ignore[attr-defined]
    return predict


def _predict_once(
    model: ConditionalModel, tokens: Int[Tensor, "b l"], condition: Condition, places: Bool[Tensor, "b l"] | None = None
) -> Float[Tensor, "..."]:
    """Predict from rows that hold one canvas: each condition once."""
    kinds, row = None, torch.zeros_like(tokens[:, 0])
    if condition is not None:
        kinds, row = condition.unique(return_inverse=True)
    first = tokens[: 1 if kinds is None else len(kinds)]
    if places is None:
        return model(first, kinds)[row]
    asked = torch.zeros_like(first).index_add_(0, row, places.long()) > 0
    number = asked.flatten().cumsum(0).view(asked.shape) - 1
    return model(first, kinds, asked)[number[row][places]]
