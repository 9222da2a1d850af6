"""Whatever goes wrong at whichever call: nothing is lost, and the next run mends all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from p2psync.core.paths import is_conflict_copy
from tests.cli_support import fake_ssh, wait_for
from tests.faults import MERGED, SCENARIOS, Case, Judge, make_case, remove
from tests.powercut import Change, Replay, at_random, everything, names_only, nothing
from tests.powercut import steps as recorded_steps
from tests.shim import CAN_FAIL, LOOKING, Fault, Nursery, Ran, Side
from tests.sshd import Sshd
from tests.support import mounted
from tests.test_ssh import unlocked


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is such a thing: the same calls in half of the time."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="p2psync-", dir=memory) as made:
        yield Path(made)


@pytest.fixture
def transport(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    return fake_ssh(folder) if request.param == "ssh" else []


def check_said(ran: Ran) -> None:
    """Is what was said in words?"""
    said = ran.out + ran.err
    assert "Traceback" not in said, said
    assert not re.search(r"\b[A-Z]\w+(Error|Exception|Interrupt)\b", said), said


@contextlib.contextmanager
def blaming(hit: Path) -> Iterator[None]:
    """Say at which call it went wrong, if what follows fails."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"it went wrong at call {hit.read_text()}")
        raise
    hit.unlink()


# -- kill everywhere


def every(stride: int, *salt: str) -> Iterator[int]:
    """Yield every `stride`-th number, from one on that differs from case to case."""
    return count(1 + sum(map(len, salt)) % stride, stride)


