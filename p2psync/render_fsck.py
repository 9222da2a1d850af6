"""What people and scripts see of a check. Words only."""

from __future__ import annotations

import json
from collections import Counter

from p2psync.core.damage import Finding, What
from p2psync.core.paths import printable, shown
from p2psync.fsck import Report
from p2psync.words import json_path, size_of


def text(report: Report, repair: bool) -> str:
    """Return what was found as lines of text, with a summary at the end.

    Args:
        report: of the check.
        repair: was it to repair what it could?
    """
    lines = [_line(finding, report) for finding in report.findings]
    return "".join(f"{line}\n" for line in [*lines, _summary(report, repair)])


def _line(finding: Finding, report: Report) -> str:
    place = f"{finding.what} on {printable(finding.peer)}" if finding.peer else finding.what
    line = ": ".join(filter(None, (place, shown(finding.path), printable(finding.why))))
    if finding.what is What.BASE and report.repaired_bases:
        line += "; forgotten"
    if finding.what is What.MANIFEST and finding.why and finding.why == report.completed:
        line += "; completed"
    if _is_mended(finding):
        if finding.path in report.repaired:
            line += f"; repaired from {report.repaired[finding.path]}"
        elif finding.path in report.left:
            line += f"; not repaired: {printable(report.left[finding.path])}"
    return line


def _summary(report: Report, repair: bool) -> str:
    counts = Counter(finding.what for finding in report.findings)
    parts = [f"{count} {what}" for what, count in counts.items()] or ["all sound"]
    if report.repaired:
        parts.append(f"{len(report.repaired)} repaired")
    compared = f", {report.compared} compared with the peer" if report.compared else ""
    rest = "" if report.is_complete else "; the rest could not be checked"
    if report.gave_up_manifest:
        rest += "; the next sync makes the manifest anew"
    elif not (report.is_complete or report.error):
        rest += "; --repair has the next sync make the manifest anew"
    files = "1 file" if report.files == 1 else f"{report.files} files"
    read = f"{files} ({size_of(report.size)}) read{compared}: {', '.join(parts)}{rest}"
    if not repair and any(one.what is What.ROTTEN and not one.peer for one in report.findings):
        read += "; --repair puts rotten files right where their bytes are to be found"
    return read


def as_json(report: Report) -> str:
    """Return what was found as one JSON document."""
    findings = [
        {
            "what": finding.what,
            "side": finding.peer or "local",
            "path": json_path(finding.path),
            "why": finding.why,
            "damage": finding.is_damage,
            "repaired": report.repaired.get(finding.path) if _is_mended(finding) else None,
            "left": report.left.get(finding.path) if _is_mended(finding) else None,
        }
        for finding in report.findings
    ]
    document = {
        "findings": findings,
        "files": report.files,
        "bytes": report.size,
        "compared": report.compared,
        "complete": report.is_complete,
        "error": str(report.error) if report.error else None,
        "exit_code": int(report.exit_code),
    }
    return json.dumps(document, indent=2) + "\n"


def _is_mended(finding: Finding) -> bool:
    """Is it something that a repair may put right?"""
    return finding.what in (What.ROTTEN, What.MANIFEST) and not finding.peer
