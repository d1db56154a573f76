"""Weights on the disk, as safetensors: read strictly, written whole or not at all, and told apart by a hash."""

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.config import sync
from unmask.data.decoding import one_line
from unmask.errors import CheckpointError, DiskError


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model` from a safetensors file: exactly its names and shapes, or CheckpointError names the difference."""
    try:
        weights = load_file(path)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: no such file; train to the end first, or `unmask export` the run") from e
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({e})") from e
    own = dict(model.named_parameters())
    wrong = [
        n
        for n in sorted(own.keys() | weights.keys())
        if n not in own or n not in weights or own[n].shape != weights[n].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: does not fit the model in config.json: {len(wrong)} tensors differ, first {wrong[0]}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def write_weights(weights: Mapping[str, Tensor], path: Path, facts: Mapping[str, str] | None = None) -> None:
    """Save as safetensors, with `facts` as metadata, under a temporary name, then rename: never half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    try:
        save_file(plain, part, metadata={"format": "pt", **(facts or {})})
        part.chmod(part.parent.stat().st_mode & 0o666)  # safetensors makes its files private whatever the umask
        sync(part)
        part.replace(path)
    except (SafetensorError, OSError) as error:  # the Rust side reports a full disk as an error of its own
        raise DiskError(f"cannot write {path}: {error}; free or mend the disk, then run the command again") from error
    finally:
        part.unlink(missing_ok=True)


def read_tensors(path: Path, source: str) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or .pth file, without running anything that it says.

    `source` tells, in the CheckpointError, where to get a sound one.
    """
    shown = one_line(str(path))
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files older than the zip format cannot be mapped.
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, EOFError, ValueError, LookupError, RuntimeError, UnpicklingError, SafetensorError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{shown} cannot be read ({one_line(reason)}); get {source}") from error
    if not isinstance(stored, dict) or not all(isinstance(v, Tensor) for v in stored.values()):
        raise CheckpointError(f"{shown} holds no plain table of tensors; get {source}")
    return stored


def fingerprint(model: nn.Module, config: object) -> str:
    """SHA-256 of a configuration and all weights, as float32."""
    digest = hashlib.sha256(repr(config).encode())
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
