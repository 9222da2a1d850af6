"""Addresses of peers, as people type them to git, scp and rsync. Owns their syntax; contacts nobody."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from p2psync.errors import Exit, P2PSyncError


class AddressError(P2PSyncError):
    """An address that means nothing, or nothing good."""

    exit_code = Exit.USAGE


@dataclass(frozen=True)
class Address:
    """Where a replica is."""

    path: bytes
    """On a host, relative to the login directory unless it begins with `/`."""
    host: str | None = None
    """None: on this machine."""
    user: str | None = None
    port: int | None = None

    @property
    def login(self) -> str:
        """The `[user@]host` that ssh is given."""
        return f"{self.user}@{self.host}" if self.user else str(self.host)

    def __str__(self) -> str:
        path = os.fsdecode(self.path)
        if self.host is None:
            return path if path.isprintable() else f"file://{_quoted(self.path)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        login = f"{self.user}@{host}" if self.user else host
        if self.port is None and path.isprintable():
            return f"{login}:{path}"
        port = f":{self.port}" if self.port else ""
        start = "" if self.path.startswith(b"/") else "/~/"
        # At its start /~ would mean the home.
        return f"ssh://{login}{port}{start}{_quoted(self.path).replace('/~', '/%7E', 1)}"


_HOST = re.compile(r"[A-Za-z0-9_.%:-]+")
"""Names, IPv4 and IPv6 with a zone, aliases of ssh_config."""
_USER = re.compile(r"[^\s@/:'\"`$\\;&|<>(){}*?!#~]+")
_PORT = re.compile(r"[0-9]{1,5}")
_URL = re.compile(
    r"ssh://(?:(?P<user>[^@/]*)@)?(?P<host>\[[^]/]*\]|[^:/]*)(?::(?P<port>[^/]*))?(?P<path>/.*)?", re.S
)
_SCP = re.compile(r"(?:(?P<user>[^@/:]*)@)?(?P<host>\[[^]/]*\]|[^:/]*):(?P<path>.*)", re.S)


def parse_address(text: str, port: int | None = None) -> Address:
    """Return what an address means.

    Args:
        text: `path`, `[user@]host:path`, `ssh://[user@]host[:port]/path` (`/~/` is the login directory),
            or `file:///path`. As for git and scp, what has a slash before its first colon is a path.
        port: of the peer's sshd, where the address does not name one.

    Raises:
        AddressError: says what is wrong with it.
    """
    if not text:
        raise AddressError("an empty address")
    if text.startswith("file://"):
        if not text.startswith("file:///"):
            raise AddressError(f"{text!r}: a file address has three slashes: file:///path")
        return _local(text, _unquoted(os.fsencode(text.removeprefix("file://"))))
    if text.startswith("ssh://"):
        return _from_url(text, port)
    scheme = re.match(r"[a-z][a-z0-9+.-]*://", text)
    if scheme:
        raise AddressError(f"{text!r}: {scheme[0]} is not spoken here; use ssh:// or a path")
    if ":" in text.partition("/")[0]:
        match = _SCP.fullmatch(text)
        if match is None:
            raise AddressError(f"{text!r} is no address")
        return _remote(text, match["user"], match["host"], port, os.fsencode(match["path"]))
    return _local(text, os.fsencode(text))


def _from_url(text: str, port: int | None) -> Address:
    match = _URL.fullmatch(text)
    if match is None:
        raise AddressError(f"{text!r} is no address: ssh://[user@]host[:port]/path")
    if match["port"]:
        if not _PORT.fullmatch(match["port"]) or not 0 < int(match["port"]) < 65536:
            raise AddressError(f"{text!r}: a port is a number from 1 to 65535")
        port = int(match["port"])
    path = match["path"] or ""
    if path.startswith("/~"):
        path = path.removeprefix("/")
    return _remote(text, match["user"], match["host"], port, _unquoted(os.fsencode(path)))


def _local(text: str, path: bytes) -> Address:
    if b"\0" in path:
        raise AddressError(f"{text!r}: a path holds no NUL byte")
    return Address(path)


def _remote(text: str, user: str | None, host: str, port: int | None, path: bytes) -> Address:
    """Check the parts: a host that begins with `-` would be an option of ssh (CVE-2017-1000117)."""
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not _HOST.fullmatch(host) or host.startswith("-"):
        raise AddressError(f"{text!r}: {host!r} cannot be a host")
    if user is not None and (not _USER.fullmatch(user) or user.startswith("-") or not user.isprintable()):
        raise AddressError(f"{text!r}: {user!r} cannot be a user")
    return Address(_from_home(text, _local(text, path).path), host, user, port)


def _from_home(text: str, path: bytes) -> bytes:
    """Resolve a leading `~`: the path is quoted for the shell there, which will not do it."""
    if path.startswith(b"~"):
        user, _, path = path[1:].partition(b"/")
        if user:
            raise AddressError(f"{text!r}: of all homes only ~/ is known here; a folder ~bob is ./~bob")
        path = path.lstrip(b"/")
        path = b"./" + path if path.startswith(b"~") else path
    return path or b"."


def _quoted(path: bytes) -> str:
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(path)


def _unquoted(text: bytes) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(text)
