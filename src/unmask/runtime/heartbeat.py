"""Notice a process of torchrun that hangs: stopped, swapped out, or on a machine that is down.

Each rank counts up a number in the store that torchrun shares, and watches the number of the next rank. A rank that
computes, loads or waits for others still counts. One that does not is named, and the run ends: the others would wait
for it in a collective operation, which Python cannot interrupt.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

TICKS = 10
"""Beats without which a rank counts as hung."""


@runtime_checkable
class Store(Protocol):
    """The part of torch.distributed's stores that a heartbeat needs."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...


class Heartbeat:
    """Beat for this rank, and watch the next one, in a thread from `start` to `stop`."""

    def __init__(self, store: Store, rank: int, size: int, patience: int | float, alarm: Callable[[str], None]):
        self.store, self.rank, self.next = store, rank, (rank + 1) % size
        self.patience, self.alarm = patience, alarm
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        """Begin; `alarm` is called once, with a sentence, if the next rank does not beat for `patience` seconds."""
        self._thread.start()

    def stop(self) -> None:
        """End, and tell the rank that watches this one."""
        self._ended.set()
        self._thread.join(timeout=5)
        with contextlib.suppress(RuntimeError):  # the store may have gone before
            self.store.set(f"beat/{self.rank}", "left")

    def _beat(self) -> None:
        # Ticks are counted, not seconds: a process that was stopped itself must not blame the others afterwards.
        last, silent, answered, number = b"", 0, time.monotonic(), 0
        while not self._ended.wait(self.patience / TICKS):
            number += 1
            try:
                now = self._exchange(number)
            except RuntimeError:
                if time.monotonic() - answered >= self.patience:
                    return self.alarm(f"rank 0's machine has not answered for {self.patience:g} s: is it down?")
                continue
            answered = time.monotonic()
            silent = silent + 1 if now == last and now != b"left" else 0
            last = now
            if silent >= TICKS:
                return self.alarm(
                    f"rank {self.next} has not answered for {self.patience:g} s: it hangs, or its machine is down; run "
                    "the same command again to continue (UNMASK_RANK_TIMEOUT sets the seconds)"
                )
        return None

    def _exchange(self, number: int) -> bytes:
        """Tell the store that this rank lives; return what the next rank said last."""
        self.store.set(f"beat/{self.rank}", str(number))
        key = f"beat/{self.next}"
        return self.store.get(key) if self.store.check([key]) else b""


def read_patience() -> float:
    """Return the seconds after which a silent rank counts as hung: UNMASK_RANK_TIMEOUT, or 300."""
    try:
        seconds = float(os.environ.get("UNMASK_RANK_TIMEOUT", "300"))
    except ValueError:
        seconds = 0
    return seconds if 0 < seconds <= 86400 else 300.0
