"""Know a picture by its content, whatever its file is called and wherever it lies.

The key of a picture is a 128-bit hash of its encoded size and of eight samples of 1 KiB, spread from its first to its
last byte; files of up to 8 KiB are hashed whole. Keys decide which pictures
are held out and in which order a set is used, so both depend on the pictures alone: a renamed or moved set is the same
set, exact copies stay on one side of the split, and adding pictures never moves a training picture to the held-out
side. Reading 8 KiB of each file is cheap for a million files; `whole` keys hash all bytes.
"""

import hashlib
import os
from io import RawIOBase
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from unmask.lazy import Tensor, torch

KEY_BYTES = 16
SAMPLES = 8
SAMPLED_BYTES = 1024
"""Bytes of each sample of a file that its key depends on."""
_BLOCK = 1 << 20


def hash_encoded(data: bytes | memoryview, *, whole: bool = False) -> bytes:
    """Return the key of an encoded picture in memory, or with `whole` a hash of all its bytes."""
    length = len(data)
    if whole or length <= SAMPLES * SAMPLED_BYTES:
        return _hash_parts(length, data)
    return _hash_parts(length, *(data[start : start + SAMPLED_BYTES] for start in _place_samples(length)))


def hash_picture_file(path: str | Path, offset: int = 0, length: int | None = None, *, whole: bool = False) -> bytes:
    """Return the key of a picture in a file, or in `length` bytes of it from `offset` on.

    A file that cannot be read gets a key of its name: it is left out when the pictures are read.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size - offset if length is None else length
            file.seek(offset)
            if size <= SAMPLES * SAMPLED_BYTES:
                return _hash_parts(size, file.read(size))
            if not whole:
                return _hash_parts(size, *(_read_at(file, offset + start) for start in _place_samples(size)))
            digest = _start_hash(size)
            while size > 0 and (block := file.read(min(_BLOCK, size))):
                digest.update(block)
                size -= len(block)
            return digest.digest()
    except (OSError, ValueError):
        return _hash_parts(-1, os.fsencode(os.path.basename(path)))


def hash_pixels(pixels: UInt8[Tensor, "n c h w"]) -> UInt8[np.ndarray, "n 16"]:
    """Return the keys of pictures that were never encoded: hashes of their shape and pixels."""
    rows = pixels.contiguous().numpy()
    shape = repr(rows.shape[1:]).encode()
    return join_keys([_hash_parts(row.nbytes, shape, row.tobytes()) for row in rows])


def join_keys(keys: list[bytes]) -> UInt8[np.ndarray, "n 16"]:
    """Return keys as an array, a row each."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)


def sort_keys(keys: UInt8[np.ndarray, "n 16"]) -> Int[Tensor, " n"]:
    """Return the order of rising keys; equal keys keep their order."""
    high, low = np.ascontiguousarray(keys).view(">u8").reshape(len(keys), 2).T
    return torch.from_numpy(np.lexsort((low, high)))


def choose_held_out(keys: UInt8[np.ndarray, "n 16"], share: float, seed: int) -> Bool[Tensor, " n"]:
    """Return which pictures are held out: each with probability `share`, decided by its key and the seed alone.

    If chance holds out no picture, the one nearest to it is, so that a small set has a test set too. It stays the one
    until a picture arrives that is nearer.
    """
    u = torch.tensor([draw_by_key(key.tobytes(), seed) for key in keys], dtype=torch.float64)
    held_out = u < share
    if share and len(u) and not held_out.any():
        held_out[u.argmin()] = True
    return held_out


def draw_by_key(key: bytes, seed: int) -> float:
    """Return a number in [0, 1] that the key and the seed decide: what is below the share is held out."""
    salt = seed.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(key, digest_size=8, salt=salt).digest(), "little") / 2.0**64


def _place_samples(length: int) -> list[int]:
    """Return where the samples of a file of more than SAMPLES * SAMPLED_BYTES begin: evenly spaced, both ends in."""
    return [(length - SAMPLED_BYTES) * i // (SAMPLES - 1) for i in range(SAMPLES)]


def _read_at(file: RawIOBase, place: int) -> bytes:
    file.seek(place)
    return file.read(SAMPLED_BYTES) or b""


def _start_hash(length: int) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(length.to_bytes(8, "little", signed=True))
    return digest


def _hash_parts(length: int, *parts: bytes | memoryview) -> bytes:
    digest = _start_hash(length)
    for part in parts:
        digest.update(part)
    return digest.digest()
