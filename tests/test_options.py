"""What the options of `sync` do: filters, modes, plans, and how it talks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2psync.cli.options import YEAR_SECONDS, Seconds
from p2psync.core.choose import Filter, Mode
from p2psync.core.model import Prefer
from p2psync.core.replica import PIECE_BYTES
from p2psync.local import LocalReplica
from p2psync.sync import Session
from tests.cli_support import (
    LONG_AGO_NS,
    assert_same,
    contents,
    history,
    on_terminal,
    p2psync,
    pair,
    replica,
    write,
)
from tests.support import Quiet, do_not_wait_for_disk, new_replica, opened, snapshot


@pytest.fixture
def roots(tmp_path: Path) -> tuple[Path, Path]:
    """Two replicas with changes on both sides, of which none is a conflict."""
    here, there = pair(tmp_path, {"a": "1", "b": "1", "gone": "1", "d/x": "1"})
    write(here / "a", "here")
    write(here / "d/new", "here")
    write(here / "large", "x" * 3000)
    write(there / "b", "there")
    (there / "gone").unlink()
    return here, there


BEFORE = {"a": b"here", "b": b"1", "d/new": b"here", "d/x": b"1", "gone": b"1", "large": b"x" * 3000}
THERE = {"a": b"1", "b": b"there", "d/x": b"1"}
BOTH = {"a": b"here", "b": b"there", "d/new": b"here", "d/x": b"1", "large": b"x" * 3000}


def left_out(here: Path, there: Path, *options: str) -> int:
    told: int = p2psync(here, "sync", "--json", *options, there).json["peers"][0]["left_out"]
    return told


@pytest.mark.parametrize(
    ("options", "out", "here_then", "there_then"),
    [
        (["--path", "d"], 4, BEFORE, {**THERE, "d/new": b"here"}),
        (["--path", "d/new", "--path", "b"], 3, {**BEFORE, "b": b"there"}, {**THERE, "d/new": b"here"}),
        (["--exclude", "[ab]", "--exclude", "large"], 3, None, {**THERE, "d/new": b"here"}),
        (["--exclude", "*", "--include", "a"], 4, BEFORE, {**THERE, "a": b"here"}),
        (["--max-size", "2K"], 1, None, {**BOTH, "large": None}),
        (["--mode", "push"], 2, BEFORE, {**BOTH, "gone": None}),
        (["--mode", "pull"], 3, {k: v for k, v in BEFORE.items() if k != "gone"} | {"b": b"there"}, THERE),
    ],
)
def test_a_run_is_about_what_it_is_told_and_the_next_one_takes_up_the_rest(
    roots: tuple[Path, Path],
    options: list[str],
    out: int,
    here_then: dict[str, bytes] | None,
    there_then: dict[str, bytes | None],
) -> None:
    here, there = roots
    assert left_out(here, there, *options) == out
    assert contents(there) == {path: data for path, data in there_then.items() if data is not None}
    assert here_then is None or contents(here) == here_then
    assert left_out(here, there, *options) == out
    assert left_out(here, there) == 0
    assert_same(here, there)
    assert contents(here) == BOTH


def test_a_path_that_is_nowhere_is_told_of(roots: tuple[Path, Path]) -> None:
    here, there = roots
    ran = p2psync(here, "sync", "--path", "nothere", "--path", "d", there, code=1)
    assert "nothere is not there, on either side, or is ignored" in ran.err
    p2psync(here, "sync", "--path", "b", there)


def test_a_run_about_a_part_does_not_say_that_all_is_in_step(roots: tuple[Path, Path]) -> None:
    here, there = roots
    said = p2psync(here, "sync", "--path", "d", there).out
    assert said.endswith("; done, 4 paths left out\n")
    assert p2psync(here, "sync", there).out.endswith("; in step\n")


def test_a_mirror_makes_the_peer_the_same_and_keeps_what_it_had(roots: tuple[Path, Path]) -> None:
    here, there = roots
    write(there / "only", "there")
    write(there / "a", "there too")
    p2psync(here, "sync", "--mode", "mirror", there)
    assert contents(here) == contents(there) == BEFORE
    assert {b"there", b"there too"} <= history(there)
    assert p2psync(here, "sync", "--json", there).json["plan"] == []
    assert p2psync(there, "sync", "--json", here).json["plan"] == []


def test_a_mirror_touches_nothing_here(roots: tuple[Path, Path]) -> None:
    here, there = roots
    for root in roots:
        write(root / "same", "made on both sides")
    before = (here / "same").stat().st_mtime_ns
    os.utime(there / "same", ns=(before + 10**9, before + 10**9))
    p2psync(here, "sync", "--mode", "mirror", there)
    assert (here / "same").stat().st_mtime_ns == (there / "same").stat().st_mtime_ns == before


def test_a_mirror_is_guarded_as_any_sync(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"a": "1"})
    for number in range(40):
        write(there / f"mine-{number}", "x")
    assert "would be deleted" in p2psync(here, "sync", "--mode", "mirror", there, code=4).err
    assert len(contents(there)) == 41


def test_patterns_come_from_files_and_from_the_settings_of_a_peer(roots: tuple[Path, Path]) -> None:
    here, there = roots
    write(here.parent / "patterns", "# no\nlarge\n\na")
    assert left_out(here, there, "--exclude-from", str(here.parent / "patterns")) == 2
    p2psync(here, "peer", "add", "there", there)
    with (here / ".p2psync/config.toml").open("a") as config:
        config.write('\nmode = "push"\npaths = ["large", "gone"]\nexclude = ["gone"]\n')
    write(there / "b", "again")
    p2psync(here, "sync")
    assert contents(there)["large"] == b"x" * 3000
    assert contents(here)["b"] == b"there"


def test_what_is_mounted_is_left_out_if_that_is_wanted(roots: tuple[Path, Path]) -> None:
    assert left_out(*roots, "-x") == 0  # nothing is


def test_a_file_that_changed_without_a_trace_is_found_by_reading_it(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {"f": "old"})
    os.utime(here / "f", ns=(LONG_AGO_NS, LONG_AGO_NS))
    p2psync(here, "sync", there)
    before = (here / "f").stat()
    with (here / "f").open("r+") as file:
        file.write("new")
    os.utime(here / "f", ns=(before.st_atime_ns, before.st_mtime_ns))
    manifest = p2psync(here, "sync", "--checksum", there)
    assert contents(there) == {"f": b"new"}, manifest.out


# -- plans


def test_just_the_plan_that_was_made_is_carried_out(roots: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = roots
    plan = tmp_path / "plan.json"
    plan.write_text(p2psync(here, "sync", "-n", "--json", there).out)
    p2psync(here, "sync", "--plan", plan)
    assert contents(here) == contents(there) == BOTH
    again = p2psync(here, "sync", "--plan", plan, code=4)
    assert "something has changed since the plan" in again.err


def test_a_plan_that_does_not_fit_any_more_changes_nothing(roots: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = roots
    plan = tmp_path / "plan.json"
    plan.write_text(p2psync(here, "sync", "-n", "--json", there).out)
    write(there / "surprise", "!")
    before = contents(here), contents(there)
    assert "Make a plan anew" in p2psync(here, "sync", "--plan", plan, code=4).err
    assert (contents(here), contents(there)) == before
    (there / "surprise").unlink()
    p2psync(here, "sync", "--plan", plan)
    assert contents(there) == BOTH


def test_a_plan_lets_through_what_a_guard_would_refuse(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {f"f{number}": "1" for number in range(40)})
    for number in range(40):
        (here / f"f{number}").unlink()
    plan = tmp_path / "plan.json"
    plan.write_text(p2psync(here, "sync", "-n", "--json", there, code=4).out)
    p2psync(here, "sync", "--plan", plan)
    assert contents(there) == {}


def test_a_plan_is_about_several_peers(roots: tuple[Path, Path], tmp_path: Path) -> None:
    here = replica(tmp_path / "new", {"f": "1"})
    for name in ("one", "two"):
        p2psync(here, "peer", "add", name, replica(tmp_path / name))
    plan = tmp_path / "plan.json"
    plan.write_text(p2psync(here, "sync", "-n", "--json").out)
    write(here / ".p2pignore", "x")
    (here / ".p2pignore").unlink()
    p2psync(here, "sync", "--plan", plan)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == {"f": b"1"}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"peers": [{}]}', "\xff"])
def test_what_is_no_plan_is_refused(roots: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    (tmp_path / "plan").write_bytes(text.encode("latin-1"))
    assert "is no plan" in p2psync(roots[0], "sync", "--plan", tmp_path / "plan", roots[1], code=2).err


def test_a_dry_run_is_a_table_with_the_greatest_surprises_first(roots: tuple[Path, Path]) -> None:
    here, there = roots
    p2psync(here, "peer", "add", "p", there)
    write(here / "both", "1\n")
    write(there / "both", "2\n")
    lines = p2psync(here, "sync", "-n", code=1).out.splitlines()
    assert lines[0] == "deleted  here      1 B  gone  (deleted on p)"
    assert "(conflict)" in lines[1]
    assert "new      on p  2.9 KiB  large  (new here)" in lines
    assert lines[-1].startswith("p: would be: ")
    assert "\x1b[31mdeleted" in on_terminal(here, "sync", "-n", code=1).out


def test_what_moves_is_told_as_that(tmp_path: Path) -> None:
    here, there = pair(tmp_path, {**{f"d/{name}": name for name in "abcdefgh"}, "f": "file", "g": "stays"})
    (here / "d").rename(here / "e")
    (here / "f").rename(here / "h")
    assert p2psync(here, "status").out.splitlines()[1:3] == [
        "  moved        d -> e  (9 paths)",
        "  moved        f -> h",
    ]
    assert len(p2psync(here, "status", "--json").json["changes"]) == 20
    assert p2psync(here, "sync", "-n", there).out.splitlines() == [
        f"moved  on {there}  9 paths  d -> e  (moved here)",
        f"moved  on {there}      4 B  f -> h  (moved here)",
        f"{there}: would be: 10 moved on {there}",
    ]
    said = p2psync(here, "sync", "-v", there).out.splitlines()
    assert [line.split()[-4:] for line in said[:2]] == [["moved", "d", "->", "e"], ["moved", "f", "->", "h"]]
    assert said[2].startswith(f"{there}: 10 moved on {there} in ")


# -- how it talks


def test_progress_can_be_lines_or_json_or_nothing(roots: tuple[Path, Path]) -> None:
    here, there = roots
    plain = p2psync(here, "sync", "--progress", "plain", there).err.splitlines()
    assert plain[0] == "p2psync: scanning" and any("copying 0/" in line for line in plain)
    write(here / "a", "more")
    told = [json.loads(line) for line in p2psync(here, "sync", "--progress", "json", there).err.splitlines()]
    assert [one["step"] for one in told][:3] == ["scanning", "comparing", "copying"]
    assert on_terminal(here, "sync", "--progress", "off", there).err == ""


class Watching(Quiet):
    """A Progress that writes down what is at hand."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def advance(self, files: int, size: int, path: bytes = b"") -> None:
        if path not in self.seen[-1:]:
            self.seen.append(path)


