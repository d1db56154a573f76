"""Start the command line: `unmask`, and `python -m unmask`, as torchrun calls it.

Imports take seconds, so they are inside `main`: Ctrl-C meanwhile ends the process in one line.
"""

import contextlib
import os
import signal


def main() -> None:
    """Import the commands, then run one of them and leave with its exit code."""
    ends = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not so where Ctrl-C is ignored
    if ends:
        signal.signal(signal.SIGINT, _end)
    from unmask import cli

    try:
        if ends:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
    except KeyboardInterrupt:
        _end(signal.SIGINT)


def _end(number: int, frame: object = None) -> None:
    """End the process at once: a half-imported module may not survive an exception."""
    with contextlib.suppress(OSError):
        os.write(2, b"unmask: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    main()
