"""One tool on one workload, through all its scenarios, each result checked; and all tools in turn."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench.costs import Cost, Failed, Meter
from tests.bench.scenarios import FIRST, SCENARIOS, UNCHANGED, Scenario
from tests.bench.table import Results
from tests.bench.tools import Pair, Tool
from tests.bench.trees import Reader, Tree, differences


class Course:
    """One tool on one workload: fresh folders, one scenario after the other, each result checked."""

    def __init__(self, meter: Meter, tool: Tool, master: Path, tree: Tree) -> None:
        self._meter = meter
        self._tool = tool
        self._folder = meter.disk.folder / "run"
        folder = self._folder
        self._pair = Pair(folder / "source", folder / "target", folder / "state", meter.far)
        self._master = master
        self._wanted = tree
        self._readers = [Reader(self._pair.source), Reader(self._pair.target)]

    def run(self, scenarios: Sequence[Scenario]) -> Iterator[tuple[str, Cost]]:
        """The first copy is always made; only what is among `scenarios` is told.

        Raises:
            Failed: the tool failed, or the trees do not hold what they should.
        """
        self._folder.mkdir()
        try:
            self._pair.state.mkdir()
            # No reflinks: the source must not share its blocks with the folder that it is copied from.
            copy = ["cp", "-a", "--reflink=never", str(self._master), str(self._pair.source)]
            subprocess.run(copy, check=True)
            cost = self._measure(self._tool.first)
            if any(scenario.name == FIRST for scenario in scenarios):
                yield FIRST, cost
            again = self._tool.again
            later = [scenario for scenario in scenarios if scenario.name != FIRST]
            if again is None or not later:
                return
            self._measure(again)  # looks once more at what was just written
            for scenario in later:
                self._change(scenario)
                yield scenario.name, self._measure(again)
        finally:
            self._meter.hang_up()
            shutil.rmtree(self._folder)

    def _change(self, scenario: Scenario) -> None:
        if scenario.both_sides and self._tool.two_way:
            edited: Tree = {}
            for part, reader in enumerate(self._readers):
                scenario.change(reader.root, part, 2)
                found = reader.read().items()
                edited |= {name: item for name, item in found if item.digest != self._wanted[name].digest}
            self._wanted = self._wanted | edited
        elif scenario.name != UNCHANGED:
            scenario.change(self._pair.source, 0, 1)
            self._wanted = self._readers[0].read()

    def _measure(self, command: Callable[[Pair], list[str]]) -> Cost:
        cost = self._meter.measure(command(self._pair), self._tool.keeps)
        for reader in self._readers:
            if wrong := differences(self._wanted, reader.read(), self._tool.mtime_tolerance_ns):
                shown = "\n".join(wrong[:5])
                raise Failed(f"{len(wrong)} differences in the {reader.root.name}, beginning with\n{shown}")
        return cost


def compare(
    meter: Meter, results: Results, master: Path, tools: Sequence[Tool], names: Sequence[str], runs: int
) -> list[str]:
    """Every tool in turn, as often as asked; each run begins with another tool. Returns the failures."""
    tree = Reader(master).read()
    for tool in tools:
        with contextlib.suppress(Failed):  # it will fail again, and then be told of
            _warm_up(meter, tool)
    scenarios = [SCENARIOS[name] for name in names]
    failures = []
    for run in range(runs):
        for tool in [*tools[run % len(tools) :], *tools[: run % len(tools)]]:
            where = f"{results.workload}, {results.link}, run {run + 1}: {tool.name}"
            try:
                for name, cost in Course(meter, tool, master, tree).run(scenarios):
                    results.costs[name, tool.name][run] = cost
                    say(f"  {where}, {name}: {cost.wall:.2f} s")
            except Failed as failure:
                failures.append(f"{where}: {failure}")
                say(f"  {failures[-1]}")
    return failures


def _warm_up(meter: Meter, tool: Tool) -> None:
    """Sync a file once: programs are read from the disk then, and Python's compiled."""
    folder = meter.disk.folder / "warm-up"
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "file").write_text("warm\n")
    pair = Pair(source, folder / "target", folder / "state", meter.far)
    pair.state.mkdir()
    try:
        for command in (tool.first, tool.again):
            if command is not None:
                meter.measure(command(pair), tool.keeps)
    finally:
        meter.hang_up()
        shutil.rmtree(folder)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
