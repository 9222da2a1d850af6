"""Ten bugs that the tests must find: each is planted into a copy of the repository, whose tests must go red.

Run by hand, `python tests/canaries.py`; it ends with 1 if a bug was not found. Owned here: the bugs, and the
smallest set of tests that is to find each. That every bug can still be planted, test_canaries.py checks.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parent.parent
DEADLINE = 600
"""Seconds for the tests of one bug: one that makes them hang counts as found."""


class Edit(NamedTuple):
    """A replacement; the old text must be in the file just once."""

    file: str
    old: str
    new: str


class Canary(NamedTuple):
    """A bug."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """The modules that are to find it, the quickest first."""


class Mismatch(Exception):
    """A bug cannot be planted: the source is not what it was."""


def _canary(name: str, file: str, old: str, new: str, *tests: str) -> Canary:
    return Canary(name, (Edit(file, old, new),), tests)


CANARIES = (
    _canary(
        "skip fsync",
        "p2psync/local.py",
        "holders.add()  # the disk takes longer\n        wait_for_disk()\n",
        "holders.add()  # the disk takes longer\n",
        "tests/test_durable.py",
    ),
    _canary(
        "rename before hash check",
        "p2psync/stage.py",
        "len(data) != self._wanted[paths[0]].size or xxh3_128_digest(data) != digest",
        "len(data) != self._wanted[paths[0]].size",
        "tests/test_stage.py",
        "tests/test_apply.py",
    ),
    _canary(
        "bump the version before the apply",
        "p2psync/local.py",
        "                failed.add(outcome.path)\n            else:\n",
        "                failed.add(outcome.path)\n"
        "                step = next(step for step in transitions if step.path == outcome.path)\n"
        "                row = self._manifest.row(step.path)\n"
        "                if row is not None:\n"
        "                    records.append(Record(step.path, row._replace(entry=step.wanted), row.entry))\n"
        "            else:\n",
        "tests/test_apply.py",
        "tests/test_sync.py",
    ),
    _canary(
        "forget one vector entry on join",
        "p2psync/core/vector.py",
        "        for replica, tick in other._ticks.items():\n",
        "        for replica, tick in list(other._ticks.items())[1:]:\n",
        "tests/core/test_vector.py",
    ),
    _canary(
        "treat EACCES as absent",
        "p2psync/scan.py",
        "        except OSError as error:\n"
        "            self._problem(path, error)\n            self._keep_mounts(path)",
        "        except PermissionError:\n"
        "            self._forget_below(path, visit.ignore or Ignore.top(self._exclude), False)\n"
        "            return\n"
        "        except OSError as error:\n"
        "            self._problem(path, error)\n            self._keep_mounts(path)",
        "tests/test_scan.py",
    ),
    _canary(
        "drop tombstones at once",
        "p2psync/manifest.py",
        '            "INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",\n'
        "            (self._columns(record, seq) for record in records),\n        )\n",
        '            "INSERT OR REPLACE INTO entry VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",\n'
        "            (self._columns(record, seq) for record in records),\n        )\n"
        '        self._db.execute("DELETE FROM entry WHERE kind = 0")\n',
        "tests/test_manifest.py",
        "tests/test_scan.py",
    ),
    _canary(
        "pick the winner by mtime",
        "p2psync/core/reconcile.py",
        "    return (entry.revision, entry.mtime_ns, entry.digest,",
        "    return (entry.mtime_ns, entry.revision, entry.digest,",
        "tests/core/test_reconcile.py",
    ),
    _canary(
        "reuse a tick after restart",
        "p2psync/manifest.py",
        'max(self._number("tick") + 1, time.time_ns() // 1000)',
        "time.time_ns() // 1000",
        "tests/test_manifest.py",
    ),
    Canary(
        "skip the expected-check on delete",
        (
            Edit(
                "p2psync/apply.py",
                "        _check_unchanged(name, directory, row, wanted if amends else row.entry)\n",
                "        if wanted.alive:\n"
                "            _check_unchanged(name, directory, row, wanted if amends else row.entry)\n",
            ),
            Edit(
                "p2psync/apply.py",
                "        if not _is_expected(kept, shelf, row):\n",
                "        if False:\n",
            ),
        ),
        ("tests/test_apply.py",),
    ),
    _canary(
        "conflict copy name without the digest",
        "p2psync/core/paths.py",
        "    full = _base32(digest)\n",
        '    full = "A" * 26\n',
        "tests/core/test_paths.py",
    ),
)


def plant(canary: Canary, repository: Path) -> dict[Path, str]:
    """Return the files of `repository` that the bug changes, with what is in them then.

    Raises:
        Mismatch: a text to be replaced is not there, or there more than once.
    """
    planted: dict[Path, str] = {}
    for file, old, new in canary.edits:
        path = repository / file
        text = planted.get(path) or path.read_text("utf-8")
        if text.count(old) != 1:
            raise Mismatch(f"{canary.name}: {file} has {text.count(old)} times:\n{old}")
        planted[path] = text.replace(old, new)
    return planted


class Verdict(NamedTuple):
    """What the tests said."""

    red: bool
    first: str
    """The first test that failed, or what else happened."""
    seconds: float


def try_out(canary: Canary | None, tests: Sequence[str]) -> Verdict:
    """Run tests in a copy of the repository, with a bug in it or as it is."""
    with tempfile.TemporaryDirectory(prefix="canary-") as folder:
        copy = Path(folder) / "repository"
        skipped = shutil.ignore_patterns("__pycache__", ".*cache", "bench")
        for name in ("p2psync", "tests"):
            shutil.copytree(REPOSITORY / name, copy / name, ignore=skipped)
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        if canary is not None:
            for path, text in plant(canary, copy).items():
                path.write_text(text, "utf-8")
        return _run(copy, Path(folder), tests)


def _run(copy: Path, folder: Path, tests: Sequence[str]) -> Verdict:
    command = [sys.executable, "-m", "pytest", "-x", "-rf", "--tb=no", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    try:
        ran = subprocess.run(
            [*command, f"--basetemp={folder / 'tests'}", *tests],
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
        )
    except subprocess.TimeoutExpired:
        return Verdict(True, f"no end within {DEADLINE} s", time.monotonic() - began)
    failed = re.search(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode not in (0, 1) or (ran.returncode == 1 and failed is None):
        raise SystemExit(f"the tests could not be run:\n{ran.stdout}")
    return Verdict(ran.returncode == 1, failed[1] if failed else "", time.monotonic() - began)


def main() -> int:
    """Plant the bugs that were asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", choices=[canary.name for canary in CANARIES])
    only = parser.parse_args().only
    canaries = [canary for canary in CANARIES if only in (None, canary.name)]
    tests = sorted({test for canary in canaries for test in canary.tests})
    healthy = try_out(None, tests)
    if healthy.red:
        print(f"the tests are red without a bug: {healthy.first}")
        return 1
    print(f"{'green':5}  {healthy.seconds:5.1f} s  without a bug", flush=True)
    missed = 0
    for canary in canaries:
        verdict = try_out(canary, canary.tests)
        missed += not verdict.red
        word = "red" if verdict.red else "GREEN"
        print(
            f"{word:5}  {verdict.seconds:5.1f} s  {canary.name}  {verdict.first or 'not found'}", flush=True
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
