"""Read arrays from .npz files. These are zip archives that may hold pickles; pickles are never opened."""

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from unmask.errors import DataError
from unmask.storage.files import escape_line

# What zipfile and numpy raise on damaged bytes; EOFError and others come from the formats of the members.
ZIP_DAMAGE: tuple[type[Exception], ...] = (EOFError, ValueError, LookupError, RuntimeError, MemoryError, SyntaxError)
ZIP_DAMAGE += (OverflowError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def read_arrays(path: Path, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Read the named arrays of an .npz file; raise DataError if a needed one is missing or the file is damaged."""
    shown = escape_line(str(path))
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):  # np.load would also accept a bare .npy, and then try a pickle
                raise DataError(f"{shown}: not an .npz file; write it with np.savez")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:  # checks the checksums of the members
                found = {name: arrays[name] for name in (*needed, *optional) if name in arrays.files}
    except OSError as error:
        raise DataError(f"{shown}: {error.strerror or error}; give an .npz file") from error
    except ZIP_DAMAGE as error:
        raise DataError(
            f"{shown}: not a sound .npz file ({escape_line(str(error))}); write it with np.savez"
        ) from error
    missing = [name for name in needed if not isinstance(found.get(name), np.ndarray)]
    if missing:
        given = ", ".join(f"{name}=..." for name in (*needed, *optional))
        raise DataError(f"{shown}: holds no array '{missing[0]}'; write it with np.savez(path, {given})")
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}
