"""Read and write weights as safetensors: strict reading, atomic writing, comparison and hashing."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from unmask.errors import CheckpointError, DiskError
from unmask.runtime.packed import CANNOT_SAVE, arrange_weight, to_dense
from unmask.storage.files import write_atomic
from unmask.storage.manifest import verify_recorded

SEAL = "sha256"
"""The fact in the metadata that holds the hash of the rest."""
PORTION = 1 << 23
"""Bytes of a file that are in memory at a time while its tensors are copied or compared."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the parameters of `model` from a safetensors file, in the type and on the device of the model.

    The file is read a portion at a time. Its names and shapes must be exactly those of the model; this is checked
    before any parameter is written.

    Raises:
        CheckpointError: The file is missing, damaged or does not fit the model, or differs from the manifest beside it.
    """
    verify_recorded(path.parent, path.name)
    own = dict(model.named_parameters())
    if any(tensor.dtype == torch.int8 for tensor in own.values()):
        raise TypeError(CANNOT_SAVE)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wrong = [n for n in sorted(own.keys() | shapes.keys()) if n not in own or shapes.get(n) != tuple(own[n].shape)]
        if wrong:
            raise CheckpointError(
                f"{path}: does not fit the model in config.json: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        for names in _split_portions({name: tensor.numel() for name, tensor in own.items()}):
            _copy_tensors(path, {name: own[name] for name in names})
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: no such file; train to the end first, or `unmask export` the run") from e
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({e})") from e


@torch.no_grad()
def _copy_tensors(path: Path, into: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:  # when it is closed, its memory is free
        for name, tensor in into.items():
            value = file.get_tensor(name)
            tensor.copy_(arrange_weight(value.to(tensor.dtype)) if tensor.is_mkldnn else value)


def _split_portions(numbers: Mapping[str, int]) -> Iterator[list[str]]:
    """Yield groups of tensor names: one tensor, or several of at most PORTION bytes together as float32.

    `numbers` maps each name to its number of elements.
    """
    group: list[str] = []
    size = 0
    for name, count in numbers.items():
        if group and size + 4 * count > PORTION:
            yield group
            group, size = [], 0
        group.append(name)
        size += 4 * count
    yield group


@contextmanager
def skip_initial_weights(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Build modules inside this context without initial weights, in `dtype`, because weights are loaded next.

    Drawing initial weights takes most of the time of building a large network. Parameters that are never written also
    take no memory.
    """
    with torch.random.fork_rng(devices=[]), _SkipInitialWeights(dtype):
        yield


class _SkipInitialWeights(TorchFunctionMode):
    FILLING = (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_)

    def __init__(self, dtype: torch.dtype | None):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("dtype") is None:  # this is how the layers of torch.nn create parameters
            kwargs = {**kwargs, "dtype": self.dtype}
        if func in self.FILLING or getattr(func, "__module__", "") == nn.init.__name__:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)


def write_weights(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file with `write_atomic`, with `facts` as its metadata.

    Raises:
        DiskError: The disk refused the file; an older file stays.
    """
    plain = {name: to_dense(tensor).cpu().contiguous() for name, tensor in weights.items()}
    try:
        with write_atomic(path) as temporary:
            save_file(plain, temporary, metadata={"format": "pt", **(facts or {})})
    except (SafetensorError, OSError) as error:  # safetensors reports a full disk as SafetensorError
        raise DiskError(f"cannot write {path}: {error}; free or repair the disk, then run the command again") from error


def write_sealed(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str]) -> None:
    """Write tensors and facts that `read_sealed` verifies: their common sha256 stands in the metadata.

    Raises:
        DiskError: The disk refused the file; an older file stays.
    """
    write_weights(weights, path, {**facts, SEAL: _hash_tensors(weights, facts)})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and facts of a file of `write_sealed`. A file without a seal, of an earlier version, passes.

    Raises:
        CheckpointError: The file is missing or damaged. The message is the reason alone: the caller names the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            facts = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(error)) from error
    facts.pop("format", None)
    seal = facts.pop(SEAL, None)
    if seal is not None and seal != _hash_tensors(weights, facts):
        raise CheckpointError("damaged: its content does not match its own sha256")
    return weights, facts


def _hash_tensors(weights: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def have_same_weights(a: Path, b: Path) -> bool:
    """Return whether two files have the same bytes, or, if both are safetensors, the same names and values.

    Files are compared a portion at a time.

    Raises:
        CheckpointError: A file is damaged.
    """
    if have_same_bytes(a, b):
        return True
    if a.suffix != ".safetensors" or b.suffix != ".safetensors":
        return False
    ours, theirs = _count_numbers(a), _count_numbers(b)
    return ours == theirs and all(_have_same_values(a, b, names) for names in _split_portions(ours))


def have_same_bytes(a: Path, b: Path) -> bool:
    """Return whether all bytes of two files are equal; a portion of each file is in memory at a time."""
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as ours, b.open("rb") as theirs:
        while block := ours.read(PORTION):
            if block != theirs.read(PORTION):
                return False
    return True


def _count_numbers(path: Path) -> dict[str, int]:
    """Return the number of elements of each tensor in a file."""
    with _open_safetensors(path) as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _have_same_values(a: Path, b: Path, names: Sequence[str]) -> bool:
    """Return whether these tensors have equal values in both files; their types may differ."""
    with _open_safetensors(a) as ours, _open_safetensors(b) as theirs:  # when they are closed, their memory is free
        for name in names:
            x, y = ours.get_tensor(name), theirs.get_tensor(name)
            wide = torch.promote_types(x.dtype, y.dtype)
            if not torch.equal(x.to(wide), y.to(wide)):
                return False
    return True


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; raise CheckpointError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error


def hash_weights(model: nn.Module, config: object) -> str:
    """Return the SHA-256 of a configuration and of all weights as float32."""
    digest = hashlib.sha256(repr(config).encode())
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(to_dense(value).cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
