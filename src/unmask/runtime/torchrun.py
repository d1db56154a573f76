"""What torchrun says to this process in its environment, and what it is told; read before torch is imported."""

import json
import os
import time
from contextlib import suppress

from unmask.errors import ConfigError


def is_main_process() -> bool:
    """Return whether this process is the one that speaks: the only one, or rank 0 of torchrun."""
    return int(os.environ.get("RANK", "0")) == 0


def check_alone(command: str) -> None:
    """Raise ConfigError if there are several processes: each would do all the work and write the same files."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        raise ConfigError(f"unmask {command} runs in one process, and there are {size}: run it without torchrun")


def record_cause(line: str, *, is_consequence: bool = False) -> None:
    """Leave a line for torchrun, which prints the first cause of all ranks last; without torchrun do nothing.

    A consequence of what another rank did is dated later, so that it is not taken for the cause.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    stamp = int(time.time()) + 3600 * is_consequence
    with suppress(OSError), open(path, "w", encoding="utf-8") as file:
        json.dump({"message": {"message": line, "extraInfo": {"timestamp": str(stamp)}}}, file)
