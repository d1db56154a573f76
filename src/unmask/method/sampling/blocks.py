"""Decoding in blocks from left to right, each in parallel by any sampler (LLaDA, arXiv 2502.09992; BD3-LM, 2503.09573).

To decode a block is to decode a prefix of the canvas whose earlier tokens are known. So any sampler works here: only
`predict` must add the tokens behind the prefix.
"""

from collections.abc import Callable, Iterator

from jaxtyping import Bool, Float, Int

from unmask.lazy import Tensor, torch
from unmask.method.guidance import Predict
from unmask.method.sampling.decode import State

Sampler = Callable[[Predict, Int[Tensor, "b l"]], Iterator[State]]


def pad_canvas(predict: Predict, length: int, fill: int) -> Predict:
    """Return `predict` for canvases shorter than the network's `length`; the positions behind them hold `fill`.

    The new `predict` raises ValueError for a canvas that is longer.
    """

    def prefix(tokens: Int[Tensor, "b l"], t: float, places: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "..."]:
        if tokens.shape[1] > length:
            raise ValueError(f"a canvas of {tokens.shape[1]} tokens does not fit the network's length of {length}")
        rest = tokens.new_full((len(tokens), length - tokens.shape[1]), fill)
        return _predict_front(predict, tokens, rest, t, places)

    prefix.takes_places = getattr(predict, "takes_places", False)  # type: ignore[attr-defined]
    return prefix


def _predict_front(
    predict: Predict, tokens: Int[Tensor, "b l"], rest: Int[Tensor, "b r"], t: float, places: Bool[Tensor, "b l"] | None
) -> Float[Tensor, "..."]:
    """Predict on a canvas with more tokens behind it, and return what is in front of them, or at `places` there."""
    canvas = torch.cat([tokens, rest], dim=1)
    if places is None:
        return predict(canvas, t)[:, : tokens.shape[1]]
    return predict(canvas, t, torch.cat([places, torch.zeros_like(rest, dtype=torch.bool)], dim=1))  # type: ignore[call-arg]


def decode_blocks(sampler: Sampler, predict: Predict, tokens: Int[Tensor, "b l"], *, size: int) -> Iterator[State]:
    """Run `sampler(predict, tokens)` on one block of `size` positions after the other; the last may be shorter.

    Example: `decode_blocks(lambda predict, tokens: decode(predict, tokens, ratios, mask_id=K, rand=rand), predict,
    tokens, size=32)`. The sampler sees the canvas up to the end of its block, so an order for a fixed grid cannot be
    used. `predict` sees the whole canvas; later blocks are masked unless they are given. Noise depends on the column,
    so one `rand` serves all blocks. `State.t` is the time of the whole canvas, and `State.step` counts the states.
    """
    if size < 1:
        raise ValueError(f"size={size}: must be at least 1")
    length = tokens.shape[1]
    ends = [*range(size, length, size), length]
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    step = 0
    yield State(tokens, nothing, 0, 0.0)
    for block, end in enumerate(ends):
        rest = tokens[:, end:]
        states = sampler(_predict_canvas(predict, rest, block, len(ends)), tokens[:, :end])
        next(states)
        for state in states:
            step += 1
            tokens = torch.cat([state.tokens, rest], dim=1)
            revealed = torch.cat([state.revealed, nothing[:, end:]], dim=1)
            yield State(tokens, revealed, step, (block + state.t) / len(ends))


def _predict_canvas(predict: Predict, rest: Int[Tensor, "b r"], block: int, num_blocks: int) -> Predict:
    def prefix(tokens: Int[Tensor, "b l"], t: float, places: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "..."]:
        return _predict_front(predict, tokens, rest, (block + t) / num_blocks, places)

    prefix.takes_places = getattr(predict, "takes_places", False)  # type: ignore[attr-defined]
    return prefix
