"""Measure what it costs to know a set of pictures: the key of each file, and a hash of all its bytes.

    python benchmarks/identity.py > docs/results/benchmarks/identity.txt

Times are CPU seconds of all threads, with the files in the page cache; a cold disk adds its own time.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from unmask.data.pictures import Files
from unmask.runtime.provenance import describe_processor, find_commit


def main() -> None:
    """Write files of a photo's size, and time both hashes of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--kilobytes", type=int, default=50)
    arguments = parser.parse_args()
    print(f"{describe_processor()}, commit {find_commit()}")
    with tempfile.TemporaryDirectory() as folder:
        data = np.random.default_rng(0).bytes(arguments.kilobytes * 1024)
        paths = []
        for i in range(arguments.files):
            paths.append(f"{folder}/{i}.jpg")
            Path(paths[-1]).write_bytes(i.to_bytes(8, "little") + data)
        files = Files(paths=tuple(paths), labels=None, classes=(), size=(64, 64), channels=3)
        total = arguments.files * arguments.kilobytes / 1e6
        print(f"{arguments.files:,} files of {arguments.kilobytes} KiB, {total:.1f} GB; best of 3")
        for name, compute in (("keys (8 x 1 KiB)", files.compute_keys), ("all bytes", files.compute_whole_keys)):
            taken = []
            for _ in range(3):
                start = time.process_time()
                compute()
                taken.append(time.process_time() - start)
            each = min(taken) / arguments.files
            print(
                f"{name:22s} {min(taken):6.2f} CPU s, {each * 1e6:6.1f} us a file, {each * 1e6:,.0f} s a million files"
            )


if __name__ == "__main__":
    main()
