"""The pictures of a run: samples, decoding step by step, reveal order, inpainted images, and the loss."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from unmask.data.holes import make_masks
from unmask.data.pictures import spread
from unmask.decoding.sampling import Sampling
from unmask.experiments.base import predict_first_loss
from unmask.experiments.images import Experiment
from unmask.figures import images as figures
from unmask.method.sampling.decode import State
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import list_filled_classes
from unmask.storage.layout import METRICS
from unmask.training.curve import read_metrics

PICTURE_FILES = ("samples.png", "decode.gif", "decode.png", "order.png", "inpaint.png", "loss.png")
"""The files of `draw_pictures`."""


def draw_pictures(run: Path, experiment: Experiment, pipeline: Pipeline, sampling: Sampling, seed: int) -> None:
    """samples.png, decode.gif, decode.png, order.png, inpaint.png and loss.png; of a row of tokens, and of a training
    that was elsewhere, those that there can be."""
    ids = list_filled_classes(pipeline.num_classes, pipeline.empty_classes)
    labels = ids[torch.arange(100) // 10 % len(ids)] if len(ids) else None
    images = pipeline.generate(labels, num=100, seed=seed, sampling=sampling)
    scale = figures.choose_scale(images)
    figures.write_picture(figures.draw_grid(images, 10, scale=scale), run / "samples.png")
    if (run / METRICS).exists():
        draw_loss_curve(run, experiment)
    if len(pipeline.tokenizer.grid) != 2:
        return
    states = pipeline.collect_states(num=30, seed=seed, sampling=sampling)
    figures.write_animation(draw_decoding(pipeline, states, scale), run / "decode.gif")
    figures.write_picture(draw_decoding_strip(pipeline, states, 10, scale), run / "decode.png")
    when = torch.stack([s.revealed.long() * s.step for s in states]).sum(0).cpu()
    height, width = pipeline.cells
    map_ = figures.draw_unmasking_order(when, (height, width), states[-1].step, 10, scale=max(4, 56 // width))
    figures.write_picture(map_, run / "order.png")
    figures.write_picture(draw_inpainting(experiment, pipeline, sampling, seed, scale), run / "inpaint.png")


def draw_decoding(pipeline: Pipeline, states: Sequence[State], scale: int) -> list[Image.Image]:
    """Draw one picture per state, with masked cells hatched."""
    tokens = [state.tokens.cpu() for state in states]
    masked = [t == pipeline.model.mask_id for t in tokens]
    height, width = pipeline.cells
    return figures.draw_decode_frames(tokens, masked, pipeline.tokenizer.decode, (height, width), 10, scale=scale)


def draw_decoding_strip(pipeline: Pipeline, states: Sequence[State], num: int, scale: int) -> Image.Image:
    """Draw a row per step and a column per sample: the same as `draw_decoding`, at one glance."""
    rows = []
    height, width = pipeline.cells
    for state in states:
        tokens = state.tokens[:num].cpu()
        masked = tokens == pipeline.model.mask_id
        images = pipeline.tokenizer.decode(tokens.masked_fill(masked, 0))
        rows.append(figures.overlay_mask(images, masked, (height, width)))
    return figures.draw_triptych(rows, [f"step {state.step}" for state in states], scale=scale)


def draw_inpainting(
    experiment: Experiment, pipeline: Pipeline, sampling: Sampling, seed: int, scale: int, num: int = 12
) -> Image.Image:
    """Held-out images: original, masked, inpainted."""
    pictures = experiment.read_pictures("test")
    index = spread(len(pictures), num)
    images, places = pictures.read_good(index, torch.device("cpu"))
    truth = pictures.pictures.labels
    labels = truth[index[places]] if pipeline.num_classes and truth is not None else None
    hole = make_masks(len(images), *images.shape[2:])
    inpainted = pipeline.fill(images, hole, labels, seed=seed, sampling=sampling)
    _, masked = pipeline.mask_images(images, hole)
    height, width = pipeline.cells
    shown = figures.overlay_mask(images, masked, (height, width))
    grey = [rows.expand_as(shown) for rows in (images, shown, inpainted)]
    return figures.draw_triptych(grey, ["original", "masked", "inpainted"], scale=scale)


def draw_loss_curve(run: Path, experiment: Experiment) -> None:
    """loss.png from metrics.jsonl, with the loss expected before the first step."""
    rows = read_metrics(run / METRICS, report=lambda note: None)  # `read_curve` puts it into the report
    series = {
        name: ([r["step"] for r in rows if key in r], [r[key] for r in rows if key in r])
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    }
    expected = "unigram entropy" if experiment.recipe.unigram else "log K"
    figures.plot_curves(
        series,
        run / "loss.png",
        xlabel="step",
        ylabel="nats per masked token",
        title="Masked-token cross-entropy",
        references={f"before training: {expected}": predict_first_loss(experiment)},
    )
