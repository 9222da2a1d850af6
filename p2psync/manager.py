"""What a service manager is told, and told often enough to believe it. Owns systemd's notification protocol.

Source: sd_notify(3) and sd_watchdog_enabled(3); without `$NOTIFY_SOCKET` nothing is said to anybody.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping

BUSY_SECONDS = 6 * 3600
"""How long one sync may take before the service manager takes it for hung."""


class Manager:
    """The service manager that started this process, if one did."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read from the environment where it listens, and how often it wants to hear of us."""
        self._address = environment.get("NOTIFY_SOCKET", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = environment.get("WATCHDOG_USEC", "") if mine else ""
        self._watchdog_usec = int(usec) if usec.isascii() and usec.isdigit() else 0
        self._next = 0.0

    def ready(self) -> None:
        """The watch has begun."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """Say how it stands, in one line."""
        self._say(f"STATUS={text}")

    def stopping(self) -> None:
        """The watch ends."""
        self._say("STOPPING=1")

    def beat(self) -> float:
        """Show that this process is alive; return when to do so again, by the monotonic clock."""
        if not self._watchdog_usec:
            return math.inf
        now = time.monotonic()
        if now >= self._next:
            self._say("WATCHDOG=1")
            self._next = now + self._watchdog_usec / 1e6 / 3
        return self._next

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Say nothing for a long time while the block runs."""
        if not self._watchdog_usec:
            yield
            return
        self._say(f"WATCHDOG_USEC={BUSY_SECONDS * 10**6}\nWATCHDOG=1")
        try:
            yield
        finally:
            self._say(f"WATCHDOG_USEC={self._watchdog_usec}\nWATCHDOG=1")

    def _say(self, message: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), address)
