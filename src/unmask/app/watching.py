"""Run a sampler and remember what it saw: each canvas, and how sure the model was of each token."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from unmask.errors import ShortageError
from unmask.figures import images as figures
from unmask.figures.maps import draw_heat_map
from unmask.method.guidance import Predict
from unmask.method.sampling.decode import State
from unmask.pipelines.image import Pipeline
from unmask.runtime.shortage import check_memory, format_bytes

CANVAS_WIDTH = 560
"""Pixels of a canvas on the page, about."""
LOGITS = 4
"""Copies of the logits in float32 that a step holds at once, about."""
MOST_FRAMES = 384 << 20
"""Bytes of the canvases of one recording: the page keeps them to step through."""


class Watcher:
    """A `predict` that remembers its last logits, so that it can say how sure the model was."""

    def __init__(self, mask_id: int):
        self.mask_id = mask_id
        self._logits: Float[Tensor, "b l k"] | None = None
        self._sure: Float[Tensor, "b l"] | None = None

    def watch(self, predict: Predict) -> Predict:
        """Return the same predictions, and remember the last ones."""

        def watched(tokens: Tensor, t: float) -> Tensor:
            logits = predict(tokens, t)
            self._logits = logits
            return logits

        return watched

    def measure(self, state: State) -> Float[Tensor, "b l"]:
        """Return for each token its probability when it was revealed, and for each masked one that of the likeliest.

        1 for tokens that were given, and 0 for masked ones before the first forward pass.
        """
        masked = state.tokens == self.mask_id
        if self._sure is None or self._logits is None:
            self._sure = (~masked).float()
            return self._sure
        logits, length = self._logits.float(), self._logits.shape[1]  # shorter than the canvas if it has blocks
        total, best = logits.logsumexp(-1), logits.amax(-1)
        tokens = state.tokens[:, :length].clamp(max=self.mask_id - 1)
        chosen = logits.gather(-1, tokens[..., None])[..., 0]
        new = torch.where(masked[:, :length], best, chosen) - total
        fresh = (state.revealed | masked)[:, :length]
        sure = self._sure.clone()
        sure[:, :length] = torch.where(fresh, new.exp(), sure[:, :length])
        self._sure = sure
        return sure


@dataclass(kw_only=True)
class Recording:
    """All steps of one sampling, as tensors on the CPU; what the page draws and steps through."""

    grid: tuple[int, int]
    """Rows and columns of the cells that the maps show."""
    has_cells: bool
    """Whether a token has a place in the image."""
    columns: int
    """Images per row."""
    tokens: list[Int[Tensor, "b l"]] = field(default_factory=list)
    """The canvas after each step."""
    masked: list[Bool[Tensor, "b l"]] = field(default_factory=list)
    """Which tokens are masked after each step."""
    sure: list[Float[Tensor, "b l"]] = field(default_factory=list)
    """How sure the model was, as `Watcher.measure` says."""
    revealed: list[Bool[Tensor, "b l"]] = field(default_factory=list)
    """The tokens that each step revealed."""
    frames: list[Image.Image] = field(default_factory=list)
    """The canvas after each step, as an image."""
    steps: list[int] = field(default_factory=list)
    """The number of each step."""

    def add(self, state: State, sure: Float[Tensor, "b l"], mask_id: int) -> None:
        """Append a step."""
        self.tokens.append(state.tokens.cpu())
        self.masked.append((state.tokens == mask_id).cpu())
        self.sure.append(sure.cpu())
        self.revealed.append(state.revealed.cpu())
        self.steps.append(state.step)

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        tensors = [tensor for steps in (self.tokens, self.masked, self.sure, self.revealed) for tensor in steps]
        pixels = sum(frame.width * frame.height * len(frame.getbands()) for frame in self.frames)
        return pixels + sum(tensor.nbytes for tensor in tensors)

    @property
    def order(self) -> Int[Tensor, "b l"]:
        """The number of the step that finally unmasked each token; 0 if it was given or is still masked."""
        when = torch.zeros_like(self.tokens[0])
        for step, revealed in zip(self.steps, self.revealed, strict=True):
            when[revealed] = step
        return when.masked_fill(self.masked[-1], 0)


def start_recording(pipeline: Pipeline, num: int) -> Recording:
    """Return an empty recording for `num` images of this model."""
    grid = pipeline.tokenizer.grid
    has_cells = len(grid) == 2
    if not has_cells:  # a row of tokens is folded, so that it can be seen
        length = pipeline.model.length
        rows = max(r for r in range(1, int(length**0.5) + 1) if length % r == 0)
        grid = (rows, length // rows)
    return Recording(grid=(grid[0], grid[1]), has_cells=has_cells, columns=choose_columns(num))


def record(pipeline: Pipeline, recording: Recording, states: Iterator[State], watcher: Watcher) -> Iterator[int]:
    """Add each state to the recording with its frame, and yield its number."""
    for number, state in enumerate(states):
        recording.add(state, watcher.measure(state), pipeline.model.mask_id)
        recording.frames.append(draw_canvas(pipeline, recording, number))
        yield number


def draw_canvas(pipeline: Pipeline, recording: Recording, number: int) -> Image.Image:
    """Draw the canvas after a step: known tokens as image, masked cells hatched."""
    masked = recording.masked[number]
    images = pipeline.tokenizer.decode(recording.tokens[number].masked_fill(masked, 0))
    if recording.has_cells:
        images = figures.overlay_mask(images, masked, recording.grid)
    return figures.draw_grid(images, recording.columns, scale=choose_page_scale(images, recording.columns))


def choose_page_scale(images: Float[Tensor, "b c h w"], columns: int) -> int:
    """Return the whole factor by which a grid of images fills the page best."""
    return max(1, CANVAS_WIDTH // (columns * images.shape[-1]))


def draw_maps(recording: Recording, number: int) -> tuple[Image.Image, Image.Image]:
    """Draw how sure the model was after a step, and when each token was unmasked until then."""
    scale = max(2, CANVAS_WIDTH // (recording.columns * (recording.grid[1] + 1)))
    sure = draw_heat_map(recording.sure[number], recording.grid, recording.columns, scale=scale)
    order = recording.order
    so_far = torch.where(order <= recording.steps[number], order, 0)
    last = max(1, recording.steps[-1])
    return sure, figures.draw_unmasking_order(so_far, recording.grid, last, recording.columns, scale=scale)


def check_batch(pipeline: Pipeline, num: int, steps: int = 1) -> None:
    """Raise ShortageError if so many images do not fit into memory: their logits, or the canvases of all steps."""
    logits = num * pipeline.model.length * pipeline.model.vocab_size
    check_memory(LOGITS * 4 * logits, pipeline.device, "take fewer images at once")
    height, width = pipeline.tokenizer.size
    scale = max(1, CANVAS_WIDTH // (choose_columns(num) * width))
    frames = (steps + 1) * num * height * width * scale**2 * 3
    if frames > MOST_FRAMES:
        raise ShortageError(
            f"{steps} steps of {num} images take {format_bytes(frames)}, and the page keeps "
            f"{format_bytes(MOST_FRAMES)}: take fewer steps or images"
        )


def choose_columns(num: int) -> int:
    """Return how many of `num` images stand in a row."""
    return min(num, max(1, round(num**0.5 + 0.2)))
