"""The entry point: what has to be right before anything else is loaded."""

from __future__ import annotations

import gc
import io
import os
import resource
import signal
import sys
import time
from typing import NoReturn

FAILED, INTERRUPTED = 3, 130
"""As in `errors.Exit`, which is not loaded yet."""
FILES = 256
"""So many may have to be open at once, where folders are nested very deeply. It is what macOS allows."""
UNREAD = 128 + signal.SIGPIPE
"""What a shell tells of a command that ended since nobody read on, like `| head -1`."""


def main() -> NoReturn:
    """Run `p2psync`, such that an interrupt at any moment ends it in order."""
    interrupt = _Interrupt()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who started us may ignore it: nobody could be waited for
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started us wants it ignored
        signal.signal(signal.SIGINT, interrupt)
    try:
        _open_standard_streams()
        _allow_files()
        _tune()
        match sys.argv[1:]:
            case ["serve", *create, "--", root] if create in ([], ["--create"]):
                _exit(_be_far_end(root, bool(create)))
        from p2psync.cli import main as command_line

        _exit(command_line())
    except BrokenPipeError:
        os._exit(UNREAD)
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
    except OSError as error:
        if code != FAILED:  # else it was told of already
            os.write(2, f"p2psync: error: cannot write what there is to say: {error.strerror}\n".encode())
        os._exit(FAILED)
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


def _allow_files() -> None:
    """Have the system allow as many open files as are needed, or end: SQLite would not say what it lacks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < FILES:
        why = f"no more than {hard} files may be open here at once, and p2psync needs {FILES} (`ulimit -n`)"
        os.write(2, f"p2psync: error: {why}\n".encode())
        os._exit(FAILED)
    if 0 <= soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))


def _tune() -> None:
    """Set up what is the interpreter's."""
    gc.disable()  # a run makes many objects and hardly a cycle: looking for them cost a seventh of its time
    # glibc gives what is freed back to the system, which takes long to give it again, until a block as large
    # as this was freed once (the dynamic threshold of mallopt(3)): large files were cut at half the speed.
    bytearray(16 << 20)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a name


def _be_far_end(root: str, create: bool) -> int:
    """Serve as ssh starts us: the same as the command, without what parses it, which takes as long to load as
    a quarter of all else.
    """
    from p2psync.local import open_replica
    from p2psync.serve import serve_stdio

    return serve_stdio(os.fsencode(root), open_replica, create)


class _Interrupt:
    """Ends what runs in order; who insists, at once."""

    _ORDER_SECONDS = 2.0

    def __init__(self) -> None:
        self._first: float | None = None

    def __call__(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            raise KeyboardInterrupt
        if number == signal.SIGTERM or now - self._first > self._ORDER_SECONDS:
            os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
