"""What it costs to reveal several tokens in one forward pass, and the counts that cost least in all.

For an order that is fixed in advance, the exact cost in nats of revealing places a..b-1 of the order in one pass is the
sum of -log p(x_i | the first a places). One pass over some rows for each a gives all these costs. The exact likelihood
of a sampler (`method/likelihood.py`) is the sum over its passes, so dynamic programming finds the counts that minimise
it for any number of passes.
"""

import itertools

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from unmask.data.tokens import count_rows_at_once
from unmask.errors import ConfigError
from unmask.evaluation.scoring import SCORED_ROWS, ScoredSubject
from unmask.method.likelihood import compute_token_nll
from unmask.method.masking import ABSENT
from unmask.method.rand import Rand, to_double
from unmask.method.sampling.decode import Priority
from unmask.runtime.distributed import World, sum_over_ranks
from unmask.runtime.progress import Progress

MOST_CUTS = 64
"""Most places of an order at which a pass may begin: as many passes over the rows."""


def choose_cuts(length: int) -> list[int]:
    """Return the numbers of known tokens at which a pass may begin or end, from 0 to `length`, densest at the start."""
    if length <= MOST_CUTS:
        return list(range(length + 1))
    least = length / MOST_CUTS**1.5
    return sorted({round(least * i**1.5) for i in range(MOST_CUTS)} | {length})


@torch.no_grad()
def measure_costs(
    subject: ScoredSubject,
    order: Priority,
    cuts: list[int],
    *,
    index: Int[Tensor, "n"],
    seed: int,
    world: World,
    progress: Progress | None = None,
) -> Float64[Tensor, "cuts cuts"]:
    """Return the mean nats per row of revealing places cuts[i] to cuts[j] - 1 in one pass; infinite unless i < j.

    The order must be known in advance: its logits are empty.

    Raises:
        ConfigError: Some rows end early.
    """
    sums = to_double(torch.zeros(len(cuts), len(cuts), device=world.device))
    mine = torch.arange(world.rank, len(index), world.size)
    at_once = count_rows_at_once(SCORED_ROWS, cuts[-1], subject.mask_id, world.device)
    ends = torch.tensor(cuts[1:], device=world.device) - 1
    done = 0
    for part in mine.split(at_once):
        tokens, condition = subject.rows.read_rows(index[part], world.device)
        if bool((tokens == ABSENT).any()):
            raise ConfigError("rows of documents end early, so the counts of one canvas do not fit them")
        predict, rand = subject.plain(condition), Rand(seed, index[part].to(world.device), len(subject.rows))
        nothing = torch.zeros(*tokens.shape, 0, device=world.device)
        score = order(nothing, tokens, masked=torch.ones_like(tokens, dtype=torch.bool), t=1.0, rand=rand.at(0))
        places = score.argsort(dim=1, descending=True, stable=True)
        rank = places.argsort(dim=1)
        for i, known in enumerate(cuts[:-1]):
            logits = predict(torch.where(rank < known, tokens, subject.mask_id), known / cuts[-1])
            nats = to_double(compute_token_nll(logits, tokens).gather(1, places)).cumsum(1)
            before = nats[:, known - 1 : known].sum() if known else 0.0
            sums[i, i + 1 :] += nats[:, ends[i:]].sum(0) - before
        done += len(part) * world.size
        if progress is not None:
            progress("rows", min(done, len(index)), len(index))
    costs = sum_over_ranks(sums, world).cpu() / len(index)
    return costs.masked_fill(torch.ones_like(costs, dtype=torch.bool).tril(), torch.inf)


def choose_counts(costs: Float64[Tensor, "cuts cuts"], cuts: list[int], passes: int) -> list[int]:
    """Return the tokens that each of `passes` passes reveals so that the sum of their costs is least.

    Raises:
        ConfigError: There are fewer cuts than passes.
    """
    if not 1 <= passes < len(cuts):
        raise ConfigError(f"{passes} passes: give from 1 to {len(cuts) - 1}")
    least, sources = costs[0], []
    for _ in range(1, passes):
        least, source = (least[:, None] + costs).min(0)
        sources.append(source)
    path = [len(cuts) - 1]
    for source in reversed(sources):
        path.append(int(source[path[-1]]))
    known = [0, *(cuts[i] for i in reversed(path))]
    return [after - before for before, after in itertools.pairwise(known)]
