"""What one command costs on both sides: runs it under `measured.py`, here and there, and adds up."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.disk import Disk
from tests.bench.tools import Far
from tests.sshd import Sshd

MEASURED = [sys.executable, "-I", "-S", str(Path(__file__).with_name("measured.py"))]
FAR_DEADLINE = 60.0  # seconds for the server's processes to end after the command has
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A tool failed, or did not do what it was asked."""


@dataclass(frozen=True)
class Cost:
    """What one command cost on both sides; `flush` is the time to write back what it left in memory."""

    wall: float
    flush: float
    cpu: float
    peak_mib: float
    wire: int | None
    """Bytes; None where there is no wire."""

    def as_json(self) -> dict[str, float | int | None]:
        return asdict(self)


class Meter:
    """Measures commands that work on a disk, and maybe through a server."""

    def __init__(self, disk: Disk, scratch: Path, server: Sshd | None) -> None:
        self.disk = disk
        self.server = server
        self._runtime = scratch / "run"
        self._runtime.mkdir(mode=0o700)
        self._record, self._far_record = scratch / "near.jsonl", scratch / "far.jsonl"
        self._ssh_log, self._output = scratch / "ssh.log", scratch / "output.log"
        self.far = self._make_far(server) if server else None

    def _make_far(self, server: Sshd) -> Far:
        # At this level ssh says at its end how many bytes it sent and received.
        ssh = [*shlex.split(server.ssh_command), "-o", "LogLevel=VERBOSE", "-E", str(self._ssh_log)]
        return Far(server.host, ssh, shlex.split(server.configured()), [*MEASURED, str(self._far_record)])

    def measure(self, command: list[str], keeps: bool = False) -> Cost:
        """Run one command with nothing left to write back from before it.

        Args:
            command: what to run.
            keeps: it leaves a connection open, so that ssh's part in it is not counted.

        Raises:
            Failed: it ended with another status than 0.
        """
        for old in (self._record, self._far_record, self._ssh_log):
            old.unlink(missing_ok=True)
        self.disk.settle()
        far_cpu_before = 0.0 if keeps else self._far_cpu()
        measured = [*MEASURED, *(["--leave"] if keeps else []), str(self._record)]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self._runtime)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else an edited checkout is compiled in each run
        with self._output.open("wb") as output:
            # From nowhere: `python -m p2psync` would take the p2psync of the folder that it is started in.
            done = subprocess.run(
                [*measured, *command], stdout=output, stderr=output, cwd=self.disk.folder, env=environment
            )
        if done.returncode:
            said = self._output.read_text(errors="replace")[-2000:]
            raise Failed(f"exit status {done.returncode}: {shlex.join(command)}\n{said}")
        started = time.monotonic()
        self.disk.flush()
        flush = time.monotonic() - started
        near, far = _records(self._record), _records(self._far_record)
        return Cost(
            wall=near[0]["wall"],
            flush=flush,
            cpu=near[0]["cpu"] + (far[0]["cpu"] if keeps else self._far_cpu() - far_cpu_before),
            peak_mib=max(record["peak_kib"] for record in near + far) / 1024,
            wire=_wire_bytes(self._ssh_log) if self.server and not keeps else None,
        )

    def hang_up(self) -> None:
        """End the connections that a tool has kept."""
        for socket in self._runtime.glob("p2psync/*"):
            if socket.is_socket():
                subprocess.run(["ssh", "-S", str(socket), "-O", "exit", "x"], check=True, capture_output=True)

    def session(self) -> Cost | None:
        """What an ssh session costs that does nothing."""
        if self.far is None:
            return None
        command = [*self.far.ssh, self.far.host, shlex.join([*self.far.wrapper, "true"])]
        self.measure(command)  # the first one also reads the programs from the disk
        return self.measure(command)

    def _far_cpu(self) -> float:
        """CPU seconds of all sessions so far: sshd's own and all that ran in them, once they have ended."""
        if self.server is None:
            return 0.0
        process = Path(f"/proc/{self.server.process.pid}")
        deadline = time.monotonic() + FAR_DEADLINE
        while (process / f"task/{process.name}/children").read_text().strip():
            if time.monotonic() > deadline:
                raise Failed(f"the far side still runs {FAR_DEADLINE:g} s after the command has ended")
            time.sleep(0.01)
        # proc_pid_stat(5): cutime and cstime are fields 16 and 17; field 3 follows the name's bracket.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[13]) + int(fields[14])) / _TICKS


def _records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wire_bytes(ssh_log: Path) -> int:
    counts = re.findall(r"Transferred: sent (\d+), received (\d+) bytes", ssh_log.read_text())
    if not counts:
        raise Failed("ssh did not say at its end what it transferred: was it killed?")
    return sum(int(sent) + int(received) for sent, received in counts)