@pytest.mark.parametrize("order", [1, -1])
def test_the_file_at_hand_is_told_in_whatever_order_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: int
) -> None:
    real = LocalReplica.read
    monkeypatch.setattr(LocalReplica, "read", lambda self, digests: real(self, digests[::order]))
    large = os.urandom(3 * PIECE_BYTES)
    tree = {b"a": large[::-1], b"b": large, b"c": large, b"d": os.urandom(PIECE_BYTES)}
    near, far = new_replica(tmp_path / "near", tree), new_replica(tmp_path / "far", {b"d": b"other"})
    watching = Watching()
    with opened(near) as home, opened(far) as peer:
        session = Session(home, peer, watching)
        session.scan(keep=True)
        session.round(Prefer.NEWEST)
    assert [path for path in watching.seen if path in (b"a", b"b", b"c")] == [b"a", b"b"][::order]


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"f": "1"})
    ssh = tmp_path / "slow-ssh"
    ssh.write_text("#!/bin/sh\nexec sleep 600\n")
    ssh.chmod(0o755)
    ran = p2psync(here, "sync", "--timeout", "0.5", "-e", str(ssh), "host:there", code=5)
    assert "not done after 0.5 s (--timeout); the next sync carries on" in ran.err


@pytest.mark.parametrize("seconds", ["inf", "1e30"])
def test_who_would_wait_for_ever_waits_as_long_as_systems_can(tmp_path: Path, seconds: str) -> None:
    here = replica(tmp_path / "here", {"f": "1"})
    p2psync(here, "sync", "--timeout", seconds, "--create", tmp_path / "there")
    assert Seconds(1).convert(seconds, None, None) == YEAR_SECONDS


