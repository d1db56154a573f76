"""Tokenizer + model + sampler in one object: generate images, or repair holes in given ones."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unmask.data.holes import blank, token_mask
from unmask.data.tokens import rows_at_once
from unmask.decoding.sampling import Sampling, resolve_priority
from unmask.errors import CheckpointError, ConfigError
from unmask.method.guidance import Condition, Predict, guided, remembering
from unmask.method.models.protocol import Generator
from unmask.method.models.transformer import MaskedTransformer
from unmask.method.rand import seeded
from unmask.method.sampling.decode import State
from unmask.pipelines.labels import Labels, class_ids
from unmask.pretrained.amused import Amused, UVit2D
from unmask.pretrained.clip import read_clip, write_clip
from unmask.pretrained.google import check_null
from unmask.pretrained.prompts import Prompted, load_text_reader
from unmask.published.card import model_card
from unmask.published.hub import HUB, upload
from unmask.recipes.reading import read_recipe
from unmask.recipes.schema import Recipe
from unmask.runtime.kernels import fast_dtype
from unmask.runtime.packed import pack, unpack
from unmask.runtime.progress import Progress
from unmask.storage.config import to_json, write_json
from unmask.storage.layout import TOKENIZER
from unmask.storage.weights import hash_weights, load_weights, skip_initial_weights, write_weights
from unmask.tokenizers.base import Tokenizer, open_tokenizer, verify_tokenizer


class Pipeline:
    """A trained model with its tokenizer; `sampling` holds the defaults that every call may replace."""

    def __init__(self, model: Generator, tokenizer: Tokenizer, sampling: Sampling, classes: tuple[str, ...] = ()):
        if (model.vocab_size, model.grid) != (tokenizer.vocab_size, tokenizer.grid):
            raise ConfigError(
                f"the model has {model.vocab_size} tokens on {model.grid}, the tokenizer {tokenizer.vocab_size} on "
                f"{tokenizer.grid}: they were not made for each other"
            )
        self.model, self.tokenizer, self.sampling = model, tokenizer, sampling
        self.device = next(model.parameters()).device
        self.num_classes, self.classes = model.config.num_classes, classes
        self.recipe: Recipe | None = None
        self.folder: Path | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str | None = None,
        dtype: torch.dtype | None = None,
        prompts: Sequence[str] = (),
    ) -> "Pipeline":
        """Load `config.json` and `model.safetensors` from a run or an export, in bfloat16 where that is fast.

        `prompts`: the texts that a model of texts is to draw; text i is its class i, and no text its "no class".
        Raises CheckpointError or ConfigError, naming what is missing or does not fit.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: no config.json there; give a run, an export or one of unmask models")
        recipe = read_recipe(folder / "config.json", Recipe)
        if isinstance(recipe.model, Amused) != bool(prompts):
            needed = "draws from texts: give prompts" if not prompts else "knows classes and no texts: give labels"
            raise ConfigError(f"the model {folder.name} {needed}")
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = dtype or fast_dtype(where)
        verify_tokenizer(recipe.tokenizer, folder / TOKENIZER, recipe.tokenizer_sha256)
        with skip_initial_weights(kind):
            model: nn.Module = recipe.model.build(recipe.tokenizer.vocab_size, recipe.tokenizer.grid)
        model = pack(model.to(where, kind).eval())
        load_weights(model, folder / "model.safetensors")
        tokenizer = open_tokenizer(recipe.tokenizer, folder / TOKENIZER, device=where, dtype=kind, packed=True)
        network: Generator = model  # type: ignore[assignment]
        if isinstance(model, UVit2D):
            reader = load_text_reader(folder)
            texts, empty = (reader(list(x), recipe.tokenizer.size) for x in (prompts, [""]))
            network = Prompted(model, texts, empty)
        made = cls(network, tokenizer, recipe.sampling, tuple(prompts) or recipe.classes)
        made.recipe, made.folder = recipe, folder
        return made

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> None:
        """Write what `from_pretrained` reads, in the type that the weights have here, and a model card.

        ConfigError for a pipeline that was not loaded, as its recipe is not known; DiskError.
        """
        self._save(Path(folder), licence, "FOLDER")

    def _save(self, out: Path, licence: str | None, name: str) -> None:
        if self.recipe is None or self.folder is None:
            raise ConfigError("this pipeline was put together by hand: only one that was loaded can be saved")
        recipe = replace(self.recipe, sampling=self.sampling)
        card = model_card(recipe, self.folder, licence, name)
        texts = read_clip(self.folder) if isinstance(recipe.model, Amused) else None  # before anything is written
        out.mkdir(parents=True, exist_ok=True)
        write_weights(dict(self.model.named_parameters()), out / "model.safetensors")
        if isinstance(self.tokenizer, nn.Module):
            write_weights(dict(self.tokenizer.named_parameters()), out / TOKENIZER)
            recipe = replace(recipe, tokenizer_sha256=hash_weights(self.tokenizer, self.tokenizer.config))
        if texts is not None:
            write_clip(texts, out)
        (out / "README.md").write_text(card, encoding="utf-8")
        write_json(out / "config.json", to_json(recipe))

    def push_to_hub(
        self, repo: str, *, licence: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Save, and upload to a model repository of the Hugging Face hub, which is made if needed; gives its address.

        By the name hf-hub:OWNER/NAME it can be loaded from there. ConfigError without huggingface_hub, or where the hub
        refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), licence, f"{HUB}{repo}")
            return upload(Path(folder), repo, private=private, token=token)

    def compile(self) -> None:
        """Let torch.compile make the network faster, from its next call on; that one then takes a minute or more.

        ConfigError on a CPU without a C++ compiler.
        """
        if self.device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
            raise ConfigError("to compile for a CPU takes a C++ compiler: install g++, or leave it out")
        network = self.model.network if isinstance(self.model, Prompted) else self.model
        assert isinstance(network, nn.Module)
        unpack(network).compile()

    def labels(self, num: int) -> Condition:
        """`num` class ids that run through all classes in turn; None for an unconditional model."""
        return torch.arange(num, device=self.device) % self.num_classes if self.num_classes else None

    def states(
        self,
        tokens: Int[Tensor, "b l"],
        labels: Condition,
        *,
        seed: int = 0,
        first: int = 0,
        sampling: Sampling | None = None,
    ) -> Iterator[State]:
        """Decode step by step; row i draws the noise of sample number `first + i`, whatever the batch.

        Without labels the model runs unconditionally, and there is nothing to guide towards.
        """
        s = sampling or self.sampling
        if labels is not None:
            self.check(labels, len(tokens))
        return s.run(
            self.predict(labels, s),
            tokens,
            mask_id=self.model.mask_id,
            rand=seeded(seed, len(tokens), first=first, device=tokens.device),
            priority=resolve_priority(s.priority, self.model, labels),
        )

    def predict(self, labels: Condition, sampling: Sampling) -> Predict:
        """The guided model for these labels; made anew for each batch, as a self-conditioned model remembers it."""
        check_null(self.model.config, labelled=labels is not None, guided=not sampling.unguided)
        remembers = isinstance(self.model, MaskedTransformer) and self.model.config.self_condition
        make = remembering if remembers else guided
        return make(self.model, labels, scale=1.0 if labels is None else sampling.scale)

    def blank(self, num: int) -> Int[Tensor, "b l"]:
        """A canvas with nothing known."""
        return torch.full((num, self.model.length), self.model.mask_id, device=self.device)

    def generate(
        self,
        labels: Labels = None,
        *,
        num: int = 0,
        seed: int = 0,
        sampling: Sampling | None = None,
        batch: int = 256,
        progress: Progress | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """One image in [-1, 1] per label, or `num` that run through the classes; at most `batch` are drawn together."""
        labels, total = self._asked(labels, num)
        if batch < 1:
            raise ConfigError(f"{batch} images at once: at least 1")
        batch = rows_at_once(batch, self.model.length, self.model.vocab_size, self.device)
        steps, images = (sampling or self.sampling).steps, []
        for first in range(0, total, batch):
            part = None if labels is None else labels[first : first + batch]
            canvas = self.blank(min(batch, total - first))
            states = self.states(canvas, part, seed=seed, first=first, sampling=sampling)
            if progress is not None:
                states = told(states, first // batch * steps, -(-total // batch) * steps, progress)
            images.append(self._finish(states))
        return torch.cat(images)

    def samples(
        self, first: int, stop: int, *, seed: int = 0, sampling: Sampling | None = None
    ) -> Float[Tensor, "b c h w"]:
        """Samples number `first` to `stop` - 1 of the endless row that `generate(num=...)` begins; at least one."""
        if not 0 <= first < stop:
            raise ConfigError(f"samples {first} to {stop - 1}: give a first of at least 0, and a stop after it")
        batch = rows_at_once(stop - first, self.model.length, self.model.vocab_size, self.device)
        images = []
        for part in torch.arange(first, stop, device=self.device).split(batch):
            labels = part % self.num_classes if self.num_classes else None
            canvas = self.blank(len(part))
            images.append(self._finish(self.states(canvas, labels, seed=seed, first=int(part[0]), sampling=sampling)))
        return torch.cat(images)

    def history(
        self, labels: Labels = None, *, num: int = 0, seed: int = 0, sampling: Sampling | None = None
    ) -> list[State]:
        """Every step of generating one batch, the blank canvas first. ConfigError for a batch of none."""
        labels, total = self._asked(labels, num)
        return list(self.states(self.blank(total), labels, seed=seed, sampling=sampling))

    def _asked(self, labels: Labels, num: int) -> tuple[Condition, int]:
        """Class ids, which run through all classes where none were given, and how many images that is."""
        labels = self.labels(num) if labels is None else class_ids(labels, self.classes).to(self.device)
        total = num if labels is None else len(labels)
        if total < 1:
            raise ConfigError(f"{total} images asked for: give labels, or num of at least 1")
        return labels, total

    def inpaint(
        self,
        images: Float[Tensor, "b c h w"],
        hole: Bool[Tensor, "b h w"],
        labels: Labels = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """Fill the hole of each image; a token with any pixel in the hole is drawn anew.

        Pixels outside the hole come back identical, whatever the tokenizer would have made of them.
        """
        tokens, _ = self.with_hole(images, hole)
        labels = None if labels is None else class_ids(labels, self.classes).to(self.device)
        filled = self._finish(self.states(tokens, labels, seed=seed, sampling=sampling)).to(images)
        return torch.where(hole[:, None], filled, images)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the tokens; ConfigError where they are no places of the picture, as TiTok's are none."""
        if len(self.tokenizer.grid) != 2:
            raise ConfigError(
                f"this tokenizer makes a row of {self.tokenizer.grid[0]} tokens of the whole picture, and none is a "
                "place in it, so that no hole can be filled and no cell shown: take a model with a grid"
            )
        height, width = self.tokenizer.grid
        return height, width

    def with_hole(
        self, images: Float[Tensor, "b c h w"], hole: Bool[Tensor, "b h w"]
    ) -> tuple[Int[Tensor, "b l"], Bool[Tensor, "b l"]]:
        """The images' tokens with those masked that have a pixel in the hole, and that mask; the hole is not seen."""
        height, width = self.cells
        masked = token_mask(hole, (height, width))
        tokens = self.tokenizer.encode(blank(images, hole)).masked_fill(masked, self.model.mask_id)
        return tokens.to(self.device), masked

    def check(self, labels: Int[Tensor, "n"], num: int) -> None:
        if len(labels) != num:
            raise ConfigError(f"{len(labels)} labels for {num} images: give one each")
        if not self.num_classes:
            raise ConfigError("this model is unconditional: leave the labels out")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            wrong = low if low < 0 else high
            raise ConfigError(f"no class {wrong}: this model's labels go from 0 to {self.num_classes - 1}")

    def _finish(self, states: Iterator[State]) -> Float[Tensor, "b c h w"]:
        for state in states:
            tokens = state.tokens
        return self.tokenizer.decode(tokens.cpu())


def told(states: Iterator[State], before: int, total: int, progress: Progress) -> Iterator[State]:
    """The same states, each reported as so many steps of all."""
    for state in states:
        progress("steps", before + state.step, total)
        yield state
