"""The benchmark still runs: all its workloads and scenarios, at a size that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import trees
from tests.bench.scenarios import SCENARIOS
from tests.bench.targets import TARGETS, Medians, Target, verdicts
from tests.bench.trees import Reader, differences
from tests.bench.workloads import WORKLOADS

BENCH = Path(__file__).parent / "bench" / "run.py"


def test_every_workload_is_made_and_every_scenario_changes_it(tmp_path: Path) -> None:
    for workload in WORKLOADS.values():
        root = tmp_path / workload.name
        workload.make(root, 0.002 if workload.name != "one-big" else 0.01)
        reader = Reader(root)
        seen = reader.read()
        assert seen
        for name in workload.scenarios:
            SCENARIOS[name].change(root, 0, 1)
            now = reader.read()
            assert (now == seen) is (name in ("first copy", "nothing changed")), (workload.name, name)
            seen = now
        assert seen == Reader(root).read()


def test_the_same_seed_makes_the_same_tree(tmp_path: Path) -> None:
    for root in (tmp_path / "one", tmp_path / "other"):
        WORKLOADS["many-small"].make(root, 0.002)
    assert Reader(tmp_path / "one").read() == Reader(tmp_path / "other").read()


def test_what_arrived_otherwise_is_named() -> None:
    file = trees.Item(0o644, 1_000, b"digest")
    wanted = {"same": file, "gone": file, "mode": file, "late": file, "other": file}
    found = {
        "same": file,
        "new": file,
        "mode": file._replace(mode=0o600),
        "late": file._replace(mtime_ns=2_000),
        "other": file._replace(digest=b"x"),
    }
    named = [line.partition(":")[0] for line in differences(wanted, found, 500)]
    assert sorted(named) == ["late", "missing", "mode", "other", "unwanted"]
    assert not any("late" in line for line in differences(wanted, found, 1_000))


def test_a_target_is_judged_by_what_ran() -> None:
    ours, rsync = Medians(1.0, 100, 900), Medians(2.0, 10, None)
    target = Target(rsync=0.4, unison=0.9, wall=2.0, wire=1000)
    words = [(verdict.limit, verdict.met) for verdict in verdicts(target, ours, {"rsync": rsync}, 1.0)]
    assert words == [
        ("wall ≤ 0.4 × rsync", False),
        ("peak ≤ 150 MiB", True),
        ("wall ≤ 2 s", True),
        ("wire ≤ 0.001 MB", True),
    ]
    assert len(list(verdicts(target, ours, {"rsync": rsync}, 0.1))) == 2


def test_every_target_belongs_to_what_is_run() -> None:
    for workload, scenario, _ in TARGETS:
        assert scenario in WORKLOADS[workload].scenarios
    assert {name for workload in WORKLOADS.values() for name in workload.scenarios} == SCENARIOS.keys()


def test_the_command_measures_and_checks_and_tells_what_was_wrong(tmp_path: Path) -> None:
    """Two tools, of which one forgets to copy."""
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 0\n")
    broken.chmod(0o755)
    options = ["--workload", "tiny", "--only", "local", "--runs", "1", "--workdir", str(tmp_path)]
    options += ["--filesystem", "none"]
    good = f"good={sys.executable} -m p2psync"
    done = subprocess.run(
        [
            sys.executable,
            str(BENCH),
            *options,
            "--tools",
            "p2psync",
            "--p2psync",
            good,
            "--p2psync",
            str(broken),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "p2psync-2: 12 differences in the target" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith("| nothing changed | good")]
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == [broken]


@pytest.mark.parametrize("option", [["--workload", "huge"], ["--scale", "0"], ["--runs", "0"]])
def test_wrong_usage_is_told(option: list[str]) -> None:
    done = subprocess.run([sys.executable, str(BENCH), *option], capture_output=True, text=True)
    assert done.returncode == 2
    assert "error:" in done.stderr
