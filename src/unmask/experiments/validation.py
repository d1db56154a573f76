"""What a training shows of itself: loss and accuracy on held-out rows, and a grid of samples."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor, nn

from unmask.data.tokens import Tokens, count_rows_at_once
from unmask.figures.images import choose_scale, draw_grid
from unmask.method.critic import WithCritic
from unmask.method.masking import exclude_absent, mask_exact
from unmask.method.models.protocol import Generator
from unmask.method.objectives import Objective
from unmask.method.partitioning import Partition
from unmask.method.rand import Rand
from unmask.pipelines.image import Pipeline
from unmask.runtime.choices import Precision
from unmask.runtime.distributed import World, autocast, sum_over_ranks, unwrap
from unmask.training.loop import Evaluator

VALIDATION_ROWS = 512
IMAGES = 2048
FEW_TOKENS = 64
ACCURACY_RATIOS = (0.25, 0.5, 0.75, 1.0)


def validate_generator(
    objective: Objective | Partition | WithCritic, precision: Precision, data: Tokens, model: nn.Module, world: World
) -> Evaluator:
    """Return an evaluator of held-out loss, and of accuracy at fixed mask ratios, always with the same noise."""
    num = min(len(data), IMAGES)
    chosen = torch.arange(num) * len(data) // num
    generator = objective.generator if isinstance(objective, WithCritic) else objective
    plain = replace(generator, drop=0.0)
    core: Generator = unwrap(model)  # type: ignore[assignment]
    mask_id = core.mask_id

    def parts() -> Iterator[Tensor]:
        # As many parts on each rank: sharded models need all ranks in every forward.
        each = -(-num // (count_rows_at_once(VALIDATION_ROWS, core.length, mask_id, world.device) * world.size))
        yield from chosen.tensor_split(each * world.size)[world.rank :: world.size]

    def scores(index: Int[Tensor, "b"]) -> list[Tensor]:
        tokens, condition = data.read_rows(index, world.device)
        rand = Rand(1, index.to(world.device), len(data))
        loss = plain(model, tokens, condition, mask_id=mask_id, rand=rand)
        row = [loss.total, loss.count]
        for ratio in ACCURACY_RATIOS:
            mask = mask_exact(
                torch.full((len(tokens),), ratio, dtype=torch.float64, device=world.device),
                exclude_absent(rand("mask", tokens.shape[1]), tokens),
            )
            right = model(torch.where(mask, mask_id, tokens), condition, mask).argmax(-1) == tokens[mask]
            row += [right.sum(), mask.sum()]
        return row

    def evaluate() -> Iterable[tuple[str, float]]:
        sums = torch.zeros(2 + 2 * len(ACCURACY_RATIOS), dtype=torch.float64, device=world.device)
        for index in parts():
            with autocast(precision, world):
                sums += torch.stack([x.double() for x in scores(index)])
        totals = sum_over_ranks(sums, world).tolist()
        yield "validation_loss", totals[0] / totals[1]
        for i, ratio in enumerate(ACCURACY_RATIOS):
            yield f"accuracy_masked_{round(100 * ratio)}", totals[2 + 2 * i] / totals[3 + 2 * i]

    return evaluate


def sample_evaluator(pipeline: Pipeline, precision: Precision, world: World) -> Evaluator:
    """Return an evaluator that draws a grid of samples of one seed; a single row if an image has many tokens."""
    num = 50 if pipeline.model.length <= FEW_TOKENS else 10

    def evaluate() -> Iterable[tuple[str, Image.Image]]:
        with autocast(precision, world):
            images = pipeline.generate(num=num)
        yield "samples", draw_grid(images, columns=10, scale=min(4, choose_scale(images)))

    return evaluate
