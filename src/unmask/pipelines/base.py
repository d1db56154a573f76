"""What image and text pipelines share: saving, uploading, and saying what they are."""

import html
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from unmask.decoding.sampling import Sampling
from unmask.decoding.settings import change_sampling
from unmask.errors import ConfigError, NonFiniteError
from unmask.method.sampling.decode import State
from unmask.pipelines.exporting import EXPORT_FILES, check_export
from unmask.pretrained.conditions import read_extras, write_extras
from unmask.published.card import write_model_card
from unmask.published.hub import HUB, upload_model
from unmask.recipes.reading import write_config
from unmask.recipes.spec import ModelSpec, TextModelSpec, collect_presets
from unmask.runtime.int8 import has_rounded_layers, round_layers
from unmask.runtime.kernels import check_compiler
from unmask.runtime.packed import pack, to_dense, unpack
from unmask.runtime.progress import Progress
from unmask.storage.files import write_text
from unmask.storage.layout import MODEL, README, TOKENIZER
from unmask.storage.lock import lock
from unmask.storage.manifest import begin_files, record_files
from unmask.storage.weights import load_weights, skip_initial_weights

Spec = TypeVar("Spec", ModelSpec, TextModelSpec)


class LoadedModel(ABC, Generic[Spec]):
    """A model with its sampling; `spec` and `folder` are None if it was put together by hand."""

    sampling: Sampling
    spec: Spec | None = None
    folder: Path | None = None

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None, overwrite: bool = False) -> None:
        """Write what `from_pretrained` reads, in the type that the weights have here, and a model card.

        No path, host or user name is written.

        Args:
            folder: A new folder, or one that was saved like this before.
            licence: The licence for the model card.
            overwrite: Replace files of these names that unmask did not make. A run is never replaced.

        Raises:
            ConfigError: The pipeline was put together by hand or is in int8, or files in `folder` would be replaced.
            CheckpointError: `folder` is a run, or another process writes there.
            NonFiniteError: A weight is NaN or infinite. Nothing is written.
            DiskError: The folder cannot be written.
        """
        check_export(Path(folder), self.folder, overwrite=overwrite)
        self._save(Path(folder), licence, "FOLDER")

    def push_to_hub(
        self, repo: str, *, licence: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload to a model repository of the Hugging Face Hub, created if needed, and return its address.

        It loads by the name hf-hub:OWNER/NAME. ConfigError without huggingface_hub, or if the Hub refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder), licence, f"{HUB}{repo}")
            return upload_model(Path(folder), repo, private=private, token=token)

    def _save(self, out: Path, licence: str | None, name: str) -> None:
        if self.spec is None or self.folder is None:
            raise ConfigError("this pipeline was put together by hand: only one that was loaded can be saved")
        if has_rounded_layers(self._module):
            raise ConfigError(
                f"the weights of {self.folder.name} are rounded to int8 here and cannot be saved: load it without "
                "dtype int8, then save it"
            )
        check_weights_finite(self._list_networks())
        extras = None if isinstance(self.spec, TextModelSpec) else read_extras(self.spec.model, self.folder)
        with lock(out, keep=False):
            begin_files(out, EXPORT_FILES)
            spec = self._write_weights(out, self.spec)
            write_extras(extras, out)
            card = write_model_card(spec, name=name, licence=licence, measured=self.folder)
            write_text(card, out / README)
            write_config(spec, out)
            record_files(out, [name for name in EXPORT_FILES if (out / name).is_file()])

    def _list_networks(self) -> dict[str, nn.Module]:
        """Return the networks that are saved, by the names of their files."""
        tokenizer = getattr(self, "tokenizer", None)
        return {MODEL: self._module} | ({TOKENIZER: tokenizer} if isinstance(tokenizer, nn.Module) else {})

    @abstractmethod
    def _write_weights(self, out: Path, spec: Spec) -> Spec:
        """Create `out`, write all weights into it, and return the spec that describes them."""

    @property
    @abstractmethod
    def _module(self) -> nn.Module:
        """The network alone."""

    def compile(self) -> None:
        """Compile the network with torch.compile: the next call takes a minute or more, later ones are faster.

        ConfigError on a CPU without a C++ compiler, and in int8.
        """
        if has_rounded_layers(self._module):
            raise ConfigError("layers in int8 cannot be compiled: load the model without dtype int8, or do not compile")
        check_compiler(next(self._module.parameters()).device)
        unpack(self._module).compile()

    def _choose_sampling(self, sampling: Sampling | None, settings: Any, grid: tuple[int, ...]) -> Sampling:
        return change_sampling(sampling or self.sampling, grid, settings, collect_presets(self.spec))

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Return what the model is, in a few words each."""

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}: {value}" for name, value in self.describe().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.describe().items()
        )
        return f"<table><caption>unmask {type(self).__name__}</caption>{rows}</table>"


def check_weights_finite(networks: Mapping[str, nn.Module]) -> None:
    """Raise NonFiniteError if a weight is NaN or infinite; `networks` are named by their files."""
    for file, network in networks.items():
        for name, parameter in network.named_parameters():
            if not torch.isfinite(to_dense(parameter)).all():
                raise NonFiniteError(
                    f"{name} of {file} holds NaN or infinity, so nothing was written: train again from an earlier "
                    "checkpoint, with a lower learning rate"
                )


def load_network(
    build: Callable[[], nn.Module], weights: Path, device: torch.device, dtype: torch.dtype, *, int8: bool = False
) -> nn.Module:
    """Build a network and read its weights, laid out for the fastest inference on this device.

    Args:
        build: Returns the network.
        weights: The file of its weights.
        device: Where it computes.
        dtype: The type of the weights in memory.
        int8: Round the linear layers to 8-bit integers.
    """
    with skip_initial_weights(dtype):
        network = build()
    network = network.to(device, dtype).eval()
    if int8:
        load_weights(network, weights)
        return pack(round_layers(network))  # those that are not rounded
    network = pack(network)
    load_weights(network, weights)
    return network


def describe_device(device: torch.device, network: nn.Module) -> str:
    """Return a device and the type of a network's weights in words."""
    name = str(next(network.parameters()).dtype).removeprefix("torch.")
    return f"{device}, {name}{', linear layers in int8' * has_rounded_layers(network)}"


def report_steps(states: Iterator[State], done: int, total: int, progress: Progress) -> Iterator[State]:
    """Yield the same states, and report each to `progress`."""
    for state in states:
        progress("steps", done + state.step, total)
        yield state


def take_last_tokens(states: Iterator[State]) -> Int[Tensor, "b l"]:
    """Run a sampler to its end and return its last canvas."""
    for state in states:
        tokens = state.tokens
    return tokens
