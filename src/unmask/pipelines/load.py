"""Open a run, an export, a published model or one of the hub, ready to sample."""

from collections.abc import Sequence
from pathlib import Path

import torch

from unmask.pipelines.image import Pipeline
from unmask.published.store import located
from unmask.runtime.progress import Progress


def load(
    name: str | Path,
    *,
    weights: Sequence[str | Path] = (),
    prompts: Sequence[str] = (),
    offline: bool = False,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> Pipeline:
    """A published model by its name, a run or an export by its folder, or hf-hub:OWNER/NAME[@REVISION], ready to draw.

    `weights` are published files, or folders that hold them, to take instead of a download. `prompts` are the texts
    that a model of texts draws; text i is its class i. Raises ConfigError, CheckpointError and DiskError.
    """
    folder = located(name, weights=weights, offline=offline, progress=progress)
    return Pipeline.from_pretrained(folder, device=device, dtype=dtype, prompts=prompts)
