"""Image models ready to use: generate, watch and inpaint. Tokenizer, network and sampler in one object."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Unpack

from unmask.data.holes import Cells, fill_smoothly, mask_tokens
from unmask.data.tokens import count_rows_at_once
from unmask.decoding.sampling import Sampling, resolve_priority
from unmask.decoding.settings import SamplingSettings
from unmask.errors import ConfigError, check_type, check_whole_numbers
from unmask.figures import images as figures
from unmask.method.guidance import Condition, Predict, guided
from unmask.method.models.protocol import Generator
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.rand import seeded
from unmask.method.sampling.decode import State
from unmask.method.self_conditioning import guided_with_memory
from unmask.pipelines.base import LoadedModel, describe_device, load_network, report_steps, take_last_tokens
from unmask.pipelines.labels import (
    Labels,
    check_label_range,
    list_filled_classes,
    resolve_filled_labels,
    resolve_labels,
)
from unmask.pipelines.pictures import check_pictures, to_mask, to_photo, to_pil
from unmask.pretrained.conditions import attach_prompts, check_guidance, check_prompts, detach_prompts
from unmask.pretrained.families import choose_tokenizer_dtype
from unmask.published.opening import open_model
from unmask.recipes.spec import ModelSpec
from unmask.runtime.devices import pick_device
from unmask.runtime.int8 import split_dtype
from unmask.runtime.kernels import choose_dtype
from unmask.runtime.progress import Progress
from unmask.storage.layout import MODEL, TOKENIZER
from unmask.storage.weights import hash_weights, write_weights
from unmask.tokenizers.base import Tokenizer, open_tokenizer, verify_tokenizer

Output = Literal["pil", "tensor", "tokens"]
"""What to return: PIL images, a tensor of images in [-1, 1], or token ids."""


class Pipeline(LoadedModel[ModelSpec]):
    """An image model ready to use: `pipe(["cat", "ship"], steps=8, seed=0)`.

    Every call takes settings as keywords, by the names of the command line (`SamplingSettings`): steps, order,
    schedule, temperature, guidance, ramp, noise, sampler, block, top_k, top_p, preset. Unset ones default to the model.

    Examples:
        >>> unmask.load("runs/demo").generate([3, 7], steps=4, order="halton").shape
        torch.Size([2, 1, 8, 8])
    """

    empty_classes: tuple[int, ...] = ()
    """Ids of classes without a training picture, which are not sampled."""

    def __init__(self, model: Generator, tokenizer: Tokenizer, sampling: Sampling, classes: tuple[str, ...] = ()):
        if (model.vocab_size, model.grid) != (tokenizer.vocab_size, tokenizer.grid):
            mine, other = (f"{one.vocab_size} tokens on {one.grid}" for one in (model, tokenizer))
            raise ConfigError(f"the model has {mine}, the tokenizer {other}: they were not made for each other")
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.device = next(model.parameters()).device
        self.num_classes, self.classes = model.config.num_classes, classes

    # -- load and save -------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        prompts: Sequence[str] = (),
        offline: bool = False,
        spec: ModelSpec | None = None,
    ) -> "Pipeline":
        """Load an image model, in bfloat16 where that is fast; but the tokenizer of a published model in float32.

        Args:
            name: A run, an export, a published model such as "besnier-256", or hf-hub:OWNER/NAME[@REVISION].
            device: "auto" (cuda, mps or cpu, whichever is there first), or the name of one.
            dtype: The type of all weights in memory; torch.int8, on a CPU, rounds the network's linear layers.
            prompts: For a text-to-image model: the texts to sample; text i is its class i.
            offline: Use what is in the cache, and ask no server.
            spec: What config.json holds, if it was read before; `name` is then the folder.

        Raises:
            CheckpointError: There is no such model, or a file is missing or damaged.
            ConfigError: config.json does not fit, or int8 does not work here.
        """
        folder = Path(name)
        if spec is None:
            opened = open_model(name, offline=offline)
            spec, folder = opened.require_image_spec(), opened.fetch()
        check_prompts(spec.model, prompts, f"the model {folder.name}")
        where = pick_device(device)
        dtype, int8 = split_dtype(dtype, where)
        kind = dtype or choose_dtype(where)
        verify_tokenizer(spec.tokenizer, folder / TOKENIZER, spec.tokenizer_sha256)
        build = partial(spec.model.build, spec.tokenizer.vocab_size, spec.tokenizer.grid)
        network = load_network(build, folder / MODEL, where, kind, int8=int8)
        exact = dtype or choose_tokenizer_dtype(spec.tokenizer, kind)
        tokenizer = open_tokenizer(spec.tokenizer, folder / TOKENIZER, device=where, dtype=exact, packed=True)
        model = attach_prompts(network, folder, prompts, spec.tokenizer.size)
        pipeline = cls(model, tokenizer, spec.sampling, tuple(prompts) or spec.classes)
        pipeline.spec, pipeline.folder, pipeline.empty_classes = spec.spec, folder, spec.empty_classes
        return pipeline

    def _write_weights(self, out: Path, spec: ModelSpec) -> ModelSpec:
        spec = replace(spec, sampling=self.sampling)
        out.mkdir(parents=True, exist_ok=True)
        write_weights(dict(self.model.named_parameters()), out / MODEL)
        if isinstance(self.tokenizer, nn.Module):
            write_weights(dict(self.tokenizer.named_parameters()), out / TOKENIZER)
            spec = replace(spec, tokenizer_sha256=hash_weights(self.tokenizer, self.tokenizer.config))
        return spec

    @property
    def _module(self) -> nn.Module:
        return detach_prompts(self.model)

    # -- generate, watch, inpaint --------------------------------------------------------------------------------------

    def __call__(
        self,
        labels: str | int | Labels = None,
        *,
        num: int | None = None,
        seed: int = 0,
        **settings: Unpack[SamplingSettings],
    ) -> list[Image.Image]:
        """Generate PIL images; see `generate`."""
        return self.generate(labels, num=num, seed=seed, output="pil", **settings)

    def generate(
        self,
        labels: str | int | Labels = None,
        *,
        num: int | None = None,
        seed: int = 0,
        output: Output = "tensor",
        batch: int = 256,
        progress: Progress | None = None,
        sampling: Sampling | None = None,
        **settings: Unpack[SamplingSettings],
    ) -> Any:
        """Generate images.

        Args:
            labels: Classes by name or number, one image each; None cycles through all classes.
            num: Without labels, how many images; 1 by default.
            seed: Image i of a seed is the same whatever the batch.
            output: "tensor" for [b, c, h, w] in [-1, 1], "pil" for a list of PIL images, "tokens" for ids [b, l].
            batch: Images sampled together, at most.
            progress: Called with ("steps", done, total).
            sampling: All settings at once, in place of the model's own.
            settings: See `SamplingSettings`; an unknown one is refused with the nearest name.

        Raises:
            ConfigError: A label, number or setting that this model cannot use.
        """
        check_whole_numbers({"num": num, "seed": seed, "batch": batch})
        if batch < 1:
            raise ConfigError(f"batch {batch}: at least 1")
        sampling = self._choose_sampling(sampling, settings, self.model.grid)
        ids, total = self._choose_labels(labels, num)
        batch = count_rows_at_once(batch, self.model.length, self.model.vocab_size, self.device)
        parts = []
        for first in range(0, total, batch):
            part = None if ids is None else ids[first : first + batch]
            canvas = self.make_canvas(min(batch, total - first))
            states = self.stream_states(canvas, part, seed=seed, first=first, sampling=sampling)
            if progress is not None:
                done = first // batch * sampling.steps
                states = report_steps(states, done, -(-total // batch) * sampling.steps, progress)
            parts.append(take_last_tokens(states) if output == "tokens" else self._decode_last(states))
        found = torch.cat(parts)
        return to_pil(found) if output == "pil" else found

    def stream(
        self,
        labels: str | int | Labels = None,
        *,
        num: int | None = None,
        seed: int = 0,
        **settings: Unpack[SamplingSettings],
    ) -> Iterator[Image.Image]:
        """Yield a PIL image per step, the all-masked canvas first; masked cells are hatched. See `generate`."""
        check_whole_numbers({"num": num, "seed": seed})
        sampling = self._choose_sampling(None, settings, self.model.grid)
        ids, total = self._choose_labels(labels, num)
        height, width = self.cells
        scale = None
        for state in self.stream_states(self.make_canvas(total), ids, seed=seed, sampling=sampling):
            tokens = state.tokens.cpu()
            masked = tokens == self.model.mask_id
            images = self.tokenizer.decode(tokens.masked_fill(masked, 0))
            scale = scale or figures.choose_scale(images)
            hatched = figures.overlay_mask(images, masked, (height, width))
            yield figures.draw_grid(hatched, min(10, total), scale=scale)

    def inpaint(
        self,
        photo: Image.Image,
        mask: Image.Image,
        label: str | int | None = None,
        *,
        variants: int = 1,
        seed: int = 0,
        feather: int = 0,
        cells: Cells | None = None,
        context: float = 0.5,
        **settings: Unpack[SamplingSettings],
    ) -> list[Image.Image]:
        """Fill the masked region of a photo of any size, `variants` times; every other pixel stays identical.

        Args:
            photo: The photo; transparency is put over white.
            mask: An image of the same size, white where to fill.
            label: The class to fill in; None for no class.
            variants: How many results.
            seed: Variant v of a seed is the same however many are asked for.
            feather: Pixels inside the border over which the result blends into its surroundings.
            cells: Which tokens to fill; by default those with any pixel in the region.
            context: What the model sees on each side of the region, in sizes of the region.
            settings: See `SamplingSettings`.

        Raises:
            ConfigError: Sizes that differ, an empty mask, or a setting that this model cannot use.
        """
        from unmask.pipelines.editing import edit_photo  # it builds on this class

        check_whole_numbers({"variants": variants, "seed": seed, "feather": feather})
        check_type("context", context, float)
        check_pictures({"photo": photo, "mask": mask})
        pixels = to_photo(photo)
        drawn = edit_photo(
            self,
            pixels,
            to_mask(mask, (photo.height, photo.width)),
            None if label is None else int(resolve_filled_labels(label, self.classes, self.empty_classes)[0]),
            seed=seed,
            sampling=self._choose_sampling(None, settings, self.model.grid),
            cells=cells or Cells(),
            feather=feather,
            variants=variants,
            context=context,
        )
        return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in drawn]

    # -- in tensors, for those who build on it -------------------------------------------------------------------------

    def stream_states(
        self,
        tokens: Int[Tensor, "b l"],
        labels: Condition,
        *,
        seed: int = 0,
        first: int = 0,
        sampling: Sampling | None = None,
        watch: Callable[[Predict], Predict] | None = None,
    ) -> Iterator[State]:
        """Decode step by step; row i has the noise of sample number `first + i`, whatever the batch.

        Without labels the model runs unconditionally, and without guidance. The sampler uses `watch(predict)`.
        """
        s = sampling or self.sampling
        if labels is not None:
            check_label_range(labels, len(tokens), self.num_classes, self.classes)
        return s.run(
            self.predict(labels, s) if watch is None else watch(self.predict(labels, s)),
            tokens,
            mask_id=self.model.mask_id,
            rand=seeded(seed, len(tokens), first=first, device=tokens.device),
            priority=resolve_priority(s.priority, self.model, labels),
        )

    def predict(self, labels: Condition, sampling: Sampling) -> Predict:
        """Return the guided model for these labels. A self-conditioned model needs a new one for each batch."""
        check_guidance(self.model.config, labelled=labels is not None, guided=not sampling.unguided)
        remembers = isinstance(self.model, MaskedTransformer) and self.model.config.self_condition
        make = guided_with_memory if remembers else guided
        return make(self.model, labels, scale=1.0 if labels is None else sampling.guidance)

    def make_canvas(self, num: int) -> Int[Tensor, "b l"]:
        """Return an all-masked canvas."""
        return torch.full((num, self.model.length), self.model.mask_id, device=self.device)

    def cycle_labels(self, num: int) -> Condition:
        """Return `num` class ids that cycle through all classes with pictures; None for an unconditional model."""
        ids = list_filled_classes(self.num_classes, self.empty_classes).to(self.device)
        return ids[torch.arange(num, device=self.device) % len(ids)] if self.num_classes else None

    def sample_range(
        self, first: int, stop: int, labels: Condition = None, *, seed: int = 0, sampling: Sampling | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Return samples number `first` to `stop` - 1 of the endless row that `generate(num=...)` begins.

        `labels` are their classes; by default all classes in turn.
        """
        if not 0 <= first < stop:
            raise ConfigError(f"samples {first} to {stop - 1}: give a first of at least 0, and a stop after it")
        if labels is None and (every := self.cycle_labels(stop)) is not None:
            labels = every[first:]
        batch = count_rows_at_once(stop - first, self.model.length, self.model.vocab_size, self.device)
        images = []
        for done in range(0, stop - first, batch):
            canvas = self.make_canvas(min(batch, stop - first - done))
            part = None if labels is None else labels[done : done + batch].to(self.device)
            states = self.stream_states(canvas, part, seed=seed, first=first + done, sampling=sampling)
            images.append(self._decode_last(states))
        return torch.cat(images)

    def collect_states(
        self, labels: Labels = None, *, num: int | None = None, seed: int = 0, sampling: Sampling | None = None
    ) -> list[State]:
        """Return every step of generating one batch, the all-masked canvas first."""
        ids, total = self._choose_labels(labels, num)
        return list(self.stream_states(self.make_canvas(total), ids, seed=seed, sampling=sampling))

    def fill(
        self,
        images: Float[Tensor, "b c h w"],
        mask: Bool[Tensor, "b h w"],
        labels: Labels = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Fill the masked region of images of the model's size; a token with any pixel in it is sampled.

        Pixels outside come back identical, whatever the tokenizer makes of them.
        """
        tokens, _ = self.mask_images(images, mask)
        ids = None if labels is None else resolve_labels(labels, self.classes).to(self.device)
        filled = self._decode_last(self.stream_states(tokens, ids, seed=seed, sampling=sampling)).to(images)
        return torch.where(mask[:, None], filled, images)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the tokens; ConfigError if tokens have no place in the image, as TiTok's."""
        if len(self.tokenizer.grid) != 2:
            raise ConfigError(
                f"the {self.tokenizer.grid[0]} tokens of an image have no place in it: to inpaint, or to show cells, "
                "take a model with a grid of tokens"
            )
        height, width = self.tokenizer.grid
        return height, width

    def mask_images(
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b h w"], cells: Cells | None = None
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """Return the tokens of images, masked where a pixel is, and that mask; the masked pixels are never seen."""
        height, width = self.cells
        masked = mask_tokens(mask, (height, width), cells or Cells())
        tokens = self.tokenizer.encode(fill_smoothly(images, mask))
        masked = masked.to(tokens.device)
        return tokens.masked_fill(masked, self.model.mask_id).to(self.device), masked

    # -- as text -------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, str]:
        """Return what the model is, in a few words each."""
        height, width = self.tokenizer.size
        size = sum(p.numel() for p in self.model.parameters())
        named = f" ({', '.join(self.classes[:10])}{', ...' if len(self.classes) > 10 else ''})" if self.classes else ""
        return {
            "model": "by hand" if self.folder is None else self.folder.name,
            "images": f"{height}x{width}",
            "tokens": f"{'x'.join(map(str, self.model.grid))} of {self.model.vocab_size:,}",
            "network": f"{type(detach_prompts(self.model)).__name__}, {size:,} parameters",
            "classes": f"{self.num_classes}{named}" if self.num_classes else "none",
            "sampling": f"{self.sampling.steps} steps, {type(self.sampling.priority).__name__}",
            "device": describe_device(self.device, self._module),
        }

    def _choose_labels(self, labels: str | int | Labels, num: int | None) -> tuple[Condition, int]:
        if labels is None:
            num = 1 if num is None else num
            ids = self.cycle_labels(num)
        else:
            ids = resolve_filled_labels(labels, self.classes, self.empty_classes).to(self.device)
            num = len(ids)
        if num < 1:
            raise ConfigError("num must be at least 1 (or pass labels)")
        return ids, num

    def _decode_last(self, states: Iterator[State]) -> Float[Tensor, "b c h w"]:
        return self.tokenizer.decode(take_last_tokens(states).cpu())