def test_questions_are_answered_for_those_who_cannot(tmp_path: Path) -> None:
    here = replica(tmp_path / "here", {"f": "1"})
    (tmp_path / "there").mkdir()
    assert "--create makes it one" in on_terminal(here, "sync", "--batch", tmp_path / "there", code=3).err
    p2psync(here, "sync", "--yes", tmp_path / "there")
    assert contents(tmp_path / "there") == {"f": b"1"}


@pytest.mark.parametrize(
    ("option", "comes"), [(["--path", "f"], True), (["--exclude", "*.sync-conflict-*"], False)]
)
def test_what_lost_a_conflict_elsewhere_is_not_replaced_without_its_copy(
    tmp_path: Path, option: list[str], comes: bool
) -> None:
    here, there, third = (replica(tmp_path / name) for name in ("here", "there", "third"))
    for number, root in enumerate((here, there)):
        write(root / "f", f"by {root.name}", mtime_ns=LONG_AGO_NS + number)
    p2psync(here, "sync", third)
    p2psync(there, "sync", third, code=1)
    p2psync(here, "sync", third, *option)
    assert sorted(contents(here).values()) == ([b"by here", b"by there"] if comes else [b"by here"])


# -- whatever was left out, the next sync without a filter converges


FILTERS = st.builds(
    Filter,
    st.sampled_from([Mode.TWO_WAY, Mode.PUSH, Mode.PULL]),
    st.sampled_from([(), (b"a",), (b"d/x", b"b")]),
    st.sampled_from([b"", b"a\n", b"d/\n", b"*.sync-conflict-*\n"]),
    st.sampled_from([None, 2]),
)
EDITS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from(["a", "b", "d/x", "d/y", "d"]),
        st.sampled_from([None, "1", "22", "333"]),
    ),
    max_size=4,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(EDITS, FILTERS), min_size=1, max_size=3))
def test_after_any_filtered_syncs_a_whole_one_converges_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    rounds: list[tuple[list[tuple[bool, str, str | None]], Filter]],
) -> None:
    do_not_wait_for_disk(monkeypatch)
    folder = tmp_path_factory.mktemp("filtered")
    roots = new_replica(folder / "here"), new_replica(folder / "there")
    written: set[bytes] = set()
    for edits, wanted in [*rounds, ([], Filter())]:
        for here, name, data in edits:
            path = roots[not here] / name
            if data is None and path.is_file():
                path.unlink()
            elif (
                data is not None and not path.is_dir() and (path.parent.is_dir() or not path.parent.exists())
            ):
                unique = f"{data}{len(written)}"
                write(path, unique)
                written.add(unique.encode())
        before = [snapshot(root) for root in roots]
        with opened(roots[0]) as home, opened(roots[1]) as peer:
            session = Session(home, peer, Quiet())
            session.scan(True)
            session.round(Prefer.BOTH, wanted=wanted)
        if wanted.mode is Mode.PUSH:
            assert snapshot(roots[0]) == before[0]
        if wanted.mode is Mode.PULL:
            assert snapshot(roots[1]) == before[1]
    assert snapshot(roots[0]) == snapshot(roots[1])
