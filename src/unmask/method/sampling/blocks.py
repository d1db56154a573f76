"""Left to right in blocks, each decoded in parallel by any sampler (LLaDA, arXiv 2502.09992; BD3-LM, 2503.09573).

A block is a prefix of the canvas whose earlier tokens are known, so this is composition and no loop of its own: only
`predict` has to be told what stands behind the prefix.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.method.guidance import Predict
from unmask.method.sampling.decode import State

Sampler = Callable[[Predict, Int[Tensor, "b l"]], Iterator[State]]


def pad_canvas(predict: Predict, length: int, fill: int) -> Predict:
    """`predict` for canvases shorter than `length`, the network's own: the places behind them hold `fill`."""

    def prefix(tokens: Int[Tensor, "b l"], t: float) -> Float[Tensor, "b l k"]:
        if tokens.shape[1] > length:
            raise ValueError(f"a canvas of {tokens.shape[1]} tokens does not fit the {length} of the network")
        rest = tokens.new_full((len(tokens), length - tokens.shape[1]), fill)
        return predict(torch.cat([tokens, rest], dim=1), t)[:, : tokens.shape[1]]

    return prefix


def decode_blocks(sampler: Sampler, predict: Predict, tokens: Int[Tensor, "b l"], *, size: int) -> Iterator[State]:
    """Run `sampler(predict, tokens)` on block after block of `size` places; the last block may be shorter.

    As in `blocks(lambda predict, tokens: decode(predict, tokens, ratios, mask_id=K, rand=rand), predict, tokens,
    size=32)`. The sampler sees the canvas up to the end of its block (so no order tied to a grid fits), `predict` all
    of it, with later blocks as they are: masked unless given. Noise belongs to the column, so one `rand` serves all
    blocks. t is the time of the whole canvas, and steps count the states.
    """
    if size < 1:
        raise ValueError(f"size={size}: a block needs at least one token")
    length = tokens.shape[1]
    ends = [*range(size, length, size), length]
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    step = 0
    yield State(tokens, nothing, 0, 0.0)
    for block, end in enumerate(ends):
        rest = tokens[:, end:]
        states = sampler(_inside(predict, rest, block, len(ends)), tokens[:, :end])
        next(states)
        for state in states:
            step += 1
            tokens = torch.cat([state.tokens, rest], dim=1)
            revealed = torch.cat([state.revealed, nothing[:, end:]], dim=1)
            yield State(tokens, revealed, step, (block + state.t) / len(ends))


def _inside(predict: Predict, rest: Int[Tensor, "b r"], block: int, num_blocks: int) -> Predict:
    def prefix(tokens: Int[Tensor, "b l"], t: float) -> Float[Tensor, "b l k"]:
        return predict(torch.cat([tokens, rest], dim=1), (block + t) / num_blocks)[:, : tokens.shape[1]]

    return prefix
