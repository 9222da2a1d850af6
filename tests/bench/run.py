"""Compare p2psync with rsync and unison on many small files, locally and over ssh: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.disk import measured_disk
from tests.bench.tools import Far, Pair, Tool, all_tools
from tests.bench.workload import Tree, differences, edit, make_tree, read_tree
from tests.sshd import Sshd, running_sshd

EDITS = 100
SEED = 20240229
FIRST, UNCHANGED, EDITED = "first copy", "nothing changed", f"{EDITS} edits"
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
    wire_mib: float | None


Results = dict[tuple[str, str], list[Cost]]  # (step, tool) -> one for each run


class Bench:
    """Where the runs happen: a disk, a scratch folder beside it and maybe a server."""

    def __init__(self, disk: Path, scratch: Path, server: Sshd | None, p2psync: str) -> None:
        self.disk = disk
        self.server = server
        self.record, self.far_record = scratch / "near.jsonl", scratch / "far.jsonl"
        self.ssh_log, self.output = scratch / "ssh.log", scratch / "output.log"
        self.far = self._far(server, p2psync) if server else None

    def _far(self, server: Sshd, p2psync: str) -> Far:
        # At this level ssh says at its end how many bytes it sent and received.
        ssh = [*shlex.split(server.ssh_command), "-o", "LogLevel=VERBOSE", "-E", str(self.ssh_log)]
        return Far(server.host, ssh, [*MEASURED, str(self.far_record)], p2psync)

    def measure(self, command: list[str]) -> Cost:
        """Run one command with nothing left to write back from before it."""
        for old in (self.record, self.far_record, self.ssh_log):
            old.unlink(missing_ok=True)
        os.sync()
        far_cpu_before = self._far_cpu()
        with self.output.open("wb") as output:
            done = subprocess.run([*MEASURED, str(self.record), *command], stdout=output, stderr=output)
        if done.returncode:
            said = self.output.read_text(errors="replace")[-2000:]
            raise Failed(f"exit status {done.returncode}: {shlex.join(command)}\n{said}")
        flush = _timed(lambda: subprocess.run(["sync", "-f", str(self.disk)], check=True))
        near, far = _records(self.record), _records(self.far_record)
        return Cost(
            wall=near[0]["wall"],
            flush=flush,
            cpu=near[0]["cpu"] + self._far_cpu() - far_cpu_before,
            peak_mib=max(record["peak_kib"] for record in near + far) / 1024,
            wire_mib=_wire_bytes(self.ssh_log) / 2**20 if self.server else None,
        )

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

    def session(self) -> Cost | None:
        """What an ssh session costs that does nothing."""
        if self.far is None:
            return None
        command = [*self.far.ssh, self.far.host, shlex.join([*self.far.wrapper, "true"])]
        self.measure(command)  # the first one also reads the programs from the disk
        return self.measure(command)


def run_tool(bench: Bench, tool: Tool, files: int) -> Iterator[tuple[str, Cost]]:
    """One tool's steps on fresh folders, each result checked."""
    folder = bench.disk / "run"
    pair = Pair(folder / "source", folder / "target", folder / "state", bench.far)
    make_tree(pair.source, files, SEED)
    pair.state.mkdir()
    wanted = read_tree(pair.source)
    try:
        yield FIRST, _checked(bench, tool, tool.first, pair, wanted)
        _checked(bench, tool, tool.again, pair, wanted)
        yield UNCHANGED, _checked(bench, tool, tool.again, pair, wanted)
        wanted = wanted | _edit_both(tool, pair, wanted)
        yield EDITED, _checked(bench, tool, tool.again, pair, wanted)
    finally:
        shutil.rmtree(folder)


def _checked(
    bench: Bench, tool: Tool, command: Callable[[Pair], list[str]], pair: Pair, wanted: Tree
) -> Cost:
    cost = bench.measure(command(pair))
    for side in (pair.source, pair.target):
        if wrong := differences(wanted, read_tree(side), tool.mtime_tolerance_ns):
            shown = "\n".join(wrong[:5])
            raise Failed(f"{len(wrong)} differences in the {side.name}, beginning with\n{shown}")
    return cost


def _edit_both(tool: Tool, pair: Pair, tree: Tree) -> Tree:
    """Half of the edits on each side; all on the source for a tool that only looks there."""
    names = random.Random(SEED).sample([name for name in tree if name.endswith(".txt")], EDITS)
    here = EDITS // 2 if tool.two_way else EDITS
    return edit(pair.source, names[:here]) | edit(pair.target, names[here:])


