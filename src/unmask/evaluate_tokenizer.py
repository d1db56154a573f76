"""What a tokenizer is worth: how near its reconstructions are, and how well it uses its codes."""

import math
from pathlib import Path

import torch
from torch import Tensor

from unmask.config import write_json
from unmask.evaluate import read_curve
from unmask.experiment import environment
from unmask.figures import write
from unmask.metrics.embedders import Features, identity
from unmask.metrics.frechet import fit_gaussian, frechet_distance
from unmask.metrics.reconstruction import code_statistics, psnr, ssim
from unmask.reference import gather, in_domain
from unmask.tokenizer_experiment import open_run, prepare, side_by_side
from unmask.training.distributed import World
from unmask.weights import fingerprint


def report(folder: Path, *, world: World, features: Features | None = None, num: int = 10_000) -> dict[str, object]:
    """What a trained tokenizer keeps of held-out pictures, into `report.json` and `reconstructions.png`.

    `rfid` is the Frechet distance of at most `num` held-out pictures to their own reconstructions, in `features`, or
    else in those of a classifier trained on the pictures. PSNR in dB, SSIM at most 1; usage and perplexity are those of
    the codes of these pictures.
    """
    recipe, model = open_run(folder)
    experiment = prepare(recipe)
    recipe = experiment.recipe
    model = model.to(world.device)
    pictures = experiment.test
    if features is None and len(experiment.split.train.classes) > 1:
        features = in_domain(experiment.train, recipe.classifier, folder / "classifier.safetensors", world)
    index = torch.arange(len(pictures))[:num]
    dim = 0 if features is None else features.dim

    def compute(block: slice) -> Tensor:
        images, _ = pictures.rows(index[block], world.device)
        tokens = model.encode(images)
        made = model.decode(tokens)
        columns = [
            psnr(images, made)[:, None],
            ssim(images, made)[:, None],
            (images - made).abs().flatten(1).mean(1)[:, None],
        ]
        if features is not None:
            columns += [features(images), features(made)]
        return torch.cat([*(column.double() for column in columns), tokens.double()], dim=1)

    length = model.grid[0] * model.grid[1]
    rows = gather(len(index), 3 + 2 * dim + length, compute, world)
    decibels, likeness, error = rows[:, :3].mean(0).tolist()
    counts = rows[:, 3 + 2 * dim :].long().flatten().bincount(minlength=model.vocab_size)
    numbers: dict[str, object] = {
        "psnr": decibels,
        "ssim": likeness,
        "mean_absolute_error": error,
        **code_statistics(counts),
        "vocab_size": model.vocab_size,
        "tokens_per_image": length,
        "bits_per_image": length * math.log2(model.vocab_size),
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }
    if features is not None:
        real, made = rows[:, 3 : 3 + dim], rows[:, 3 + dim : 3 + 2 * dim]
        numbers |= {
            "rfid": frechet_distance(fit_gaussian(made), fit_gaussian(real)),
            "features": str(identity(features)),
        }
    numbers |= {
        "num_pictures": len(index),
        "quantizer": str(recipe.tokenizer.quantizer),
        "tokenizer": fingerprint(model, model.config),
        "seed": recipe.training.seed,
        **read_curve(folder, "validation_psnr"),
        **environment(world.device),
    }
    if world.is_main:
        write_json(folder / "report.json", numbers)
        images, _ = pictures.rows(index[:12], world.device)
        write(side_by_side(images, model.decode(model.encode(images))), folder / "reconstructions.png")
    return numbers
