"""Read arrays from .npz files. These are zip archives that may hold pickles; pickles are never opened."""

import lzma
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unmask.errors import DataError, describe_os_error
from unmask.lazy import torch
from unmask.runtime.shortage import check_memory
from unmask.storage.files import escape_line

# What zipfile and numpy raise on damaged bytes; EOFError and others come from the formats of the members.
ZIP_DAMAGE: tuple[type[Exception], ...] = (EOFError, ValueError, LookupError, RuntimeError, SyntaxError)
ZIP_DAMAGE += (OverflowError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def read_arrays(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Read the named arrays of an .npz file.

    Raises:
        DataError: A needed array is missing, or the file is damaged.
        ShortageError: The unpacked arrays do not fit into the memory.
    """
    shown = escape_line(str(path))
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # np.load would also accept a bare .npy, and then try a pickle
                raise DataError(f"{shown}: not an .npz file; write it with np.savez")
            _check_sizes(file, (*needed, *optional), shown)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:  # checks the checksums of the members
                found = {name: arrays[name] for name in (*needed, *optional) if name in arrays.files}
    except OSError as error:
        raise DataError(f"{shown}: {describe_os_error(error)}; give an .npz file") from error
    except ZIP_DAMAGE as error:
        raise DataError(
            f"{shown}: not a sound .npz file ({escape_line(str(error))}); write it with np.savez"
        ) from error
    missing = [name for name in needed if not isinstance(found.get(name), np.ndarray)]
    if missing:
        given = ", ".join(f"{name}=..." for name in (*needed, *optional))
        raise DataError(f"{shown}: holds no array '{missing[0]}'; write it with np.savez(path, {given})")
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def _check_sizes(file: BinaryIO, names: tuple[str, ...], shown: str) -> None:
    """Compare sizes before anything is unpacked: a small file may hold gigabytes, and a header may claim any shape."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename.removesuffix(".npy") not in names:
                continue
            check_memory(member.file_size, torch.device("cpu"), f"{shown}: split the file, or use a folder of pictures")
            with archive.open(member) as packed:
                _check_header(packed, member.file_size)  # type: ignore[arg-type]


def _check_header(packed: zipfile.ZipExtFile, size: int) -> None:
    if packed.peek(6)[:6] != b"\x93NUMPY":
        return  # np.load takes no array from it
    version = np.lib.format.read_magic(packed)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(packed)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array of {shape} is claimed, and there are {size} bytes")
