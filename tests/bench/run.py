"""Compare p2psync with rsync, unison and plain copies, locally and over ssh: see README.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.costs import Meter
from tests.bench.course import compare, say
from tests.bench.disk import NONE, Disk, measured_disk
from tests.bench.scenarios import SCENARIOS
from tests.bench.table import Results, costs_table, targets_table
from tests.bench.tools import Tool, all_tools
from tests.bench.workloads import SEED, WORKLOADS, Workload
from tests.sshd import running_sshd

LINKS = ("local", "ssh")
OURS = "p2psync"


def _tools_for(workload: Workload, link: str, tools: Sequence[Tool], asked: str | None) -> list[Tool]:
    """Leave out whom a workload is not for, unless it was asked for by name."""
    return [
        tool
        for tool in tools
        if (asked or tool.ours or not workload.ours_only)
        and (not tool.for_wire or (workload.compressed and link == "ssh"))
        and (not tool.keeps or (workload.keeps and link == "ssh"))
    ]


def _run_workload(
    workload: Workload, arguments: argparse.Namespace, tools: Sequence[Tool], workdir: Path
) -> tuple[list[Results], list[str]]:
    names = [name for name in workload.scenarios if name in arguments.scenario]
    links = [link for link in workload.links if link in arguments.only]
    if not names or not links:
        return [], []
    started = time.monotonic()
    master = workdir / workload.name
    workload.make(master, arguments.scale)
    say(f"{workload.name}: made in {time.monotonic() - started:.0f} s")
    all_results, failures = [], []
    with measured_disk(workdir, arguments.filesystem, workload.bytes_per_inode) as disk:
        for link in links:
            results, failed = _run_link(workload, link, names, arguments, tools, disk, master)
            all_results.append(results)
            failures += failed
    return all_results, failures


def _run_link(
    workload: Workload,
    link: str,
    names: Sequence[str],
    arguments: argparse.Namespace,
    tools: Sequence[Tool],
    disk: Disk,
    master: Path,
) -> tuple[Results, list[str]]:
    started = time.monotonic()
    results = Results(workload.name, link)
    chosen = _tools_for(workload, link, tools, arguments.tools)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2psync-bench-")))
        server = stack.enter_context(running_sshd(scratch)) if link == "ssh" else None
        meter = Meter(disk, scratch, server)
        print(f"## {workload.name}, {link}: {workload.description}\n")
        if session := meter.session():
            print(f"In each line: {session.wall:.2f} s, {session.cpu:.2f} s of CPU for an empty session.\n")
        failures = compare(meter, results, master, chosen, names, arguments.runs)
    print(costs_table(results, names, chosen))
    print(f"\n(all of it in {time.monotonic() - started:.0f} s)\n", flush=True)
    return results, failures


def _describe(arguments: argparse.Namespace, tools: Sequence[Tool]) -> None:
    print(f"seed {SEED}, scale {arguments.scale:g}, {arguments.runs} runs; medians, ratios of the same run.")
    system = f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    on_disk = arguments.filesystem != NONE and os.geteuid() == 0
    place = f"a new {arguments.filesystem}" if on_disk else "a plain folder, no disk of its own"
    print(f"{system}, Python {platform.python_version()}; {place};")
    versions = dict.fromkeys(f"{tool.name}: {tool.version()}" for tool in tools)
    print("; ".join(versions) + f"; load {os.getloadavg()[0]:.2f} at the start.\n", flush=True)


def _named(values: Sequence[str]) -> list[tuple[str, str]]:
    """`CMD` or `NAME=CMD`, several times, as names and commands."""
    found = []
    for number, value in enumerate(values):
        name, equals, command = value.partition("=")
        if not equals or "/" in name or " " in name:
            name, command = OURS if number == 0 else f"{OURS}-{number + 1}", value
        found.append((name, command))
    return found


def _several(known: Sequence[str], text: str) -> list[str]:
    """Names separated by commas; a part of a name means all names that it is a part of."""
    chosen = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        exact = [name for name in known if name == word]
        fitting = exact or [name for name in known if word in name]
        if not fitting:
            raise argparse.ArgumentTypeError(f"{word!r} is none of: {', '.join(known)}")
        chosen += fitting
    return [name for name in known if name in chosen]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = [name for name, workload in WORKLOADS.items() if not workload.ours_only]

    def workloads(text: str) -> list[str]:
        return _several(list(WORKLOADS), text)

    def scenarios(text: str) -> list[str]:
        return _several(list(SCENARIOS), text)

    parser.add_argument("--workload", type=workloads, default=usual, help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument(
        "--scenario", type=scenarios, default=list(SCENARIOS), help=f"of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--only", choices=LINKS, action="append", help="one of the links")
    parser.add_argument("--tools", help="of p2psync, rsync, rsync -z, unison, copy; default: all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.1: a tenth of the files, or of their size"
    )
    parser.add_argument(
        "--filesystem", default="ext4", help="ext4, xfs or btrfs, where there is a mkfs for it; or none"
    )
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()), help="no spaces in it")
    parser.add_argument(
        "--p2psync",
        action="append",
        metavar="[NAME=]CMD",
        help="measure this one; again, to compare with another",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all single measurements there too")
    arguments = parser.parse_args()
    arguments.only = arguments.only or list(LINKS)
    arguments.p2psync = _named(arguments.p2psync or [shlex.join([sys.executable, "-m", "p2psync"])])
    if not 0 < arguments.scale <= 1 or arguments.runs < 1:
        parser.error("needs a scale from 0 to 1 and one run at least")
    return arguments


def _chosen_tools(arguments: argparse.Namespace) -> list[Tool]:
    tools = all_tools(arguments.p2psync)
    if arguments.tools:
        words = [word.strip() for word in arguments.tools.split(",")]
        ours = OURS in words
        tools = [tool for tool in tools if tool.name in words or (ours and tool.ours)]
    for tool in tools:
        if not tool.installed():
            print(f"{tool.name} is not installed and left out.\n")
    return [tool for tool in tools if tool.installed()]


def _write_json(path: Path, all_results: Sequence[Results]) -> None:
    lines = [
        {
            "workload": results.workload,
            "link": results.link,
            "scenario": scenario,
            "tool": tool,
            "run": run,
            **cost.as_json(),
        }
        for results in all_results
        for (scenario, tool), costs in results.costs.items()
        for run, cost in costs.items()
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> int:
    arguments = _arguments()
    tools = _chosen_tools(arguments)
    _describe(arguments, tools)
    all_results: list[Results] = []
    all_failures: list[str] = []
    for name in arguments.workload:
        with tempfile.TemporaryDirectory(prefix="p2psync-bench-", dir=arguments.workdir.resolve()) as workdir:
            results, failures = _run_workload(WORKLOADS[name], arguments, tools, Path(workdir))
        all_results += results
        all_failures += failures
        if arguments.json:
            _write_json(arguments.json, all_results)
    print(f"## Targets\n\n{targets_table(all_results, tools, arguments.scale, arguments.filesystem)}\n")
    print(f"Load {os.getloadavg()[0]:.2f} at the end.")
    for failure in all_failures:
        print(f"\nFAILED: {failure}")
    return 1 if all_failures else 0


if __name__ == "__main__":
    sys.exit(main())
