"""Inpaint images of the model's own size (`inpaint_images`) or photos of any size (`edit_photo`).

The content under a mask never takes part. A smooth continuation of its surroundings replaces it before the tokenizer
sees the image, since the tokenizer's receptive field is wider than a token. Pixels outside the mask stay identical.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from unmask.data.holes import ANY, Cells, paste
from unmask.data.masks import MAX_PHOTO, check_mask
from unmask.data.tokens import count_rows_at_once
from unmask.decoding.sampling import Parallel, Sampling, resolve_priority
from unmask.errors import ConfigError
from unmask.method.guidance import Condition, Predict
from unmask.method.rand import Rand
from unmask.method.sampling.decode import State
from unmask.pipelines.base import take_last_tokens
from unmask.pipelines.image import Pipeline
from unmask.pipelines.labels import check_label_range

VARIANT = 2**32  # variant v of image i draws the noise of sample i + v VARIANT, however many of either are asked for
LEAST = 0.25  # a window inside the photo must leave this share to see around the hole's box, or it grows beyond it


# -- at the model's own size -------------------------------------------------------------------------------------------


@torch.no_grad()
def stream_inpainting(
    pipeline: Pipeline,
    images: Float[Tensor, "b c h w"],
    hole: Bool[Tensor, "b h w"],
    labels: Condition = None,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    cells: Cells = ANY,
    variants: int = 1,
    stop: int | None = None,
    first: int = 0,
    watch: Callable[[Predict], Predict] | None = None,
) -> Iterator[State]:
    """Yield every step of inpainting, the masked canvas first; row i * variants + v is variant v of image i.

    `stop` ends early: forward pass number `stop` fills all tokens that are still masked. Until then noise, guidance and
    ratios are those of the full run. Image i has the noise of image number `first + i`. The sampler uses
    `watch(predict)`.
    """
    s = sampling or pipeline.sampling
    stop = s.steps if stop is None else stop
    _check(images, hole, s, variants, stop)
    labels = None if labels is None else torch.as_tensor(labels).to(pipeline.device)
    if labels is not None:
        check_label_range(labels, len(images), pipeline.num_classes, pipeline.classes)
        labels = labels.repeat_interleave(variants)
    tokens, _ = pipeline.mask_images(images, hole, cells)
    plain, order = pipeline.predict(labels, s), resolve_priority(s.priority, pipeline.model, labels)
    predict = plain if watch is None else watch(plain)

    tokens = tokens.repeat_interleave(variants, 0)
    rows = torch.arange(first, first + len(images))[:, None] + torch.arange(variants) * VARIANT
    rand = Rand(seed, rows.flatten().to(pipeline.device), rows.numel())
    mask_id, full = pipeline.model.mask_id, s.ratios(pipeline.model.length)
    if stop >= len(full):
        return s.run(predict, tokens, mask_id=mask_id, rand=rand, priority=order)

    bound = s.bind_order(order, s.steps)

    # `decode` counts time in the steps it is given; ours is that of the full run.
    def time(t: float) -> float:
        return round(t * stop) / len(full)

    def priority(logits: Tensor, sample: Tensor, *, masked: Tensor, t: float, rand: Rand) -> Tensor:
        return bound(logits, sample, masked=masked, t=time(t), rand=rand)

    varies = s.annealing is not None or isinstance(s.temperature, tuple)
    warmth = s.list_temperatures(s.steps)[:stop] if varies else s.temperature
    cut = replace(s, steps=stop, temperature=warmth, annealing=None)
    plan = [*full[: stop - 1], 0.0]
    return cut.run(
        lambda canvas, t: predict(canvas, time(t)), tokens, mask_id=mask_id, rand=rand, priority=priority, plan=plan
    )


def _check(
    images: Float[Tensor, "b c h w"], hole: Bool[Tensor, "_ _ _"], sampling: Sampling, variants: int, stop: int
) -> None:
    if hole.shape != (len(images), *images.shape[2:]):
        raise ConfigError(
            f"holes are {tuple(hole.shape)}, images {tuple(images.shape)}: give one mask of the same size"
        )
    if variants < 1 or not 1 <= stop <= sampling.steps:
        raise ConfigError(f"variants {variants} must be at least 1, and stop {stop} lie in 1..{sampling.steps} steps")
    if stop < sampling.steps and not (isinstance(sampling.sampler, Parallel) and not sampling.block):
        raise ConfigError(f"stop {stop}: only the parallel sampler without blocks can stop early")


@torch.no_grad()
def inpaint_images(
    pipeline: Pipeline,
    images: Float[Tensor, "b c h w"],
    hole: Bool[Tensor, "b h w"],
    labels: Condition = None,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    cells: Cells = ANY,
    feather: int = 0,
    variants: int = 1,
    stop: int | None = None,
    first: int = 0,
    batch: int = 256,
) -> Float[Tensor, "b v c h w"]:
    """Inpaint each image `variants` times; see `stream_inpainting` and `paste` for the arguments.

    The result does not depend on `batch`. Image i alone, with `first` = i, gives the same as among others.
    """
    if feather < 0 or min(batch, len(images)) < 1:
        raise ConfigError(f"feather {feather} must be at least 0, batch {batch} and images {len(images)} at least 1")
    if labels is not None:
        labels = torch.as_tensor(labels).to(pipeline.device)
        check_label_range(labels, len(images), pipeline.num_classes, pipeline.classes)
    model = pipeline.model
    size = max(1, count_rows_at_once(batch, model.length, model.vocab_size, pipeline.device) // max(1, variants))
    done = []
    for at in range(0, len(images), size):
        part = slice(at, at + size)
        shown, holes, classes = images[part], hole[part], None if labels is None else labels[part]
        for state in stream_inpainting(
            pipeline,
            shown,
            holes,
            classes,
            seed=seed,
            sampling=sampling,
            cells=cells,
            variants=variants,
            stop=stop,
            first=first + at,
        ):
            tokens = state.tokens
        filled = pipeline.tokenizer.decode(tokens.cpu()).to(images).unflatten(0, (-1, variants))
        done.append(paste(shown, filled, holes, feather))
    return torch.cat(done)


# -- photos of any size ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a photo, in pixels. Beyond the photo its edge pixels repeat."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, photo: Shaped[Tensor, "*c H W"]) -> Shaped[Tensor, "*c h w"]:
        """Return the photo's pixels in the window, with edge pixels repeated beyond the photo."""
        y = torch.arange(self.top, self.top + self.height).clamp(0, photo.shape[-2] - 1)
        x = torch.arange(self.left, self.left + self.width).clamp(0, photo.shape[-1] - 1)
        return photo.index_select(-2, y).index_select(-1, x)


