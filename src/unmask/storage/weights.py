"""Weights on the disk, as safetensors: read strictly, written whole or not at all, and told apart by a hash."""

import hashlib
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
from unmask.runtime.packed import arrange_weight, to_dense
from unmask.storage.files import write_atomic

PORTION = 1 << 23
"""Bytes of a file that are in memory at a time while its tensors are copied."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model`, of whatever type and device, from a safetensors file, a portion of the file at a time.

    Exactly its names and shapes, or CheckpointError names the difference, before anything is written.
    """
    own = dict(model.named_parameters())
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        wrong = [n for n in sorted(own.keys() | shapes.keys()) if n not in own or shapes.get(n) != tuple(own[n].shape)]
        if wrong:
            raise CheckpointError(
                f"{path}: does not fit the model in config.json: {len(wrong)} tensors differ, first {wrong[0]}"
            )
        for names in _portions({name: tensor.numel() for name, tensor in own.items()}):
            _copy(path, {name: own[name] for name in names})
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: no such file; train to the end first, or `unmask export` the run") from e
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({e})") from e


@torch.no_grad()
def _copy(path: Path, into: Mapping[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:  # closed, it leaves the memory
        for name, tensor in into.items():
            value = file.get_tensor(name)
            tensor.copy_(arrange_weight(value.to(tensor.dtype)) if tensor.is_mkldnn else value)


def _portions(numbers: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of tensors of so many numbers, in groups of at most PORTION bytes as float32, or of one."""
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
    """Inside it, modules are made without drawing their first weights, as they are about to be loaded, in that type.

    That takes most of the time of building a large network, and memory that is never written costs none.
    """
    with torch.random.fork_rng(devices=[]), _Unfilled(dtype):
        yield


class _Unfilled(TorchFunctionMode):
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
        if func is torch.empty and kwargs.get("dtype") is None:  # as the layers of torch.nn make their parameters
            kwargs = {**kwargs, "dtype": self.dtype}
        if func in self.FILLING or getattr(func, "__module__", "") == nn.init.__name__:
            filled = args[0] if args else kwargs["tensor"]
            if isinstance(filled, nn.Parameter):
                return filled
        return func(*args, **kwargs)


def write_weights(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Save as safetensors, with `facts` as metadata, under a temporary name, then rename: never half a file."""
    plain = {name: to_dense(tensor).cpu().contiguous() for name, tensor in weights.items()}
    try:
        with write_atomic(path) as temporary:
            save_file(plain, temporary, metadata={"format": "pt", **(facts or {})})
    except (SafetensorError, OSError) as error:  # the Rust side reports a full disk as an error of its own
        raise DiskError(f"cannot write {path}: {error}; free or mend the disk, then run the command again") from error


def have_same_weights(a: Path, b: Path) -> bool:
    """Whether two files hold the same: all bytes of them, or, of safetensors, the names and values.

    They are compared a portion at a time. CheckpointError if one is damaged.
    """
    if have_same_bytes(a, b):
        return True
    if a.suffix != ".safetensors" or b.suffix != ".safetensors":
        return False
    ours, theirs = _numbers(a), _numbers(b)
    return ours == theirs and all(_same_values(a, b, names) for names in _portions(ours))


def have_same_bytes(a: Path, b: Path) -> bool:
    """Whether two files are the same to the last byte; a portion of each is in memory at a time."""
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as ours, b.open("rb") as theirs:
        while block := ours.read(PORTION):
            if block != theirs.read(PORTION):
                return False
    return True


def _numbers(path: Path) -> dict[str, int]:
    """How many numbers each tensor of a file has."""
    with _reading(path) as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _same_values(a: Path, b: Path, names: Sequence[str]) -> bool:
    """Whether these tensors are equal in both files, whatever the type they are written in."""
    with _reading(a) as ours, _reading(b) as theirs:  # closed, they leave the memory
        for name in names:
            x, y = ours.get_tensor(name), theirs.get_tensor(name)
            wide = torch.promote_types(x.dtype, y.dtype)
            if not torch.equal(x.to(wide), y.to(wide)):
                return False
    return True


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """A safetensors file, open; CheckpointError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from error


def hash_weights(model: nn.Module, config: object) -> str:
    """SHA-256 of a configuration and all weights, as float32."""
    digest = hashlib.sha256(repr(config).encode())
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(to_dense(value).cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
