"""Addresses of peers, as people type them to git, scp and rsync. Owns their syntax; contacts nobody."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

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
        if self.host is None:
            return os.fsdecode(self.path)
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        if self.port is None:
            return f"{user}{host}:{os.fsdecode(self.path)}"
        path = self.path if self.path.startswith(b"/") else b"/~/" + self.path
        return f"ssh://{user}{host}:{self.port}{quote_from_bytes(path, safe='/~')}"


_HOST = re.compile(r"[A-Za-z0-9_.%:-]+")
"""Names, IPv4 and IPv6 with a zone, aliases of ssh_config."""
_USER = re.compile(r"[^\s@/:'\"`$\\;&|<>(){}*?!#~]+")
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
    if not text or "\0" in text:
        raise AddressError("an empty address")
    if text.startswith("file://"):
        if not text.startswith("file:///"):
            raise AddressError(f"{text!r}: a file address has three slashes: file:///path")
        return Address(unquote_to_bytes(text.removeprefix("file://")))
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
    return Address(os.fsencode(text))


def _from_url(text: str, port: int | None) -> Address:
    match = _URL.fullmatch(text)
    if match is None:
        raise AddressError(f"{text!r} is no address: ssh://[user@]host[:port]/path")
    if match["port"]:
        if not match["port"].isascii() or not match["port"].isdigit() or not 0 < int(match["port"]) < 65536:
            raise AddressError(f"{text!r}: a port is a number from 1 to 65535")
        port = int(match["port"])
    return _remote(text, match["user"], match["host"], port, unquote_to_bytes(match["path"] or ""))


def _remote(text: str, user: str | None, host: str, port: int | None, path: bytes) -> Address:
    """Check the parts: a host that begins with `-` would be an option of ssh (CVE-2017-1000117)."""
    host = host.removeprefix("[").removesuffix("]")
    if not _HOST.fullmatch(host) or host.startswith("-"):
        raise AddressError(f"{text!r}: {host!r} cannot be a host")
    if user is not None and (not _USER.fullmatch(user) or user.startswith("-") or not user.isprintable()):
        raise AddressError(f"{text!r}: {user!r} cannot be a user")
    if b"\0" in path:
        raise AddressError(f"{text!r}: a path holds no NUL byte")
    for home in (b"/~/", b"~/"):
        path = path.removeprefix(home)
    return Address(path or b".", host, user or None, port)
