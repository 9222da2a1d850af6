"""What is printed: a table of medians for each workload and link, and one of targets met and missed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.bench.costs import Cost
from tests.bench.targets import KEPT, MB, Medians, target_of, verdicts
from tests.bench.tools import Tool


@dataclass
class Results:
    """The costs of one workload over one link: for each scenario and tool those of each run."""

    workload: str
    link: str
    costs: dict[tuple[str, str], dict[int, Cost]] = field(default_factory=lambda: defaultdict(dict))

    def medians(self, scenario: str, tool: str) -> Medians | None:
        costs = list(self.costs.get((scenario, tool), {}).values())
        if not costs:
            return None
        wires = [cost.wire for cost in costs if cost.wire is not None]
        return Medians(
            median(cost.wall for cost in costs),
            median(cost.peak_mib for cost in costs),
            median(wires) if wires else None,
        )

    def paired(self, scenario: str, tool: str, other: str) -> float | None:
        """The median of what `tool` took in each run, as a ratio to what `other` took in the same."""
        ours, theirs = (self.costs.get((scenario, name), {}) for name in (tool, other))
        ratios = [ours[run].wall / theirs[run].wall for run in ours.keys() & theirs.keys()]
        return median(ratios) if ratios else None


def costs_table(results: Results, scenarios: Sequence[str], tools: Sequence[Tool]) -> str:
    first_ours = next((tool.name for tool in tools if tool.ours), "")
    several = sum(tool.ours and not tool.keeps for tool in tools) > 1
    compared = ["rsync", "unison", *([first_ours] if several else [])]
    header = ["scenario", "tool", "wall s", "min-max", "flush s", "CPU s", "peak MiB", "wire MB"]
    lines = [[*header, *(f"to {name}" for name in compared)], ["---"] * 2 + ["--:"] * (6 + len(compared))]
    for scenario in scenarios:
        for tool in tools:
            if costs := list(results.costs.get((scenario, tool.name), {}).values()):
                ratios = [
                    "" if name == tool.name else _ratio(results.paired(scenario, tool.name, name))
                    for name in compared
                ]
                lines.append([scenario, tool.name, *_cells(costs), *ratios])
    return _rendered(lines)


def _cells(costs: list[Cost]) -> Iterator[str]:
    walls = [cost.wall for cost in costs]
    yield f"{median(walls):.3f}"
    yield f"{min(walls):.3f}-{max(walls):.3f}"
    yield f"{median(cost.flush for cost in costs):.2f}"
    yield f"{median(cost.cpu for cost in costs):.2f}"
    yield f"{median(cost.peak_mib for cost in costs):.0f}"
    wires = [cost.wire for cost in costs if cost.wire is not None]
    yield f"{median(wires) / MB:.3f}" if wires else ""


def _ratio(value: float | None) -> str:
    return f"{value:.2f}" if value else ""


def targets_table(
    all_results: Sequence[Results], tools: Sequence[Tool], scale: float, filesystem: str
) -> str:
    """A line for each limit of each scenario that ran."""
    lines = [["workload", "scenario", "link", "tool", "target", "measured", ""], ["---"] * 7]
    for results in all_results:
        for scenario in dict.fromkeys(scenario for scenario, _ in results.costs):
            medians = {tool.name: results.medians(scenario, tool.name) for tool in tools}
            known = {name: value for name, value in medians.items() if value}
            for tool in tools:
                link = KEPT if tool.keeps else results.link
                target = target_of(results.workload, scenario, link, filesystem)
                if tool.ours and tool.name in known:
                    lines += [
                        [results.workload, scenario, results.link, tool.name, limit, measured, word]
                        for limit, measured, word in (
                            (found.limit, found.measured, "met" if found.met else "MISSED")
                            for found in verdicts(target, known[tool.name], known, scale)
                        )
                    ]
    return _rendered(lines)


def _rendered(lines: list[list[str]]) -> str:
    """A Markdown table whose columns stand below each other."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )
