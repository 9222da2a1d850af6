"""The entry point: what has to be right before anything else is loaded."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130
"""As `errors.Exit.INTERRUPTED`, which is not loaded yet."""


def main() -> NoReturn:
    """Run `p2psync`, such that an interrupt at any moment ends it in order."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _open_standard_streams()
        from p2psync.cli import main as command_line

        _exit(command_line())
    except KeyboardInterrupt as end:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        why = str(end) or "interrupted"
        os.write(2, f"p2psync: {why}; the next sync carries on\n".encode())
        # Not in order: threads may be waiting for what will not come.
        os._exit(getattr(end, "exit_code", INTERRUPTED))


def _exit(code: int) -> NoReturn:
    """End at once: taking all modules apart took a tenth of the time of what is short."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(code)  # has its own words for it
    os._exit(code)


def _open_standard_streams() -> None:
    """Put /dev/null where a stream was closed: a pipe of ours must not get its number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
