"""How long the verification of a model's weights takes: seconds per GB, at the first load and at the next one.

    python benchmarks/verification.py --bytes 536870912

On one core of a shared x86 machine with SHA instructions: 0.64 CPU seconds per GB at the first load, 0.001 afterwards.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from unmask.storage.layout import MODEL
from unmask.storage.manifest import record_files, verify_recorded


def main() -> None:
    """Write a file of random bytes, record it, and verify it twice."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=int, default=1 << 29)
    size = parser.parse_args().bytes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / MODEL, "wb") as file:
            for _ in range(size >> 20):
                file.write(os.urandom(1 << 20))
        for what, work in (
            ("record", lambda: record_files(folder, [MODEL])),
            ("verify", lambda: verify_recorded(folder, MODEL)),
            ("verify again", lambda: verify_recorded(folder, MODEL)),
        ):
            wall, busy = time.perf_counter(), time.process_time()
            work()
            wall, busy = time.perf_counter() - wall, time.process_time() - busy
            print(f"{what:13s} {busy / size * 1e9:.3f} CPU seconds per GB, {wall / size * 1e9:.3f} seconds")


if __name__ == "__main__":
    main()