@pytest.mark.parametrize("stride", [53, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["near", "far"])
@pytest.mark.parametrize("transport", ["path", "ssh"], indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_killed_at_any_call_is_finished_by_the_next(
    nursery: Nursery,
    folder: Path,
    scenario: str,
    transport: list[str],
    side: Side,
    stride: int,
    record_property: Callable[[str, object], None],
) -> None:
    case = make_case(nursery, folder, scenario, transport)
    judge = Judge(case)
    hit = folder / "hit"
    points = 0
    for at in every(stride, scenario, side, *transport[:1]):
        case.begin()
        ran = case.run(Fault(side, at, hit=str(hit)))
        check_said(ran)
        if not hit.exists():
            break
        assert (ran.code == -signal.SIGKILL) if side == "near" else (ran.code in (0, 1, 5)), ran
        with blaming(hit):
            judge.check_broken()
            judge.check_mended()
        points += 1
    record_property("kill points", points)


@pytest.mark.parametrize("at", [70, 110, 130, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["near", "far"])
def test_a_run_through_a_real_sshd_that_is_killed_is_finished_by_the_next(
    nursery: Nursery,
    folder: Path,
    sshd: Sshd,
    side: Side,
    at: int,
    record_property: Callable[[str, object], None],
) -> None:
    case = make_case(nursery, folder, "later", ["-e", sshd.ssh_command])
    judge = Judge(case)
    case.begin()
    hit = folder / "hit"
    ran = case.run(Fault(side, at, hit=str(hit)))
    check_said(ran)
    assert ran.code == (-signal.SIGKILL if side == "near" else 5), ran
    wait_for(lambda: unlocked(case.far), "the far end to go")
    with blaming(hit):
        judge.check_broken()
        judge.check_mended()
    record_property("kill points", 1)


# -- errors everywhere


class Failure(NamedTuple):
    """One call that fails."""

    at: int
    call: str
    code: int
    lasting: bool


def failures(calls: list[str], stride: int, salt: int) -> Iterator[Failure]:
    """Yield every way for every `stride`-th call to fail, or one of them if not all calls are to be tried."""
    for at, call in islice(enumerate(calls, 1), salt % stride, None, stride):
        ways = list(product(sorted(CAN_FAIL[name_of(call)]), (False, True)))
        for code, lasting in ways if stride == 1 else [ways[at % len(ways)]]:
            yield Failure(at, call, code, lasting)


def name_of(call: str) -> str:
    return max((name for name in CAN_FAIL if f"{call} ".startswith(f"{name} ")), key=len)


@pytest.mark.parametrize("stride", [67, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["near", "far"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_after_an_error_at_any_call_the_next_run_mends_all(
    nursery: Nursery,
    folder: Path,
    scenario: str,
    side: Side,
    stride: int,
    record_property: Callable[[str, object], None],
) -> None:
    case = make_case(nursery, folder, scenario, [])
    judge = Judge(case)
    hit = folder / "hit"
    points = 0
    for at, _, code, lasting in failures(case.calls(side, errno.EIO), stride, len(scenario) + len(side)):
        case.begin()
        ran = case.run(Fault(side, at, code, lasting, hit=str(hit)), "--json")
        if not hit.exists():  # two threads took turns in another order, and this call cannot fail so
            continue
        with blaming(hit):
            first, *_ = hit.read_text().splitlines()  # one that lasts is hit again by what mends it
            unread = name_of(first.partition(" ")[2]) in READING
            check_error(ran, judge, unread)
            judge.check_broken(unread)
            judge.check_mended(unread)
        points += 1
    record_property("error points", points)


READING = ("open", "read", *LOOKING)


def check_error(ran: Ran, judge: Judge, unread: bool) -> None:
    """Is it said what failed, and done all the same what did not?"""
    check_said(ran)
    usage = ran.code == 2 and "Invalid value for '-C'" in ran.err
    assert usage or ran.code in (1, 3, 5), ran
    if ran.code != 1:
        return
    problems = [os.fsencode(problem["path"]) for problem in ran.json["problems"]]
    for side in ("near", "far"):
        for path in judge.unlike(side):
            told = any(is_about(problem, path) for problem in problems)
            assert told or (unread and path.startswith(MERGED)), f"{path!r} on {side}: {ran}"


def is_about(problem: bytes, path: bytes) -> bool:
    """Can the problem be why a path is not what it should be?"""
    if is_conflict_copy(path):
        return True
    return (path + b"/").startswith(problem + b"/" if problem else b"") or problem.startswith(path + b"/")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "2m"):
        yield place


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.parametrize("stride", [150, pytest.param(10, marks=pytest.mark.slow)])
def test_a_disk_that_really_is_full_is_told_of_and_filled_once_there_is_room(
    nursery: Nursery,
    small_disk: Path,
    folder: Path,
    stride: int,
    record_property: Callable[[str, object], None],
) -> None:
    case = make_case(nursery, folder, "later", [])
    judge = Judge(case)
    shutil.rmtree(case.far)
    case.far.symlink_to(small_disk / "far")
    shutil.rmtree(case.folder / "start" / "far" / ".p2psync" / "reserve")
    full = 0
    for free in range(0, 1400, stride):
        remove(small_disk / "far")
        resize(small_disk, "2m")
        case.begin(small_disk / "far")
        room = shutil.disk_usage(small_disk).free // 1024
        (small_disk / "filler").write_bytes(bytes(max(0, room - free) * 1024))
        ran = case.run(Fault(roomy=True), "--json")
        full += "No space" in ran.out + ran.err or "there is no room" in ran.out + ran.err
        check_said(ran)
        judge.check_broken()
        (small_disk / "filler").unlink()
        resize(small_disk, "64m")
        judge.check_mended()
    assert full > 3
    record_property("error points", full)


# -- the power goes


class Recorded(NamedTuple):
    """A run in which nothing went wrong, step by step."""

    case: Case
    judge: Judge
    steps: list[dict[str, Any]]

    def replays(self) -> dict[str, Replay]:
        """Return both replicas as they were before the first step."""
        self.case.begin()
        return {side: Replay(root) for side, root in self.case.roots.items()}

    def put(self, replays: dict[str, Replay], keep: Mapping[str, Callable[[Change], bool]]) -> None:
        """Make both replicas what a power cut left of them."""
        for side, root in self.case.roots.items():
            remove(root)
            replays[side].put(replays[side].cut(keep[side]), root)


@pytest.fixture
def recorded(nursery: Nursery, folder: Path) -> Recorded:
    if sys.platform != "linux":
        pytest.skip("finds the paths of open files in /proc")
    case = make_case(nursery, folder, "later", [])
    judge = Judge(case)
    case.begin()
    assert case.run(Fault(record=True)).code == 1
    return Recorded(case, judge, list(recorded_steps(folder / "trace")))


@pytest.mark.parametrize("side", ["near", "far"])
def test_contents_are_on_disk_before_renames_and_renames_before_the_commit(
    recorded: Recorded, side: Side
) -> None:
    unsynced: set[str] = set()
    begun: dict[int, set[str]] = {}
    commits = renames = 0
    for step in recorded.steps:
        if step["side"] != side:
            continue
        into_tree = step["what"] in ("rename", "exchange") and not (
            step["path"].startswith(".p2psync/") and step["other"].startswith(".p2psync/")
        )
        if step["what"] == "sync begins":
            begun[step["number"]] = set(unsynced)
        elif step["what"] == "sync ends":
            unsynced -= begun.pop(step["number"])
        elif step["what"] == "commit":
            commits += 1
            assert "renames" not in unsynced
        elif into_tree:
            renames += 1
            unsynced.add("renames")
            assert "contents" not in unsynced
        elif step["path"].startswith(".p2psync/stage/") and is_of_file(step):
            unsynced.add("contents")
    assert commits >= 4
    assert renames >= 15


def is_of_file(step: dict[str, Any]) -> bool:
    """Is it about a file, its bytes, permissions or time?"""
    return step["what"] == "write" or (step["what"] in ("make", "dress") and stat.S_ISREG(step["mode"]))


@pytest.mark.parametrize("stride", [47, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("loses", ["near", "far", "near and far"])
def test_after_a_power_cut_at_any_step_the_next_run_mends_all(
    recorded: Recorded, loses: str, stride: int, record_property: Callable[[str, object], None]
) -> None:
    points = 0
    replays = recorded.replays()
    for at, step in enumerate(recorded.steps):
        replays[step["side"]].step(step)
        kept = (nothing, names_only, at_random(at), at_random(-at))
        if (at + len(loses)) % stride == 0 or step["what"] in ("sync begins", "commit"):
            for keep in kept if stride == 1 else [kept[at % len(kept)]]:
                recorded.put(replays, {s: keep if s in loses else everything for s in replays})
                try:
                    recorded.judge.check_broken()
                    recorded.judge.check_mended()
                except BaseException as error:
                    error.add_note(f"the power went after step {at}, {step['what']} {step['path']}")
                    raise
                points += 1
    record_property("power cuts", points)


@pytest.mark.parametrize("forgotten", ["first", "second"])
def test_a_sync_that_is_left_out_is_found_out_by_a_power_cut(recorded: Recorded, forgotten: str) -> None:
    """Else the test above would prove nothing."""
    replays = recorded.replays()
    number = ("first", "second").index(forgotten)
    for step in recorded.steps:
        if step["what"].startswith("sync") and step["number"] >= number:
            continue
        replays[step["side"]].step(step)
    recorded.put(replays, {"near": everything, "far": names_only if forgotten == "first" else nothing})
    with pytest.raises(AssertionError):
        recorded.judge.check_broken()
        recorded.judge.check_mended()
