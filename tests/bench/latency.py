"""How long until what is written on one side is there on the other, under watch: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.disk import measured_disk
from tests.bench.workloads import make_small_files
from tests.sshd import Sshd, running_sshd

SEED = 20260229
PATIENCE_SECONDS = 60.0
IDLE_SECONDS = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Late(Exception):
    """What was written did not arrive in time."""


@dataclass(frozen=True)
class Pair:
    """Two folders and where a tool may keep its state."""

    near: Path
    far: Path
    state: Path
    server: Sshd | None


Started = list[subprocess.Popen[bytes]]
Tool = Callable[[Pair], Started]


# -- the tools


def p2psync(pair: Pair) -> Started:
    ours = [sys.executable, "-m", "p2psync"]
    subprocess.run([*ours, "init", str(pair.near)], check=True, stdout=subprocess.DEVNULL)
    far, options = str(pair.far), []
    if pair.server:
        far = f"{pair.server.host}:{pair.far}"
        options = ["-e", pair.server.ssh_command, "--remote-command", pair.server.remote_command]
    subprocess.run([*ours, "-C", str(pair.near), "sync", "-q", "--create", far, *options], check=True)
    return [_start([*ours, "-C", str(pair.near), "watch", far, *options], pair)]


def unison(pair: Pair) -> Started:
    far, options = str(pair.far), []
    if pair.server:
        program, *arguments = shlex.split(pair.server.ssh_command)
        far = f"ssh://{pair.server.host}/{pair.far}"
        options = ["-sshcmd", program, "-sshargs", " ".join(arguments)]
    command = ["unison", str(pair.near), far, "-batch", "-auto", "-times", "-perms", "-1", *options]
    environment = {"UNISON": str(pair.state), "UNISONLOCALHOSTNAME": "bench"}
    every = "watch" if shutil.which("unison-fsmonitor") else "1"  # seconds
    return [_start([*command, "-repeat", every, "-log=false"], pair, environment)]


def lsyncd(pair: Pair) -> Started:
    """One way only; without a delay."""
    pair.state.mkdir(exist_ok=True)
    target, rsync = str(pair.far), ""
    if pair.server:
        target = f"{pair.server.host}:{pair.far}"
        rsync = f", rsh = {json.dumps(pair.server.ssh_command)}"
    config = pair.state / "lsyncd.lua"
    config.write_text(
        f"settings {{ nodaemon = true, inotifyMode = 'CloseWrite or Modify', maxDelays = 1 }}\n"
        f"sync {{ default.rsync, source = {json.dumps(str(pair.near))}, target = {json.dumps(target)},\n"
        f"  delay = 0, delete = true, rsync = {{ archive = true{rsync} }} }}\n"
    )
    return [_start(["lsyncd", str(config)], pair)]


TOOLS: dict[str, Tool] = {"p2psync": p2psync, "unison": unison, "lsyncd": lsyncd}


def _start(
    command: list[str], pair: Pair, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    log = (pair.near.parent / "watch.log").open("ab")
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **(environment or {})}
    )


# -- what is measured


def sample(near: Path, far: Path, name: str, data: bytes) -> float:
    """Write a file and return after how many seconds all of it can be read on the other side."""
    path = far / name
    with (near / name).open("wb") as file:
        file.write(data)
    started = time.perf_counter()
    while True:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == len(data) and path.read_bytes() == data:
                return time.perf_counter() - started
        if time.perf_counter() - started > PATIENCE_SECONDS:
            raise Late(f"{name} did not arrive in {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.0005)


def samples(pair: Pair, count: int, size: int) -> list[float]:
    rng = random.Random(SEED)
    found = []
    for number in range(count):
        time.sleep(rng.uniform(0.05, 0.25))
        near, far = pair.near, pair.far
        found.append(sample(near, far, f"latency-{size}-{number % 10}", rng.randbytes(size)))
    return sorted(found)


def cpu_seconds(processes: Started, server: Sshd | None) -> float:
    """Return what the processes, and all that they and the server have started, have used so far."""
    roots = {process.pid for process in processes} | ({server.process.pid} if server else set())
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    total = 0.0
    for pid, seconds in used.items():
        at = pid
        while at and at not in roots:
            at = parents.get(at, 0)
        total += seconds if at else 0
    return total


def percentile(values: list[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]


@contextlib.contextmanager
def running(tool: Tool, pair: Pair) -> Iterator[Started]:
    """Run a tool until both sides are the same, and as long as the block runs."""
    processes = tool(pair)
    try:
        sample(pair.near, pair.far, "latency-begin", b"begin")
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def measure(tool: Tool, pair: Pair, count: int, large: int) -> list[str]:
    with running(tool, pair) as processes:
        before = cpu_seconds(processes, pair.server)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(processes, pair.server) - before) / IDLE_SECONDS
        cells = []
        for size, number in ((1024, count), (10 << 20, large)):
            found = samples(pair, number, size) if number else []
            cells += [f"{percentile(found, p) * 1000:.0f}" if found else "" for p in (0.5, 0.95, 0.99)]
        return [*cells, f"{idle * 100:.2f}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="in the tree beside those that are written")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--large", type=int, default=20, help="samples of 10 MiB")
    parser.add_argument("--only", choices=("local", "ssh"))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    print(f"{arguments.files:,} files, {arguments.samples} samples; milliseconds from close to content;")
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}\n")
    print("| link | tool | 1 KiB p50 | p95 | p99 | 10 MiB p50 | p95 | p99 | idle CPU % |")
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|", flush=True)
    failed = 0
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(measured_disk(arguments.workdir.resolve())).folder
        for link in (arguments.only,) if arguments.only else ("local", "ssh"):
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2psync-bench-")))
            server = stack.enter_context(running_sshd(scratch)) if link == "ssh" else None
            for name in arguments.tools.split(","):
                folder = disk / "run"
                pair = Pair(folder / "near", folder / "far", folder / "state", server)
                make_small_files(pair.near, arguments.files, SEED)
                if name != "p2psync":
                    shutil.copytree(pair.near, pair.far)
                try:
                    cells = measure(TOOLS[name], pair, arguments.samples, arguments.large)
                    print(f"| {link} | {name} | {' | '.join(cells)} |", flush=True)
                except (Late, subprocess.CalledProcessError, FileNotFoundError) as error:
                    failed += 1
                    print(f"| {link} | {name} | {error} |", flush=True)
                    with contextlib.suppress(OSError):
                        print((folder / "watch.log").read_text()[-1500:], file=sys.stderr)
                shutil.rmtree(folder)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
