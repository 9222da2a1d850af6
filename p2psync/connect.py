"""How a far end is opened: in a process of its own here, or through an ssh that has been started."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import NoReturn

from p2psync import errors
from p2psync.calls import BATCH_BYTES
from p2psync.config import Peer
from p2psync.core.pace import parse_compress, parse_rate
from p2psync.peer import Address
from p2psync.process import Process
from p2psync.remote import RemoteReplica
from p2psync.serve import Opener, serve_alone
from p2psync.ssh import Dialled, dial
from p2psync.wire import Connection, plain


class _Fork:
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def why_it_ended(self) -> str | None:
        """See `remote.Process`: what it had to say it has said."""
        return None

    def end(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for number in (signal.SIGTERM, signal.SIGKILL):
            while not os.waitpid(self._pid, os.WNOHANG)[0]:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            else:
                return
            os.kill(self._pid, number)
            deadline = time.monotonic() + 0.5
        os.waitpid(self._pid, 0)


def connect_local(root: bytes, opener: Opener, create: bool) -> RemoteReplica:
    """Open a replica on this machine, in a process of its own: two sides, two processors.

    Raises:
        P2PSyncError: why it could not be opened.
    """
    to_child, to_parent = os.pipe(), os.pipe()
    for fd in (to_child[1], to_parent[1]):
        _widen(fd)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_far_end(to_child[0], to_parent[1], root, opener, create)
    os.close(to_child[0])
    os.close(to_parent[1])
    connection = Connection(to_parent[0], to_child[1], plain(os.fsdecode(root)))
    return RemoteReplica(connection, _Fork(pid))


def _widen(pipe: int) -> None:
    """Let a pipe hold a whole batch, so that neither side waits for the other to take it bit by bit."""
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # many pipes of one user are kept small
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, BATCH_BYTES)


def _be_far_end(source: int, target: int, root: bytes, opener: Opener, create: bool) -> NoReturn:
    """Serve in a forked child; never returns into the parent's code."""
    code = errors.Exit.FAILED
    try:
        # Only what we use stays open: the parent's locks must end with the parent.
        for fd in map(int, os.listdir("/dev/fd")):
            if fd > 2 and fd not in (source, target):
                with contextlib.suppress(OSError):
                    os.close(fd)
        code = serve_alone(Connection(source, target, "the peer"), root, opener, create)
    except KeyboardInterrupt:
        code = errors.Exit.INTERRUPTED
    finally:
        os._exit(code)


def start_local(root: bytes, beside: bytes) -> RemoteReplica:
    """Open a replica on this machine in a process that is not forked: other threads may be at work here.

    Args:
        root: of the replica.
        beside: the root of the other side.

    Raises:
        P2PSyncError: why it could not be opened.
    """
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    program = f"import sys; sys.path.insert(0, {package!r}); from p2psync.__main__ import main; main()"
    name = plain(os.fsdecode(root))
    # -P: what lies in the working directory, which is a synced tree, is no module of ours.
    command: list[str | bytes] = [
        sys.executable,
        "-P",
        "-c",
        program,
        "serve",
        "--beside",
        beside,
        "--",
        root,
    ]
    process = Process(command, lambda code: f"the process for {name} ended with code {code}")
    return RemoteReplica(Connection(process.source, process.target, name), process)


def connect_ssh(address: Address, peer: Peer, create: bool, dialled: Dialled | None = None) -> RemoteReplica:
    """Open a replica on another machine, through the system's ssh.

    Args:
        address: where; its host is not None.
        peer: how.
        create: make it a replica if it is none.
        dialled: an ssh that is connecting there already.

    Raises:
        Unreachable: ssh, or p2psync there, could not be started.
        P2PSyncError: why the replica could not be opened.
    """
    dialled = dialled or dial(address, peer, create)
    if dialled.is_stuck():
        dialled.forget()
        dialled = dial(address, peer, create)
    compress, limit = parse_compress(peer.compress), parse_rate(peer.bwlimit)
    connection = Connection(dialled.process.source, dialled.process.target, dialled.host)
    try:
        return RemoteReplica(connection, dialled.process, compress, limit)
    finally:
        dialled.unlock()
