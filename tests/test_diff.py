"""`diff` tells how two replicas differ now, and changes neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli_support import on_terminal, p2psync, pair, replica, snapshot, write


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Two replicas that differ in many ways."""
    here, there = pair(tmp_path, {"t": "1\n2\n3\n", "same": "=", "mode": "m", "gone": "g\n", "kind": "k"})
    p2psync(here, "peer", "add", "peer", there)
    write(here / "t", "1\ntwo\n3\n")
    write(there / "d/new", "n\n")
    write(here / "binary", b"\0" * 2000)
    (here / "mode").chmod(0o600)
    (here / "gone").unlink()
    (there / "kind").unlink()
    os.symlink("x\ny", there / "kind")
    return here, there


TEXT = """\
only here: binary (2.0 KiB)
only on peer: d (folder)
--- peer:d/new
+++ /dev/null
@@ -1 +0,0 @@
-n
--- peer:gone
+++ /dev/null
@@ -1 +0,0 @@
-g
differ: kind (1 B here, link to x\\ny on peer)
permissions differ: mode (600 here, 644 on peer)
--- peer:t
+++ t
@@ -1,3 +1,3 @@
 1
-2
+two
 3
"""


def test_all_differences_are_told_and_nothing_is_changed(roots: tuple[Path, Path]) -> None:
    before = [snapshot(root) for root in roots]
    assert p2psync(roots[0], "diff").out == TEXT
    assert p2psync(roots[0], "diff", "peer").out == TEXT
    assert p2psync(roots[0], "diff", roots[1], "t").out.startswith("--- peer:t\n")
    assert p2psync(roots[0], "diff").out == TEXT  # it was not taken for a sync
    assert [snapshot(root) for root in roots] == before
    assert p2psync(roots[1] / "d", "diff", roots[0], "new").out.endswith("@@ -0,0 +1 @@\n+n\n")


def test_only_some_paths_a_summary_an_exit_code(roots: tuple[Path, Path]) -> None:
    here, _ = roots
    assert p2psync(here, "diff", "--stat", "t", "d").out == (
        "only on peer: d (folder)\n+0 -1  d/new\n+1 -1  t\n3 paths differ\n"
    )
    assert p2psync(here, "diff", "--exit-code", "same").out == ""
    p2psync(here, "diff", "--exit-code", "t", code=1)
    told = p2psync(here, "diff", "--json").json["differences"]
    assert [one["path"] for one in told] == ["binary", "d", "d/new", "gone", "kind", "mode", "t"]
    assert told[4]["here"]["kind"] == "file" and told[4]["there"]["kind"] == "symlink"


def test_it_is_coloured_on_a_terminal_unless_that_is_not_wanted(roots: tuple[Path, Path]) -> None:
    here, _ = roots
    assert "\x1b[32m+two" in on_terminal(here, "diff", "t").out
    assert "\x1b[" not in on_terminal(here, "--color", "never", "diff", "t").out
    assert "\x1b[32m+two" in p2psync(here, "--color", "always", "diff", "t").out
    assert "\x1b[" not in p2psync(here, "diff", "t").out


def test_the_peer_has_to_be_named_where_there_are_several(tmp_path: Path) -> None:
    here = replica(tmp_path / "here")
    assert "none is configured" in p2psync(here, "diff", code=2).err
    for name in ("one", "two"):
        p2psync(here, "peer", "add", name, replica(tmp_path / name))
    assert "one, two" in p2psync(here, "diff", code=2).err
    assert p2psync(here, "diff", "two").out == ""
