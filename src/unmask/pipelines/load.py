"""Open a run, an export, a published model or one of the Hub, ready to use."""

from collections.abc import Sequence
from pathlib import Path

import torch

from unmask.errors import ConfigError
from unmask.pipelines.exporting import check_export
from unmask.pipelines.image import Pipeline
from unmask.pipelines.text import TextPipeline
from unmask.pretrained.conditions import attach_prompts, detach_prompts, takes_prompts
from unmask.published.opening import OpenedModel, open_model
from unmask.recipes.spec import ModelSpec, TextModelSpec
from unmask.runtime.progress import Progress


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    prompts: Sequence[str] = (),
    weights: Sequence[str | Path] = (),
    offline: bool = False,
    progress: Progress | None = None,
) -> Pipeline | TextPipeline:
    """Load a model by its name.

    Args:
        name: A run's or an export's folder, a published model such as "besnier-256", or hf-hub:OWNER/NAME[@REVISION].
        device: "auto" (cuda, mps or cpu, whichever is there first), or the name of one.
        dtype: The type of the weights in memory; by default bfloat16 where that is fast. torch.int8 rounds the linear
            layers of the network, for faster sampling with wide networks on a CPU.
        prompts: For a text-to-image model: the texts to sample; text i is its class i.
        weights: Published files, or folders that hold them, to use instead of a download.
        offline: Use what is in the cache, and ask no server.
        progress: Called with (what, done, total) during a download.

    Returns:
        A `Pipeline` for images or a `TextPipeline`, by what the model is.

    Raises:
        CheckpointError: There is no such model, or a file is missing or damaged.
        ConfigError: Its configuration, or an argument, does not fit.
        DiskError: The cache cannot be written.

    Examples:
        >>> pipe = unmask.load("runs/demo")
        >>> images = pipe([3, 7], steps=4, seed=0)  # PIL images, one per class
        >>> len(images)
        2
    """
    opened = open_model(name, weights=weights, offline=offline)
    opened.fetch(progress)
    return load_pipeline(opened, device=device, dtype=dtype, prompts=prompts)


def load_pipeline(
    opened: OpenedModel, *, device: str = "auto", dtype: torch.dtype | None = None, prompts: Sequence[str] = ()
) -> Pipeline | TextPipeline:
    """Load the weights of a model that `open_model` found, into a pipeline of its kind."""
    if isinstance(opened.config, TextModelSpec):
        return TextPipeline.from_pretrained(opened.fetch(), device=device, dtype=dtype, spec=opened.config)
    return load_image_pipeline(opened, device=device, dtype=dtype, prompts=prompts)


def load_image_pipeline(
    opened: OpenedModel, *, device: str = "auto", dtype: torch.dtype | None = None, prompts: Sequence[str] = ()
) -> Pipeline:
    """Load the weights of an image model; ConfigError if it is another kind."""
    spec = opened.require_image_spec()
    return Pipeline.from_pretrained(opened.fetch(), device=device, dtype=dtype, prompts=prompts, spec=spec)


def change_prompts(pipeline: Pipeline, prompts: Sequence[str]) -> Pipeline:
    """Return the same text-to-image model with other texts; text i is its class i. Both share the weights.

    ConfigError for a model that takes classes, for too long texts, and for a pipeline that was put together by hand.
    """
    if pipeline.folder is None:
        raise ConfigError("this pipeline was put together by hand: load one to give it prompts")
    network = attach_prompts(detach_prompts(pipeline.model), pipeline.folder, prompts, pipeline.tokenizer.size)
    changed = Pipeline(network, pipeline.tokenizer, pipeline.sampling, tuple(prompts))
    changed.spec, changed.folder = pipeline.spec, pipeline.folder
    return changed


def export_model(opened: OpenedModel, out: Path, *, overwrite: bool = False) -> None:
    """Write what a pipeline needs into `out`, after loading it once in float32 to see that it is whole.

    The errors are those of `save_pretrained`.
    """
    check_export(out, opened.folder, overwrite=overwrite)
    prompts = ("",) if isinstance(opened.config, ModelSpec) and takes_prompts(opened.config.model) else ()
    load_pipeline(opened, device="cpu", dtype=torch.float32, prompts=prompts).save_pretrained(out, overwrite=overwrite)
