"""Generate images step by step, for the tabs Generate and Compare; no part of this knows the page."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.app.commands import write_command, write_python
from unmask.app.watching import Recording, Watcher, check_batch, record, start_recording
from unmask.decoding.sampling import Sampling
from unmask.errors import SEEDS, ConfigError
from unmask.figures.images import write_animation, write_picture
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import resolve_filled_labels
from unmask.pipelines.load import change_prompts
from unmask.pretrained.conditions import takes_prompts
from unmask.storage.config import to_json
from unmask.storage.files import write_text

IMAGES_AT_ONCE = 16
"""Images at once on the page."""
MOST_PROMPT = 1000
"""Characters of a prompt."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What to generate."""

    labels: Sequence[str] = ()
    """Classes by name or number, repeated in turn; () is all classes in turn."""
    prompt: str = ""
    """For a text-to-image model: the text."""
    num: int = 4
    """How many images."""
    seed: int = 0
    """The seed."""


def stream_wish(pipeline: Pipeline, wish: Wish, sampling: Sampling) -> tuple[Recording, Iterator[int]]:
    """Return a recording, and an iterator that adds a step to it each time and yields its number.

    Raises:
        ConfigError: A label or a number that this model cannot use.
        ShortageError: So many images do not fit into memory.
    """
    if not 1 <= wish.num <= IMAGES_AT_ONCE:
        raise ConfigError(f"{wish.num} images: take 1 to {IMAGES_AT_ONCE}")
    if not SEEDS[0] <= wish.seed <= SEEDS[1]:
        raise ConfigError(f"seed {wish.seed} must have at most 18 digits")
    if len(wish.prompt) > MOST_PROMPT:
        raise ConfigError(f"the prompt has {len(wish.prompt):,} characters: take at most {MOST_PROMPT:,}")
    if takes_prompts(pipeline.model.config):
        pipeline = change_prompts(pipeline, [wish.prompt])
    check_batch(pipeline, wish.num, sampling.steps)
    ids = pipeline.cycle_labels(wish.num)
    if wish.labels:
        chosen = resolve_filled_labels(list(wish.labels), pipeline.classes, pipeline.empty_classes).to(pipeline.device)
        ids = chosen.repeat(wish.num)[: wish.num]
    recording = start_recording(pipeline, wish.num)
    watcher = Watcher(pipeline.model.mask_id)
    states = pipeline.stream_states(
        pipeline.make_canvas(wish.num), ids, seed=wish.seed, sampling=sampling, watch=watcher.watch
    )
    return recording, record(pipeline, recording, states, watcher)


def write_lines(name: str, pipeline: Pipeline, wish: Wish, settings: dict[str, Any]) -> tuple[str, str]:
    """Return the command line and the Python lines that generate the same images."""
    prompts = [wish.prompt] if takes_prompts(pipeline.model.config) else None
    flags = {"num": wish.num, "labels": list(wish.labels) or None, "prompts": prompts, "seed": wish.seed}
    command = write_command("sample", [name], flags | settings | {"gif": "decode.gif"})
    labels = [wish.labels[i % len(wish.labels)] for i in range(wish.num)] if wish.labels else None
    arguments = [[0] * wish.num] if prompts else ([labels] if labels else [])
    keywords = {"num": None if arguments else wish.num, "seed": wish.seed} | settings
    return command, write_python(name, "images = pipe", arguments, keywords, prompts=prompts)


def write_downloads(folder: Path, recording: Recording, name: str, wish: Wish, settings: dict[str, Any],
                    sampling: Sampling) -> tuple[str, str, str]:  # fmt: skip
    """Write the image, the animation and the settings, and return their paths."""
    picture, animation, text = folder / "samples.png", folder / "decode.gif", folder / "settings.json"
    write_picture(recording.frames[-1], picture)
    write_animation(recording.frames, animation)
    said = {"model": name, "labels": list(wish.labels), "prompt": wish.prompt, "num": wish.num, "seed": wish.seed}
    write_text(json.dumps(said | {"changed": settings, "sampling": to_json(sampling)}, indent=2), text)
    return str(picture), str(animation), str(text)