def choose_window(hole: Bool[Tensor, "H W"], size: tuple[int, int], context: float = 0.5) -> Window:
    """Return a window around the mask, of the proportions of `size` (h, w), with `context` of the mask's box per side.

    The window is at least `size`. It lies inside the photo if that leaves enough to see. Otherwise it reaches beyond
    the photo, but is never larger than needed to cover it.
    """
    if not 0 <= context < float("inf"):
        raise ConfigError(f"context {context}: must be finite and at least 0, in sizes of the hole")
    lines = [hole.any(1).nonzero(), hole.any(0).nonzero()]
    spans = [(int(i.min()), int(i.max()) + 1) for i in lines]
    box = [high - low for low, high in spans]
    wanted = max(Fraction(n) / s for n, s in zip(box, size, strict=True))
    inside = min(Fraction(n) / s for n, s in zip(hole.shape, size, strict=True))
    cover = max(Fraction(n) / s for n, s in zip(hole.shape, size, strict=True))
    scale = min(cover, max(Fraction(1), wanted * (1 + 2 * Fraction(context))))
    sees = box[0] * box[1] <= (1 - LEAST) * inside**2 * size[0] * size[1]
    if scale > inside and wanted <= inside and (sees or inside == cover):
        scale = inside
    extent = [ceil(scale * s) for s in size]
    corner = []
    for n, total, (low, high) in zip(extent, hole.shape, spans, strict=True):
        middle = (low + high - n) // 2
        corner.append(min(max(middle, 0), total - n) if n <= total else (total - n) // 2)
    return Window(top=corner[0], left=corner[1], height=extent[0], width=extent[1])


def view_window(
    pipeline: Pipeline, photo: UInt8[Tensor, "c H W"], hole: Bool[Tensor, "H W"], window: Window
) -> tuple[Float[Tensor, "1 _ h w"], Bool[Tensor, "1 h w"]]:
    """Return what the model sees: the window at the model's size, and which of its pixels touch the mask.

    Resizing averages visible pixels only, so that no masked content spreads over the border.
    """
    channels, size = pipeline.tokenizer.channels, pipeline.tokenizer.size
    hidden = window.cut(hole)[None, None]
    seen = (~hidden).float()
    colours = convert_channels(window.cut(photo).float()[None] / 127.5 - 1, channels)
    scaled = [F.interpolate(x, size, mode="bilinear", antialias=True) for x in (colours * seen, seen)]
    images = torch.where(scaled[1] > 1e-6, scaled[0] / scaled[1].clamp(min=1e-6), 0.0).clamp(-1, 1)
    return images, F.adaptive_max_pool2d(hidden.float(), size)[:, 0] > 0


def convert_channels(images: Float[Tensor, "b c h w"], channels: int) -> Float[Tensor, "b _ h w"]:
    """Repeat grey into colour, or weight colour into grey (ITU-R BT.601)."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


@torch.no_grad()
def edit_photo(
    pipeline: Pipeline,
    photo: UInt8[Tensor, "c H W"],
    hole: Bool[Tensor, "H W"],
    label: int | None = None,
    *,
    seed: int = 0,
    sampling: Sampling | None = None,
    cells: Cells = ANY,
    feather: int = 0,
    variants: int = 1,
    stop: int | None = None,
    context: float = 0.5,
) -> UInt8[Tensor, "v c H W"]:
    """Inpaint the masked region of a photo `variants` times; every other byte stays.

    The model fills the window around the mask, and only the masked pixels are pasted back. `feather` counts pixels of
    the photo. A model of grey images sees the photo's brightness and fills in grey.
    """
    if feather < 0:
        raise ConfigError(f"feather {feather}: must be at least 0")
    view = view_photo(pipeline, photo, hole, context)
    labels = None if label is None else torch.tensor([label])
    states = stream_inpainting(
        pipeline, view.images, view.hidden, labels, seed=seed, sampling=sampling, cells=cells, variants=variants,
        stop=stop,
    )  # fmt: skip
    return fill_photo(pipeline, photo, hole, view, take_last_tokens(states), feather)


@dataclass(frozen=True, kw_only=True)
class PhotoView:
    """What the model sees of a photo to edit: one image of its own size."""

    window: Window
    """Where in the photo it is."""
    images: Float[Tensor, "1 c h w"]
    """The window at the model's size."""
    hidden: Bool[Tensor, "1 h w"]
    """Which of its pixels touch the mask."""


def view_photo(
    pipeline: Pipeline, photo: UInt8[Tensor, "c H W"], hole: Bool[Tensor, "H W"], context: float = 0.5
) -> PhotoView:
    """Return the window around a mask as the model sees it; ConfigError for another size, or nothing to fill."""
    if hole.shape != photo.shape[1:] or len(photo) not in (1, 3):
        found = f"the photo is {tuple(photo.shape)}, the hole {tuple(hole.shape)}"
        raise ConfigError(f"{found}: needs 1 or 3 channels, and one mask of the same size")
    check_mask(hole)
    window = choose_window(hole, pipeline.tokenizer.size, context)
    images, hidden = view_window(pipeline, photo, hole, window)
    return PhotoView(window=window, images=images, hidden=hidden)


@torch.no_grad()
def fill_photo(
    pipeline: Pipeline,
    photo: UInt8[Tensor, "c H W"],
    hole: Bool[Tensor, "H W"],
    view: PhotoView,
    tokens: Int[Tensor, "v l"],
    feather: int = 0,
) -> UInt8[Tensor, "v c H W"]:
    """Return the photo with each row of tokens, which inpainted its view, pasted into the masked region."""
    drawn = pipeline.tokenizer.decode(tokens.cpu()).to(view.images)
    pasted = paste(view.images, drawn[None], view.hidden)[0]
    # One by one: a large photo as floats is many times its bytes.
    return torch.stack([_put_back(photo, hole, view.window, filled, feather) for filled in pasted])


def _put_back(
    photo: UInt8[Tensor, "c H W"],
    hole: Bool[Tensor, "H W"],
    window: Window,
    filled: Float[Tensor, "_ _ _"],
    feather: int,
) -> UInt8[Tensor, "c H W"]:
    """Paste the filled window, resized, into the masked region of the photo."""
    size, hidden = (window.height, window.width), window.cut(hole)
    large = filled[None]
    if large.shape[2:] != size:
        large = F.interpolate(large, size, mode="bicubic", antialias=True).clamp(-1, 1)
    large = convert_channels(large, len(photo))
    if feather:
        around = window.cut(photo).float()[None] / 127.5 - 1
        large = paste(around, large[:, None], hidden[None], feather)[:, 0]
    levels = ((large[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    y, x = max(window.top, 0), max(window.left, 0)
    levels = levels[:, y - window.top :, x - window.left :]
    result = photo.clone()
    part = result[:, y : y + levels.shape[1], x : x + levels.shape[2]]
    height, width = part.shape[1:]
    part.copy_(torch.where(hole[y : y + height, x : x + width], levels[:, :height, :width], part))
    return result


def extend_canvas(
    photo: UInt8[Tensor, "c H W"], left: int, top: int, right: int, bottom: int
) -> tuple[UInt8[Tensor, "c _ _"], Bool[Tensor, "_ _"]]:
    """Return the photo on a larger canvas, and the new area as the mask: outpainting is inpainting around the photo."""
    sides = (left, right, top, bottom)
    height, width = photo.shape[1] + top + bottom, photo.shape[2] + left + right
    if min(sides) < 0 or not any(sides) or height * width > MAX_PHOTO:
        raise ConfigError(
            f"left {left}, top {top}, right {right}, bottom {bottom} pixels make {width}x{height}: each must be at "
            f"least 0, one of them more, and the whole at most {MAX_PHOTO} pixels"
        )
    return F.pad(photo, sides, value=128), F.pad(torch.zeros(photo.shape[1:], dtype=torch.bool), sides, value=True)