def compare(bench: Bench, tools: list[Tool], files: int, runs: int) -> tuple[Results, list[str]]:
    """Every tool in turn, as often as asked; each run begins with another tool."""
    results: Results = defaultdict(list)
    failures = []
    for run in range(runs):
        for tool in tools[run % len(tools) :] + tools[: run % len(tools)]:
            try:
                for step, cost in run_tool(bench, tool, files):
                    results[step, tool.name].append(cost)
                    _say(f"  run {run + 1}: {tool.name}, {step}: {cost.wall:.2f} s")
            except Failed as failure:
                failures.append(f"run {run + 1}: {tool.name}: {failure}")
                _say(f"  {failures[-1]}")
    return results, failures


def table(results: Results, tools: list[Tool]) -> str:
    lines = [
        "| step | tool | wall s | min-max | flush s | CPU s | peak MiB | wire MiB | to rsync | to unison |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for step in (FIRST, UNCHANGED, EDITED):
        walls = {tool.name: _median(results, step, tool.name, "wall") for tool in tools}
        for tool in tools:
            if costs := results.get((step, tool.name)):
                cells = [step, tool.name, *_cells(costs), *_ratios(walls, tool.name)]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(costs: list[Cost]) -> Iterator[str]:
    walls = [cost.wall for cost in costs]
    yield f"{median(walls):.2f}"
    yield f"{min(walls):.2f}-{max(walls):.2f}"
    yield f"{median(cost.flush for cost in costs):.2f}"
    yield f"{median(cost.cpu for cost in costs):.2f}"
    yield f"{median(cost.peak_mib for cost in costs):.0f}"
    wires = [cost.wire_mib for cost in costs if cost.wire_mib is not None]
    yield f"{median(wires):.2f}" if wires else ""


def _ratios(walls: dict[str, float | None], name: str) -> Iterator[str]:
    ours = walls[name]
    for other in ("rsync", "unison"):
        theirs = walls.get(other)
        yield f"{ours / theirs:.2f}" if ours and theirs and other != name else ""


def _median(results: Results, step: str, tool: str, field: str) -> float | None:
    costs = results.get((step, tool))
    return median(getattr(cost, field) for cost in costs) if costs else None


def _records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _wire_bytes(ssh_log: Path) -> int:
    counts = re.findall(r"Transferred: sent (\d+), received (\d+) bytes", ssh_log.read_text())
    if not counts:
        raise Failed("ssh did not say at its end what it transferred: was it killed?")
    return sum(int(sent) + int(received) for sent, received in counts)


def _timed(action: Callable[[], object]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _describe(arguments: argparse.Namespace, tools: list[Tool]) -> None:
    print(f"{arguments.files:,} files, seed {SEED}, {arguments.runs} runs; wall time: median and min-max.")
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    print(f"{system}, Python {platform.python_version()};")
    print("; ".join(tool.version() for tool in tools) + f"; load {os.getloadavg()[0]:.2f} at the start.\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--only", choices=("local", "ssh"))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tools", default="p2psync,rsync,unison", help="which, separated by commas")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()), help="no spaces in it")
    parser.add_argument("--p2psync", default=shlex.join([sys.executable, "-m", "p2psync"]), metavar="CMD")
    arguments = parser.parse_args()
    if arguments.files < EDITS or arguments.runs < 1:
        parser.error(f"needs at least {EDITS} files and one run")
    return arguments


def main() -> int:
    arguments = _arguments()
    asked = [tool for tool in all_tools(arguments.p2psync) if tool.name in arguments.tools.split(",")]
    tools = [tool for tool in asked if tool.installed()]
    for tool in asked:
        if tool not in tools:
            print(f"{tool.name} is not installed and left out.\n")
    _describe(arguments, tools)
    all_failures = []
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(measured_disk(arguments.workdir.resolve()))
        for link in (arguments.only,) if arguments.only else ("local", "ssh"):
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2psync-bench-")))
            server = stack.enter_context(running_sshd(scratch)) if link == "ssh" else None
            bench = Bench(disk, scratch, server, arguments.p2psync)
            print(f"## {link}\n")
            if session := bench.session():
                print(
                    f"In each line: {session.wall:.2f} s, {session.cpu:.2f} s of CPU for an empty session.\n"
                )
            results, failures = compare(bench, tools, arguments.files, arguments.runs)
            all_failures += failures
            print(f"{table(results, tools)}\n", flush=True)
    print(f"Load {os.getloadavg()[0]:.2f} at the end.")
    for failure in all_failures:
        print(f"\nFAILED: {failure}")
    return 1 if all_failures else 0


if __name__ == "__main__":
    sys.exit(main())
