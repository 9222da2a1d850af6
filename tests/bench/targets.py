"""What p2psync has set itself to reach, and whether it does: as ratios of medians in one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

PEAK_MIB = 150.0
REFLINKS = ("xfs", "btrfs")


@dataclass(frozen=True)
class Target:
    """Upper limits of medians; None is no limit. Wall times are ratios to that tool in the same run."""

    rsync: float | None = None
    unison: float | None = None
    wall: float | None = None
    """Seconds."""
    wire: int | None = None
    """Bytes, at full scale."""
    peak: float | None = PEAK_MIB


KEPT = "ssh, kept"
"""Over a connection that was kept."""
KB, MB = 1000, 1_000_000
TARGETS = {
    ("tiny", "nothing changed", "local"): Target(wall=0.12),
    ("tiny", "nothing changed", "ssh"): Target(rsync=1.4),
    ("tiny", "nothing changed", KEPT): Target(rsync=0.6),
    ("many-small", "first copy", "local"): Target(rsync=0.9),
    ("many-small", "first copy", "ssh"): Target(rsync=0.75, wire=165 * MB),
    ("many-small", "nothing changed", "local"): Target(rsync=0.9),
    ("many-small", "nothing changed", "ssh"): Target(rsync=0.8, unison=0.8, wire=20 * KB),
    ("many-small", "100 edits", "local"): Target(rsync=0.9),
    ("many-small", "100 edits", "ssh"): Target(rsync=0.9, unison=0.9),
    ("many-small", "rename folder", "local"): Target(rsync=0.9),
    ("many-small", "rename folder", "ssh"): Target(rsync=0.8, wire=1 * MB),
    ("many-small", "delete folder", "local"): Target(rsync=1.2),
    ("many-small", "delete folder", "ssh"): Target(rsync=1.0),
    ("source-tree", "first copy", "local"): Target(rsync=0.6),
    ("source-tree", "first copy", "ssh"): Target(rsync=0.9, wire=224 * MB),
    ("source-tree", "nothing changed", "local"): Target(rsync=1.0),
    ("source-tree", "nothing changed", "ssh"): Target(rsync=1.0, unison=1.0),
    ("one-big", "first copy", "local"): Target(rsync=0.35),
    ("one-big", "first copy", "ssh"): Target(rsync=0.6),
    ("one-big", "1 MiB overwritten", "local"): Target(rsync=0.5),
    ("one-big", "1 MiB overwritten", "ssh"): Target(rsync=1.0, wire=1_300 * KB),
    ("one-big", "100 bytes inserted", "local"): Target(rsync=0.6),
    ("one-big", "100 bytes inserted", "ssh"): Target(rsync=1.0, wire=300 * KB),
    ("one-big", "10 MiB appended", "local"): Target(rsync=0.6),
    ("one-big", "10 MiB appended", "ssh"): Target(rsync=1.0, wire=10_800 * KB),
    ("one-big", "renamed", "local"): Target(rsync=0.15),
    ("one-big", "renamed", "ssh"): Target(rsync=0.1, wire=20 * KB),
    ("few-large", "first copy", "local"): Target(rsync=0.35),
    ("few-large", "first copy", "ssh"): Target(rsync=0.6, wire=1_300 * MB),
    ("few-large", "4 KiB in 4 files", "local"): Target(rsync=0.8),
    ("few-large", "4 KiB in 4 files", "ssh"): Target(rsync=0.9, wire=500 * KB),
    ("million", "first copy", "local"): Target(peak=None),
    ("million", "nothing changed", "local"): Target(wall=12.0, peak=200.0),
}
_WITH_REFLINKS = {
    ("one-big", scenario, "local"): Target(rsync=0.2)
    for scenario in ("1 MiB overwritten", "100 bytes inserted", "10 MiB appended")
}


@dataclass(frozen=True)
class Medians:
    """Of one tool in one scenario."""

    wall: float
    peak_mib: float
    wire: float | None


@dataclass(frozen=True)
class Verdict:
    limit: str
    measured: str
    met: bool


def target_of(workload: str, scenario: str, link: str, filesystem: str) -> Target:
    """Every line has at least the limit of memory."""
    key = (workload, scenario, link)
    if filesystem in REFLINKS and key in _WITH_REFLINKS:
        return _WITH_REFLINKS[key]
    return TARGETS.get(key, Target())


def verdicts(target: Target, ours: Medians, others: Mapping[str, Medians], scale: float) -> Iterator[Verdict]:
    """Compare with each limit that can be judged: sizes only at full scale, ratios only to what ran."""
    for tool, limit in (("rsync", target.rsync), ("unison", target.unison)):
        if limit is not None and tool in others:
            ratio = ours.wall / others[tool].wall
            yield Verdict(f"wall ≤ {limit:g} × {tool}", f"{ratio:.2f} ×", ratio <= limit)
    if target.peak is not None:
        yield Verdict(f"peak ≤ {target.peak:g} MiB", f"{ours.peak_mib:.0f} MiB", ours.peak_mib <= target.peak)
    if scale != 1.0:
        return
    if target.wall is not None:
        yield Verdict(f"wall ≤ {target.wall:g} s", f"{ours.wall:.3g} s", ours.wall <= target.wall)
    if target.wire is not None and ours.wire is not None:
        measured = f"{ours.wire / MB:.3f} MB"
        yield Verdict(f"wire ≤ {target.wire / MB:g} MB", measured, ours.wire <= target.wire)
