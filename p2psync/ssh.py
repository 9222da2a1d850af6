"""How the system's ssh is started, so that connecting is quick and the user's configuration counts first.

Owns what ssh is called with, and a private folder with what it is told beside the user's own configuration: a
socket by which the next sync finds this one's connection, and ciphers that the processor is made for. ssh
takes the first value that it reads for an option, so these come in a file that first includes the user's.
Light to import: ssh is started before most of p2psync is loaded, and connects meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from p2psync.config import Peer
from p2psync.errors import Unreachable
from p2psync.peer import Address, AddressError, parse_address
from p2psync.process import Process

KEPT_SECONDS = 600
"""How long a connection outlives the sync that made it: cron's usual ten minutes."""
ANSWER_SECONDS = 10.0
"""A kept connection that lets nothing through for so long, as after a change of networks, is given up."""

_CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""Twice as fast as ssh's first choice where the processor has instructions for AES; `^` puts them first."""
_OLDEST = (9, 0)
"""Before, a kept connection held on to stderr, and `p2psync sync 2>&1 | cat` waited for its end."""
_OPTIONS = "46AaCfGgKkMNnqsTtVvXxYyB:b:c:D:E:e:F:I:i:J:L:l:m:O:o:P:p:Q:R:S:W:w:"
"""Of ssh, as getopt has them."""
_NO_FILE = ("none", os.devnull)
_NOTE = "# "
"""Before what a file of ours depends on."""
_PLAIN = re.compile(r"[A-Za-z0-9_./~@+=,-]+")
"""Paths that mean the same inside an ssh_config: no blank, no pattern, no token."""
_SOCKET_BYTES = 104 - 1 - 17 - 1
"""Of a socket's path: macOS has 104, one ends it, and ssh binds to a name that is 17 longer (Linux: 108)."""


class Dialled:
    """A running ssh that is to become a connection."""

    def __init__(self, process: Process, host: str, kept: str | None, lock: int | None) -> None:
        """Take over `lock`, a descriptor; `kept` is the socket of the connection that ssh was told to use."""
        self.process = process
        self.host = host
        self._kept = kept
        self._lock = lock

    def is_stuck(self) -> bool:
        """Does it wait for a kept connection that lets nothing through any more?"""
        return self._kept is not None and not self.process.says_anything(ANSWER_SECONDS)

    def forget(self) -> None:
        """End it, and let nobody else use the connection that it was to use."""
        if self._kept is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._kept)
        self.abandon()

    def abandon(self) -> None:
        """End it; nobody has taken its descriptors."""
        self.unlock()
        self.process.abandon()

    def unlock(self) -> None:
        """Let others make connections that are kept, now that this one is made or never will be."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Early:
    """Connections that are made while the replica here is still being opened.

    Only the first peer's where somebody may be asked for a password: two questions at once would be one too
    many. What goes wrong here is told when its turn comes.
    """

    def __init__(self, peers: Sequence[Peer]) -> None:
        """Start connecting to `peers`, in their order."""
        self._dialled: dict[Peer, Dialled] = {}
        for peer in peers:
            with contextlib.suppress(AddressError, Unreachable):
                address = parse_address(peer.address, port=peer.port)
                if address.host is not None:
                    self._dialled[peer] = dial(address, peer, create=False)
                    if os.isatty(0):
                        break

    def take(self, peer: Peer) -> Dialled | None:
        """Return the connection to `peer`, once."""
        return self._dialled.pop(peer, None)

    def close(self) -> None:
        """End the connections that nobody took."""
        while self._dialled:
            self._dialled.popitem()[1].abandon()


def dial(address: Address, peer: Peer, create: bool) -> Dialled:
    """Start ssh, and through it p2psync on another machine.

    Args:
        address: where; its host is not None.
        peer: how: its ssh command is split as a shell would; if None, it is `$P2PSYNC_SSH`, else `ssh`.
        create: make it a replica if it is none.

    Raises:
        AddressError: the ssh command makes no sense.
        Unreachable: there is no such command.
    """
    import shlex

    given = peer.ssh_command or os.environ.get("P2PSYNC_SSH") or "ssh"
    try:
        words = shlex.split(given) or ["ssh"]
    except ValueError as error:
        raise AddressError(f"cannot make sense of the ssh command {given!r}: {error}") from error
    command, socket, lock = list(words), None, None
    if os.path.basename(words[0]) == "ssh":
        if not any("ServerAliveInterval" in word for word in words):
            command += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
        command += ["-T"]  # a terminal there, as the user may want it for his shells, changes what passes it
        file = None
        with contextlib.suppress(OSError):  # no room for it, say: ssh does without
            file = _configuration(words, address, peer.reuse)
        if file is not None:
            command += ["-F", file.path]
            socket = file.socket
        if socket is not None:
            lock = _lock(f"{socket}.lock")
            if lock is None:  # another makes a connection right now; two that try would both complain
                command += ["-o", "ControlMaster=no"]
    if not os.isatty(0):  # under cron nobody would answer: no question, then
        command += ["-o", "BatchMode=yes"]
    if address.port:
        command += ["-p", str(address.port)]
    far = peer.remote_command or "p2psync"
    serve_there = f"{far} serve{' --create' if create else ''} -- {shlex.quote(os.fsdecode(address.path))}"
    command += ["--", address.login, serve_there]
    kept = socket if socket is not None and os.path.exists(socket) else None
    try:
        process = Process(command, _why_ended(address.login, far.split()[-1]))
    except Unreachable:
        if lock is not None:
            os.close(lock)
        raise
    return Dialled(process, address.login, kept, lock)


def _why_ended(host: str, far: str) -> Callable[[int], str]:
    """Return what the exit code of ssh means."""

    def why(code: int) -> str:
        match code:
            case 255:
                return f"ssh could not connect to {host}; what it said is above"
            case 126 | 127:
                return (
                    f"{far} was not found on {host}: install it there, or say where it is with"
                    " --remote-command (to keep that: `p2psync config set peer.NAME.remote-command CMD`)"
                )
            case _:
                return f"p2psync on {host} ended with code {code}, before it said anything"

    return why


def _lock(path: str) -> int | None:
    """Return a descriptor that holds the lock; None: another holds it, or there can be none."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


# -- what stands beside the user's configuration


class _File(NamedTuple):
    path: str
    socket: str | None
    """If connections are kept."""


def _configuration(words: list[str], address: Address, reuse: bool) -> _File | None:
    """Return the configuration for a host, made when it is first needed; None where there can be none."""
    import getopt

    try:
        options, rest = getopt.getopt(words[1:], _OPTIONS)
    except getopt.GetoptError:
        return None
    folder = private_folder()
    if rest or folder is None:
        return None
    chosen = [
        value if value in _NO_FILE else os.path.abspath(value) for option, value in options if option == "-F"
    ][-1:]
    reuse = reuse and not any(option == "-v" for option, _ in options)
    # Whoever connects with other options, as another user or to another port must not get this connection.
    path = f"{folder}/{_name([*words, address.login, str(address.port), *chosen, str(reuse)])}.conf"
    text = _remembered(path)
    if text is None:
        text = _make(words, address, path, chosen, reuse)
    if not re.search("^Host ", text, re.MULTILINE):
        return None
    socket = re.search("^ControlPath (.+)$", text, re.MULTILINE)
    return _File(path, socket[1] if socket else None)


def _name(words: list[str]) -> str:
    from hashlib import blake2b

    return blake2b("\0".join(words).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _remembered(path: str) -> str | None:
    """Return what `_make` has written, if all that it depends on is what it was."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except OSError:
        return None
    notes = [line for line in text.split("\n") if line.startswith(_NOTE)]
    holds = all(line == _note(line.removeprefix(_NOTE).rpartition("\t")[0]) for line in notes)
    return text if holds else None


def _make(words: list[str], address: Address, path: str, chosen: list[str], reuse: bool) -> str:
    """Write the file at `path` as far as ssh can make use of it, and return what is in it.

    Raises:
        OSError: it cannot be written, or ssh cannot be started.
    """
    port = ["-p", str(address.port)] if address.port else []
    answer = _ask([*words, *port, "--", address.login])
    notes = "".join(f"{_note(name)}\n" for name in _depends_on(answer, chosen))
    text = ""
    if answer.version and all(_PLAIN.fullmatch(file) for file in chosen):
        includes = chosen or ["~/.ssh/config", *_systems(answer.read)]
        text = "".join(f"Include {file}\n" for file in includes if file not in _NO_FILE)
        ciphers = f"Ciphers ^{_CIPHERS}\n" if _has_aes() else ""
        socket = f"{os.path.dirname(path)}/{_name([path, notes])}"  # another state has another one
        kept = {"ControlMaster": "auto", "ControlPath": socket, "ControlPersist": str(KEPT_SECONDS)}
        sharing = "".join(f"{key} {value}\n" for key, value in kept.items())
        text += f"Host {address.host}\n{ciphers}"
        _write(path, _NOTE + "not asked about yet\n" + text + sharing)
        answer = _ask([*words, *port, "-F", path, "--", address.login])
        # Where the user has set one of the three, the others are not for us to add.
        is_ours = all(answer.found.get(key.lower()) == value for key, value in kept.items())
        if reuse and answer.version >= _OLDEST and is_ours:
            text += sharing
        if not answer.version:
            text = ""
    _write(path, notes + text)
    return notes + text


class _Answer(NamedTuple):
    """What `ssh -G` says."""

    version: tuple[int, ...]
    """Empty if it fails."""
    read: list[str]
    """The files that it read."""
    unmatched: list[str]
    """What is to be included, and is not there."""
    found: dict[str, str]
    """What it would do."""


def _ask(command: list[str]) -> _Answer:
    """Ask ssh about its configuration.

    Raises:
        OSError: it cannot be started.
    """
    import subprocess

    done = subprocess.run(
        [command[0], "-v", "-G", *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    said = os.fsdecode(done.stderr)
    version = re.search(r"^OpenSSH_(\d+)\.(\d+)", said, re.MULTILINE)
    read = re.findall(r"Reading configuration data (.+?)\r?$", said, re.MULTILINE)
    unmatched = re.findall(r"line \d+: include (.+) matched no files", said)
    numbers = tuple(map(int, version.groups())) if version and not done.returncode else ()
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    found = dict(line.partition(" ")[::2] for line in lines)
    return _Answer(numbers, read, unmatched, found)


def _depends_on(answer: _Answer, chosen: list[str]) -> list[str]:
    """Return which files an answer depends on, and folders in which more may appear, as ssh names them.

    Not folders in which all kinds of files come and go.
    """
    files = set(chosen or ("/etc/ssh/ssh_config", os.path.expanduser("~/.ssh/config")))
    included = {name for name in (*answer.read, *answer.unmatched) if os.path.abspath(name) not in files}
    folders = {os.path.dirname(re.split(r"[*?[]", name)[0]) for name in included}
    busy = {"/etc/ssh", *map(os.path.expanduser, ("~", "~/.ssh"))}
    return sorted({*files, *included, *(folder for folder in folders if _place(folder) not in busy)})


def _note(name: str) -> str:
    """Return a comment that tells what is at a place, as ssh names it."""
    return f"{_NOTE}{name}\t{_stamp(_place(name))}"


def _place(name: str) -> str:
    """Return the path that ssh names: it tells what is not ASCII in octal digits."""
    plain = re.sub(rb"\\([0-3][0-7]{2})", lambda found: bytes([int(found[1], 8)]), os.fsencode(name))
    return os.path.expanduser(os.fsdecode(plain))


def _systems(read: list[str]) -> list[str]:
    """Which of the files that ssh read is the system's: its place was chosen when ssh was built."""
    homes = os.path.expanduser("~/.ssh/")
    found = [file for file in read if file.endswith("/ssh_config") and not file.startswith(homes)]
    return [file for file in found[:1] or ["/etc/ssh/ssh_config"] if _PLAIN.fullmatch(file)]


def _has_aes() -> bool:
    if sys.platform == "darwin":
        return True  # every Mac that runs a supported system
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = re.search(r"^(?:flags|Features)\s*:(.*)$", file.read(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and "aes" in flags[1].split()


def _write(path: str, text: str) -> None:
    """Write a file whole or not at all."""
    new = f"{path}.{threading.get_native_id()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.replace(new, path)


# -- the private folder


def private_folder() -> str | None:
    """Return a folder that only this user can use, for sockets; None if there is no place for one."""
    user = os.geteuid()
    for base, name in (
        (os.environ.get("XDG_RUNTIME_DIR", ""), "p2psync"),
        (os.environ.get("TMPDIR", ""), f"p2psync-{user}"),
        ("/tmp", f"p2psync-{user}"),
    ):
        path = os.path.join(base, name)
        short = len(os.fsencode(path)) + 1 + 16 <= _SOCKET_BYTES
        if base.startswith("/") and short and _PLAIN.fullmatch(path) and _is_private(base, path, user):
            return path
    return None


def _is_private(base: str, path: str, user: int) -> bool:
    """Make `path` unless it is there; is it a folder of ours that nobody else can enter or replace?"""
    try:
        above = os.stat(base)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        status = os.lstat(path)
    except OSError:
        return False
    guarded = above.st_mode & stat.S_ISVTX or not above.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return (
        bool(guarded)
        and above.st_uid in (0, user)
        and stat.S_ISDIR(status.st_mode)
        and status.st_uid == user
        and not status.st_mode & 0o077
    )
