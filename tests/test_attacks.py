"""The attacks that worked on others, one by one: what a hostile peer, tree or address tried there fails here.

Many are tried where what they meet is tested: `COVERED` says where. The others are below, for both
directions where there are two: a near end against our far end, a far end against our near end.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2psync import disk
from p2psync.calls import (
    CALL,
    END,
    ERROR,
    VALUE,
    Acknowledge,
    Apply,
    Bases,
    Changes,
    Close,
    Files,
    GetMark,
    GetPoint,
    Lookup,
    Newest,
    Prepare,
    Read,
    Recalls,
    Remint,
    Scan,
    Stage,
    Texts,
)
from p2psync.connect import connect_local
from p2psync.core.model import Digest, Entry, Kind, Transition
from p2psync.core.replica import Change, Content, Found, Identity, Mark, More, Name, Piece
from p2psync.core.vector import ReplicaId
from p2psync.errors import Exit, ProtocolError
from p2psync.local import LocalReplica, init
from p2psync.serve import serve
from p2psync.wire import PROTOCOL, Connection
from tests.cli_support import p2psync, replica
from tests.support import (
    OLD_NS,
    Link,
    Tree,
    directory,
    do_not_wait_for_disk,
    entries,
    file,
    give,
    history,
    make_tree,
    new_replica,
    opened,
    snapshot,
    staged,
    symlink,
    sync_open,
    tombstone,
    version,
)
from tests.support import digest as digest_of
from tests.test_wire import HOSTILE_PATHS, IMPOSSIBLE, answers, attack, grounds

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

TESTS = Path(__file__).parent
Call = Callable[..., Any]

COVERED = {
    "rsync CVE-2022-29154: the other side sends what it was not asked for": [
        "test_remote::test_a_far_end_that_lies_is_found_out[contents nobody asked for]",
        "test_remote::test_a_far_end_that_lies_is_found_out[contents that nothing takes]",
        "test_remote::test_a_far_end_that_lies_is_found_out[a path nobody asked about]",
        "test_stage::test_what_nobody_waits_for_is_read_to_its_end_and_dropped",
    ],
    "rsync CVE-2024-12085: the length of a digest reads memory": [
        "test_remote::test_a_near_end_that_asks_for_what_it_must_not_is_told_so[a short digest]",
        "test_wire::test_an_entry_that_no_scan_can_have_made_is_refused[a short digest]",
    ],
    "rsync CVE-2024-12086: a file that was never announced is read": [
        "test_attacks::test_what_a_link_took_the_place_of_is_not_read_through_it",
        "test_attacks::test_a_far_end_gets_nothing_that_a_link_leads_to",
    ],
    "rsync CVE-2024-12087, syncthing CVE-2017-1000420: a link, then a file behind it": [
        "test_wire::test_no_transition_reaches_what_is_outside_of_the_root[through a link of its own]",
        "test_attacks::test_no_far_end_writes_outside_of_our_root",
    ],
    "rsync CVE-2024-12088: a link that seems to lead inside": [
        "test_attacks::test_a_link_is_never_more_than_its_text"
    ],
    "rsync CVE-2024-12747: a link takes a folder's place between check and use": [
        "test_apply::test_no_way_leads_through_a_symlink",
        "test_attacks::test_a_link_swapped_in_at_any_system_call_leads_no_write_outside",
        "test_attacks::test_a_link_swapped_in_at_any_system_call_gives_nothing_away",
        "test_restrict::test_a_root_swapped_for_a_link_during_a_run_leads_nowhere",
    ],
    "git CVE-2014-9390, CVE-2019-1352: a name that some file system takes for the sidecar": [
        "test_wire::test_a_path_that_leaves_the_root_is_refused",
        "core/test_paths::test_what_some_file_system_takes_for_the_sidecar_is_reserved",
        "test_scan::test_names_that_some_system_takes_for_the_sidecar_are_told_and_left_alone",
    ],
    "git CVE-2021-21300: a folder and a link that differ in case": [
        "test_attacks::test_no_near_end_writes_outside_of_our_root[a folder and a link that differ in case]",
        "test_attacks::test_no_far_end_writes_outside_of_our_root",
    ],
    "git CVE-2024-32002: a link to where configuration is, then a file behind it": [
        "test_attacks::test_no_near_end_writes_outside_of_our_root[a link to the sidecar]",
        "test_attacks::test_no_far_end_writes_outside_of_our_root",
    ],
    "mercurial CVE-2017-1000117: a host that is an option of ssh": [
        "test_peer::test_a_host_or_user_that_ssh_or_a_shell_could_take_for_more_is_refused",
        "test_attacks::test_a_host_is_never_an_option_of_ssh",
    ],
    "git CVE-2023-51385: a path that the shell there obeys": [
        "test_remote::test_a_path_arrives_as_one_word_and_nothing_else_happens",
        "test_ssh::test_a_far_root_may_have_any_name",
    ],
    "scp CVE-2019-6109: a name that the terminal obeys": [
        "test_cli::test_plain_output_holds_no_control_characters_whatever_the_names_hold",
        "test_remote::test_an_error_from_there_cannot_write_to_the_terminal",
        "test_ssh::test_a_banner_cannot_write_to_the_terminal",
    ],
    "scp CVE-2018-20685: the permissions of the root itself": [
        "test_attacks::test_the_root_itself_is_nobodys_business_but_its_owners"
    ],
    "rclone GHSA-945v-v9p3-v5xw: setuid, setgid and sticky bits": [
        "test_scan::test_setuid_and_sticky_bits_are_not_recorded",
        "test_apply::test_setuid_bits_go_when_a_peer_has_its_say",
        "test_wire::test_an_entry_that_no_scan_can_have_made_is_refused[setuid]",
        "test_remote::test_a_far_end_that_lies_is_found_out[a setuid entry]",
    ],
    "a decompression bomb": [
        "test_wire::test_a_bomb_is_inflated_no_further_than_the_frame_that_is_read",
        "test_wire::test_a_frame_that_is_a_bomb_costs_no_more_than_the_largest_frame",
        "test_wire::test_a_stream_that_wants_a_huge_window_is_refused",
    ],
    "contents that are not those of their digest": [
        "test_stage::test_wrong_bytes_leave_nothing_and_the_right_ones_can_still_come",
        "test_stage::test_no_more_is_written_than_was_announced",
        "test_remote::test_a_text_that_is_another_is_no_text",
        "test_attacks::test_contents_of_another_digest_are_not_taken_in",
    ],
    "borg CVE-2017-15914, rrsync CVE-2026-53783: out of a restricted account": [
        "test_restrict::test_no_other_root_is_opened_or_made[beside, with the same start]",
        "test_restrict::test_no_other_root_is_opened_or_made[a link to elsewhere]",
        "test_restrict::test_a_link_that_takes_the_place_of_a_checked_root_is_not_followed",
        "test_restrict::test_every_change_that_a_hostile_reader_asks_for_is_refused",
    ],
    "git-shell CVE-2017-8386, CVE-2022-39260: another command for a restricted account": [
        "test_restrict::test_anything_else_is_refused_in_a_line_that_no_terminal_obeys[too much]",
        "test_restrict::test_nothing_else_is_run_for_a_restricted_key",
    ],
}


@functools.cache
def _module(name: str) -> tuple[set[str], set[object]]:
    """Return the names of the tests in a module, and the texts in it."""
    nodes = list(ast.walk(ast.parse((TESTS / f"{name}.py").read_text("utf-8"))))
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return functions, {node.value for node in nodes if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("attack", COVERED)
def test_every_attack_that_is_said_to_be_covered_is(attack: str) -> None:
    for test in COVERED[attack]:
        match = re.fullmatch(r"(?P<module>[\w/]+)::(?P<name>test_\w+)(\[(?P<case>.+)\])?", test)
        assert match, test
        functions, texts = _module(match["module"])
        assert match["name"] in functions, test
        assert match["case"] is None or match["case"] in texts, test


@pytest.fixture(autouse=True)
def _quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


def everything(folder: Path, without: Path | None = None) -> dict[Path, tuple[int, int, bytes]]:
    """All there is in a folder, but for one that is in it."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        if without is None or not path.is_relative_to(without):
            st = path.lstat()
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[path.relative_to(folder)] = (st.st_mode, 0 if path == folder else st.st_mtime_ns, data)
    return found


# -- writes

SIDECAR_LINK = symlink(b".p2psync")
BEHIND_LINKS: dict[str, dict[bytes, Entry]] = {
    "a link, then a file behind it": {b"l": symlink(b".."), b"l/pwned": file(b"pwned")},
    "a file behind a link that was there": {b"out/pwned": file(b"pwned")},
    "a file that is there behind a link that was there": {b"out/canary": file(b"pwned")},
    "a folder and a link that differ in case": {
        b"D": directory(),
        b"d": symlink(b".."),
        b"D/pwned": file(b"pwned"),
        b"d/pwned": file(b"pwned"),
    },
    "a link to the sidecar": {b"m": SIDECAR_LINK, b"m/config.toml": file(b"pwned"), b"m/ignore": file(b"*")},
    "a link to the sidecar, from below": {
        b"s": directory(),
        b"s/m": symlink(b"../.p2psync"),
        b"s/m/config.toml": file(b"pwned"),
    },
    "a link to the top": {b"t": symlink(b"/"), b"t/p2psync pwned": file(b"pwned")},
    "a link to itself": {b"o": symlink(b"o"), b"o/o": file(b"pwned")},
}
CONTENTS = {digest_of(data): data for data in (b"pwned", b"*", b"", b"harmless")}


class Hostile(LocalReplica):
    """A replica that says it has a tree that none can have."""

    tree: ClassVar[dict[bytes, Entry]]
    held: ClassVar[dict[Digest, bytes]]

    def changes(self, since: int) -> Iterator[list[Change]]:
        yield [Change(path, entry) for path, entry in self.tree.items()]

    def lookup(self, names: Sequence[Name]) -> Found:
        return Found([self.tree.get(name.path) for name in names], [])

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        yield [Piece(digest, self.held[digest], More.LAST) for digest in digests]


def be_attacked(
    home: Path, tree: dict[bytes, Entry], held: dict[Digest, bytes] = CONTENTS, kind: type[Hostile] = Hostile
) -> list[str]:
    """Sync with a hostile far end; return the paths that were problems here, or the error."""
    far = home.parent.parent / f"{home.parent.name} far"
    init(bytes(far))
    hostile = type("It", (kind,), {"tree": tree, "held": held})
    remote = connect_local(bytes(far), lambda path, _: hostile(path), False)
    with contextlib.closing(remote), opened(home) as ours:
        try:
            result = sync_open(ours, remote)
        except ProtocolError as error:
            return [str(error)]
        return [os.fsdecode(problem.path) for problem in result.local.problems]


# rsync CVE-2024-12087, syncthing CVE-2017-1000420, git CVE-2021-21300, CVE-2024-32002
@pytest.mark.parametrize("tree", BEHIND_LINKS.values(), ids=BEHIND_LINKS)
def test_no_near_end_writes_outside_of_our_root(tmp_path: Path, tree: dict[bytes, Entry]) -> None:
    root = grounds(tmp_path)
    before = everything(tmp_path, without=root)
    told = answers(root, attack(*(Transition(path, None, entry) for path, entry in tree.items())))
    assert {tag for tag, _ in told} <= {VALUE, END}
    assert everything(tmp_path, without=root) == before
    assert not {"config.toml", "ignore"} & set(os.listdir(root / ".p2psync"))
    assert not os.path.lexists("/p2psync pwned")


@pytest.mark.parametrize("tree", BEHIND_LINKS.values(), ids=BEHIND_LINKS)
def test_no_far_end_writes_outside_of_our_root(tmp_path: Path, tree: dict[bytes, Entry]) -> None:
    root = grounds(tmp_path)
    before = everything(tmp_path, without=root)
    for _ in range(2):
        be_attacked(root, {**tree, b"harmless": file(b"harmless")})
    assert everything(tmp_path, without=root) == before
    assert not {"config.toml", "ignore"} & set(os.listdir(root / ".p2psync"))
    assert not os.path.lexists("/p2psync pwned")
    assert (root / "harmless").read_bytes() == b"harmless"
    assert (root / "a").read_bytes() == b"mine"


def test_a_folder_that_a_far_end_makes_a_link_of_leads_nowhere(tmp_path: Path) -> None:
    root = grounds(tmp_path)
    before = everything(tmp_path, without=root)
    assert be_attacked(root, {b"x": directory(), b"x/f": file(b"harmless")}) == []
    later = {
        b"x": symlink(b"..", seen=version(7, 2)),
        b"x/f": file(b"pwned", seen=version(7, 2)),
        b"x/canary": file(b"pwned"),
    }
    be_attacked(root, later)
    assert everything(tmp_path, without=root) == before


@pytest.mark.parametrize("path", [path for path in HOSTILE_PATHS if path], ids=lambda path: repr(path[:20]))
def test_no_far_end_names_a_path_outside_and_gets_anything_of_it(tmp_path: Path, path: bytes) -> None:
    root = grounds(tmp_path)
    before = everything(tmp_path)
    (told,) = be_attacked(root, {b"first": file(b"harmless"), path: file(b"pwned")})
    assert "the peer sent" in told
    assert told.isprintable()
    assert {path for path in everything(tmp_path) if ".p2psync" not in path.parts} == {
        path for path in before if ".p2psync" not in path.parts
    }


@pytest.mark.parametrize("entry", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_no_far_end_has_an_entry_that_cannot_be_and_gets_anything_of_it(tmp_path: Path, entry: Entry) -> None:
    root = grounds(tmp_path)
    before = snapshot(root)
    (told,) = be_attacked(root, {b"first": file(b"harmless"), b"x": entry})
    assert "the peer sent" in told or "makes no sense" in told or "broke" in told
    assert snapshot(root) == before


# rsync CVE-2024-12088
def test_a_link_is_never_more_than_its_text(tmp_path: Path) -> None:
    root = grounds(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_bytes(b"secret")
    before = everything(tmp_path, without=root)
    links: Tree = {
        b"safe/down": Link(b"up/elsewhere"),
        b"safe/up": Link(b"../.."),
        b"absolute": Link(bytes(tmp_path / "elsewhere")),
        b"long": Link(b"safe/../safe/up/../elsewhere/./secret"),
    }
    far = new_replica(tmp_path.parent / f"{tmp_path.name} far", links)
    with opened(root) as home, opened(far) as peer:
        assert sync_open(home, peer).in_step
    with opened(root) as home:
        home.scan(keep=True)
        found = entries(home)
    assert {path: entry.target for path, entry in found.items() if entry.kind is Kind.SYMLINK} == {
        b"out": b"..",
        **{path: link.target for path, link in links.items() if isinstance(link, Link)},
    }
    assert not any(path.endswith(b"secret") for path in found)
    assert everything(tmp_path, without=root) == before


# scp CVE-2018-20685
def test_the_root_itself_is_nobodys_business_but_its_owners(tmp_path: Path) -> None:
    root = grounds(tmp_path)
    root.chmod(0o750)
    for path in (b".", b"", b"./", b"/"):
        assert answers(root, attack(Transition(path, None, directory(0o777))))[-1][0] == ERROR
        be_attacked(root, {path: directory(0o777)})
    assert stat.S_IMODE(root.stat().st_mode) == 0o750


def test_contents_of_another_digest_are_not_taken_in(tmp_path: Path) -> None:
    root = grounds(tmp_path)
    good, evil = file(b"good"), {digest_of(b"good"): b"evil", digest_of(b"long"): b"l" * 5_000_000}
    tree = {b"f": good, b"g": file(b"long"), b"h": file(b"harmless")}
    assert sorted(be_attacked(root, tree, {**CONTENTS, **evil})) == ["f", "g"]
    assert (root / "h").read_bytes() == b"harmless"
    assert not (root / "f").exists()
    assert not (root / "g").exists()
    assert staged(root) == []


# mercurial CVE-2017-1000117, git CVE-2017-1000117
@pytest.mark.parametrize("address", ["ssh://-oProxyCommand=touch%20PWNED/x", "-oProxyCommand=touch PWNED:x"])
def test_a_host_is_never_an_option_of_ssh(tmp_path: Path, address: str) -> None:
    here = replica(tmp_path / "here")
    for arguments in (["sync", "--", address], ["peer", "add", "evil", "--", address]):
        assert "PWNED" in p2psync(here, *arguments, code=2).err
    assert list(tmp_path.rglob("PWNED")) == []


# -- reads


SECRETS = (b"hidden", b"also hidden")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder that is none of a peer's business, laid out like `d` in the replica."""
    make_tree(tmp_path / "secret", {b"e/f": SECRETS[0], b"e/g": SECRETS[1], b"e/h": Link(b"f"), b"e/i": None})
    return tmp_path / "secret"


@pytest.fixture
def root(tmp_path: Path, secret: Path) -> Path:
    tree: Tree = {b"d/e/f": b"public", b"d/e/g": b"open to all", b"d/e/h": Link(b"f"), b"d/e/i": None}
    return new_replica(tmp_path / "root", tree)


def swap(root: Path, secret: Path, path: str) -> None:
    """Put a link to its twin among the secrets in the place of what is at a path below `d`."""
    (root / path).rename(root.parent / "away")
    (root / path).symlink_to(secret / Path(path).relative_to("d"))


# rsync CVE-2024-12086
@pytest.mark.parametrize("path", ["d", "d/e", "d/e/f"])
def test_what_a_link_took_the_place_of_is_not_read_through_it(root: Path, secret: Path, path: str) -> None:
    with opened(root) as replica:
        replica.scan(keep=True)
        entry = entries(replica)[b"d/e/f"]
        swap(root, secret, path)
        for digest in (entry.digest, digest_of(SECRETS[0])):
            pieces = [piece for batch in replica.read([digest]) for piece in batch]
            # The file itself may still be read, where it was moved to, by who had its folder open.
            assert [piece.data for piece in pieces] in ([b""], [b"public"])
            assert replica.texts([digest_of(SECRETS[0])]) == [None]
        replica.scan(keep=True)
        assert all(entry.digest != digest_of(SECRETS[0]) for entry in entries(replica).values())


@pytest.mark.parametrize("path", ["d", "d/e", "d/e/f"])
def test_a_far_end_gets_nothing_that_a_link_leads_to(root: Path, secret: Path, path: str) -> None:
    """The far end has the tree changed after the scan, then asks for contents and keeps what it gets."""
    loot = root.parent / "loot"

    class Thief(Hostile):
        def prepare(
            self, transitions: Sequence[Transition], sparse: Sequence[Content] = (), own: bool = False
        ) -> list[Content]:
            swap(root, secret, path)
            wanted = [step.wanted for step in transitions if step.wanted.kind is Kind.FILE]
            return [Content(entry.digest, entry.size) for entry in wanted]

        def stage(self, batches: Iterable[list[Piece]]) -> None:
            loot.write_bytes(b"".join(piece.data for batch in batches for piece in batch))

    be_attacked(root, {}, kind=Thief)
    assert loot.exists()
    assert SECRETS[0] not in loot.read_bytes()
    # Also what the next scan makes of it is only a link, or nothing.
    be_attacked(root, {})
    with opened(root) as replica:
        assert digest_of(SECRETS[0]) not in {entry.digest for entry in entries(replica).values()}


# -- a link swapped in while it happens: rsync CVE-2024-12747

CALLS = ["open", "stat", "mkdir", "rmdir", "unlink", "rename", "symlink", "readlink", "utime", "scandir"]
CALLS += ["chdir", "fchdir"]


class AtCall:
    """Does something once, just before a system call with a given number."""

    def __init__(self, number: int, action: Callable[[], object]) -> None:
        self._left = number
        self._action = action
        self._lock = threading.Lock()
        self.done = False

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            patch.setattr(os, name, self._before(getattr(os, name)))
        patch.setattr(disk, "_rename", self._before(disk._rename))

    def _before(self, real: Call) -> Call:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            with self._lock:
                self._left -= 1
                now = self._left < 0 and not self.done
                self.done |= now
            if now:
                self._action()
            return real(*args, **kwargs)

        return call


def at_every_call(
    tmp_path: Path,
    make: Callable[[Path], Path],
    work: Callable[[Path], None],
    act: Callable[[Path], None],
    step: int = 1,
) -> Iterator[Path]:
    """Do `work` again and again, with `act` before a later system call each time; yield the root it left."""
    number = 0
    while True:
        root = make(tmp_path / str(number))
        with pytest.MonkeyPatch.context() as patch:
            at_call = AtCall(number, lambda root=root: act(root))  # type: ignore[misc]
            at_call.patch(patch)
            # Whatever is found changed is a problem or an error in words, which others test.
            with contextlib.suppress(Exception):
                work(root)
        if not at_call.done:
            return
        yield root
        number += step


def make_known(secret: Path) -> Callable[[Path], Path]:
    """Makes copies of a replica whose tree has been scanned."""
    template = secret.parent / "template"
    tree: Tree = {b"d/e/f": b"public", b"d/e/g": b"open to all", b"d/e/h": Link(b"f"), b"d/e/i": None}
    new_replica(template, tree)
    with opened(template) as replica:
        replica.scan(keep=True)

    def make(folder: Path) -> Path:
        shutil.copytree(template, folder / "root", symlinks=True)
        return folder / "root"

    return make


_NEW = version(9)
CHANGES = {
    b"d/e/f": file(b"pwned", seen=_NEW),
    b"d/e/g": tombstone(_NEW),
    b"d/e/h": symlink(b"pwned", seen=_NEW),
    b"d/e/i": directory(0o777, seen=_NEW),
    b"d/e/new": file(b"pwned", seen=_NEW),
    b"d/e/n": directory(seen=_NEW),
    b"d/e/n/f": file(b"pwned", seen=_NEW),
}


@pytest.mark.parametrize(("path", "step"), [("d", 1), ("d/e", 3)])
def test_a_link_swapped_in_at_any_system_call_leads_no_write_outside(
    tmp_path: Path, secret: Path, path: str, step: int
) -> None:
    def work(root: Path) -> None:
        with opened(root) as replica:
            replica.scan(keep=True)
            known = entries(replica)
            replica.prepare([Transition(at, known.get(at), entry) for at, entry in CHANGES.items()])
            give(replica, b"pwned")
            list(replica.apply())
            replica.acknowledge(Identity(ReplicaId(5), "near", 1), Mark(1, 1, b""))

    before = everything(secret)
    rounds = 0
    for _ in at_every_call(tmp_path, make_known(secret), work, lambda root: swap(root, secret, path), step):
        assert everything(secret) == before
        rounds += 1
    assert rounds * step > 50


@pytest.mark.parametrize("path", ["d", "d/e", "d/e/f"])
def test_a_link_swapped_in_at_any_system_call_gives_nothing_away(
    tmp_path: Path, secret: Path, path: str
) -> None:
    told: list[object] = []

    def work(root: Path) -> None:
        with opened(root) as replica:
            replica.scan(keep=True)
            known = entries(replica)
            told.append(known)
            digests = [entry.digest for entry in known.values() if entry.kind is Kind.FILE]
            told.append(list(replica.read(digests)))
            told.append(replica.texts([*digests, digest_of(SECRETS[0])]))

    rounds = 0
    for _ in at_every_call(tmp_path, make_known(secret), work, lambda root: swap(root, secret, path)):
        told_of = repr(told)
        assert not any(repr(leak)[2:-1] in told_of for data in SECRETS for leak in (data, digest_of(data)))
        told.clear()
        rounds += 1
    assert rounds > 20


# -- what others on this machine may look at


def modes_in(sidecar: Path) -> dict[str, int]:
    return {
        str(path.relative_to(sidecar)): stat.S_IMODE(path.lstat().st_mode)
        for path in sidecar.rglob("*")
        if not path.is_symlink()
    }


def test_a_sidecar_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        root = new_replica(tmp_path / "r", {b"f": b"1"})
        (tmp_path / "made" / "here").mkdir(parents=True)
        made = new_replica(tmp_path / "made" / "here" / "new")
        for sidecar in (root / ".p2psync", made / ".p2psync"):
            assert stat.S_IMODE(sidecar.stat().st_mode) == 0o700
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_no_copy_on_its_way_is_ever_wider_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    here, there = new_replica(tmp_path / "here", {b"old": b"0"}), new_replica(tmp_path / "there")
    with opened(here) as home, opened(there) as peer:
        sync_open(home, peer)
    for name, data in ((b"d/large", os.urandom(3_000_000)), (b"d/small", b"small"), (b"old", b"1")):
        make_tree(here, {name: data})
        os.chmod(os.path.join(bytes(here), name), mode)
    make_tree(here, {b"copy": b"small"})  # sent once: the other is copied from it, or it from the other
    os.chmod(here / "copy", 0o666)
    seen: dict[str, set[int]] = {}

    def watching(real: Call) -> Call:
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            result = real(*args, **kwargs)
            for path, found in modes_in(there / ".p2psync").items():
                seen.setdefault(path, set()).add(found)
            return result

        return call

    umask = os.umask(0)
    try:
        with opened(here) as home, opened(there) as peer, monkeypatch.context() as patch:
            for call in ("open", "write", "fchmod", "mkdir"):
                patch.setattr(os, call, watching(getattr(os, call)))
            assert sync_open(home, peer).in_step
    finally:
        os.umask(umask)
    for path in ("stage/d/large", "stage/d/small", "stage/old"):
        assert seen[path] and not {found for found in seen[path] if found & ~(mode | 0o600)}, (
            path,
            seen[path],
        )
    assert seen["stage/d/large"] >= {0o600}
    assert snapshot(there) == snapshot(here)


# -- any calls, in any order, with anything in them

PATHS = [
    b"a",
    b"d",
    b"d/e",
    b"new",
    b"new/x",
    b"out",
    b"out/x",
    b"out/canary",
    b"l",
    b"l/x",
    b"d/e/f",
    b".p2pignore",
]
BAD_PATHS = [b"../canary", b"/canary", b"", b".p2psync/config.toml", b"a\0b", b"d/.P2PSYNC/x", b"x" * 300]
MINE = {b"a": b"mine", b"d/e": b"deep"}
VERSIONS = [version(9, 1), version(9, 2), version(8, 1)]
TARGETS = [b"..", b".p2psync", b"/", b"a", b"../canary"]
some_paths = st.sampled_from(PATHS) | st.sampled_from(PATHS) | st.sampled_from(BAD_PATHS)
DATA = [b"pwned", b"", b"mine", b"*", b"x" * 70_000]
some_data = st.sampled_from(DATA)
some_digests = some_data.map(digest_of) | st.sampled_from(
    [Digest(b""), Digest(b"x" * 16), Digest(b"../../etc/passwd")]
)
some_replicas = st.sampled_from([0, 1, 2**63 - 1, 2**63, -1]).map(ReplicaId)
some_numbers = st.sampled_from([0, 1, 5, 2**63 - 1, 2**63, -1])


POSSIBLE = ["file", "file", "folder", "link", "gone"]


@st.composite
def some_entries(draw: st.DrawFn, kinds: Sequence[str] = (*POSSIBLE, "huge", "impossible")) -> Entry:
    kind = draw(st.sampled_from(kinds))
    seen, mode = draw(st.sampled_from(VERSIONS)), draw(st.sampled_from([0, 0o600, 0o644, 0o777]))
    match kind:
        case "file":
            return file(draw(some_data), mode, draw(st.sampled_from([0, OLD_NS, -(2**63), 2**63 - 1])), seen)
        case "folder":
            return directory(mode, seen=seen)
        case "link":
            return symlink(draw(st.sampled_from(TARGETS)), seen=seen)
        case "gone":
            return tombstone(seen)
        case "huge":
            return Entry(
                kind=Kind.FILE, version=seen, digest=digest_of(b"x"), size=2**63 - 1, revision=2**62 - 1
            )
        case _:
            return draw(st.sampled_from(list(IMPOSSIBLE.values())))


def known_entry(path: bytes) -> Entry | None:
    """Stands for what the replica has at a path; see `with_known`."""
    return Entry(kind=Kind.TOMBSTONE, revision=-1, target=path)


@st.composite
def some_transitions(draw: st.DrawFn, sound: bool = False) -> Transition:
    path = draw(st.sampled_from(PATHS) if sound else some_paths)
    wanted = draw(some_entries(POSSIBLE) if sound else some_entries())
    expected = known_entry(path) if sound else draw(st.just(known_entry(path)) | st.none() | some_entries())
    return Transition(path, expected, wanted, () if sound else tuple(draw(st.lists(some_paths, max_size=1))))


Frame = tuple[bytes, object]
some_pieces = st.builds(Piece, some_digests, some_data, st.sampled_from(More))
some_right_pieces = some_data.map(lambda data: Piece(digest_of(data), data, More.LAST))
some_identities = st.builds(
    Identity, some_replicas, st.sampled_from(["n", "\x1b[2J", "x" * 5000]), some_numbers
)
some_marks = st.builds(
    Mark, some_numbers, some_numbers, st.sampled_from([b"", b"r" * 16]), st.lists(some_paths, max_size=2)
)


def framed(call: object, values: object = None) -> list[Frame]:
    """A call, and what it brings."""
    return [(CALL, call)] if values is None else [(CALL, call), (VALUE, values), (END, None)]


some_calls = st.one_of(
    st.builds(Scan, st.booleans()).map(framed),
    st.builds(GetMark, some_replicas).map(framed),
    st.builds(Changes, some_numbers).map(framed),
    st.builds(Lookup, st.lists(st.builds(Name, some_paths, st.booleans()), max_size=3)).map(framed),
    st.builds(Bases, st.lists(some_paths, max_size=3)).map(framed),
    st.builds(Texts, st.lists(some_digests, max_size=3)).map(framed),
    st.builds(Read, st.lists(some_digests, max_size=3)).map(framed),
    st.lists(some_transitions(), max_size=4).map(lambda steps: framed(Prepare(), steps)),
    st.lists(some_transitions(), max_size=4).map(lambda steps: framed(Prepare(), steps)),
    st.lists(some_right_pieces, max_size=3).map(lambda pieces: framed(Stage(), pieces)),
    st.lists(some_pieces, max_size=3).map(lambda pieces: framed(Stage(), pieces)),
    st.sampled_from([Apply(), Apply(), Newest(), Files(), GetPoint()]).map(framed),
    st.builds(Recalls, some_numbers, some_numbers, some_numbers).map(framed),
    st.builds(Remint, some_replicas, st.sampled_from([-1, 0, 1, 2**62, 2**63])).map(framed),
    st.builds(Acknowledge, some_identities, some_marks).map(framed),
)
some_runs = st.lists(some_transitions(sound=True), min_size=1, max_size=4).map(
    lambda steps: [
        *framed(Prepare(), steps),
        *framed(Stage(), [Piece(digest_of(data), data, More.LAST) for data in DATA]),
        *framed(Apply()),
    ]
)
some_nonsense = st.sampled_from(
    [
        [(VALUE, [])],
        [(END, None)],
        [(ERROR, ["X", "y"])],
        [(CALL, ["Format", "/"])],
        [(CALL, None)],
        framed(Close()),
    ]
)


@st.composite
def some_sessions(draw: st.DrawFn) -> list[list[Frame]]:
    # (A strategy that is a union would be flattened into one of many.)
    parts = st.sampled_from([some_runs, some_runs, some_runs, some_calls, some_calls, some_nonsense])
    scan = [framed(Scan(True))] if draw(st.integers(0, 4)) else []
    return scan + [draw(draw(parts)) for _ in range(draw(st.integers(0, 6)))]


def with_known(message: object, known: dict[bytes, Entry]) -> object:
    """Put what the replica has into transitions that expect it, so that some of them are carried out."""
    if not isinstance(message, list):
        return message
    return [
        Transition(step.path, known.get(step.expected.target), step.wanted, step.after)
        if isinstance(step, Transition) and step.expected and step.expected.revision == -1
        else step
        for step in message
    ]


def serve_frames(root: Path, frames: Sequence[Frame]) -> tuple[Exit, list[str]]:
    """Serve a replica to one who sends `frames` and hangs up; return what it ends with, and the errors."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        near = Connection(os.open(os.devnull, os.O_RDONLY), os.dup(source.fileno()), "far")
        near._stream.send([b"p2psync\0\0" + bytes([PROTOCOL, 0])])
        for tag, message in frames:
            near.send(tag, message)
        near.flush()
        near.close()
        source.seek(0)
        far = Connection(os.dup(source.fileno()), os.dup(target.fileno()), "the peer")
        code = serve(far, bytes(root), lambda path, _: LocalReplica(path), False)
        far.close()
        target.seek(0)
        return code, list(_errors(target.read()))


def _errors(data: bytes) -> Iterator[str]:
    place = 11
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 5] == ERROR:
            yield data[place + 5 : place + 4 + length].decode("utf-8", "replace")
        place += 4 + length


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, Entry]]:
    """What every session begins with: a replica, a link out of it, a canary beside it."""
    folder = tmp_path_factory.mktemp("fuzzed") / "template"
    folder.mkdir()
    root = new_replica(folder / "root", {**MINE, b"out": Link(b"..")})
    (folder / "canary").write_bytes(b"alive")
    (folder / "folder").mkdir()
    with opened(root) as replica:
        replica.scan(keep=True)
        return folder, entries(replica)


@given(some_sessions())
@settings(max_examples=150, derandomize=True)
def test_whatever_calls_come_in_whatever_order_nothing_is_lost_and_nothing_outside_is_touched(
    template: tuple[Path, dict[bytes, Entry]], session: list[list[Frame]]
) -> None:
    folder, known = template
    place = Path(tempfile.mkdtemp(dir=folder.parent)) / "session"
    shutil.copytree(folder, place, symlinks=True)
    root = place / "root"
    before = everything(place, without=root)
    frames = [(tag, with_known(message, known)) for call in session for tag, message in call]
    code, errors = serve_frames(root, frames)
    assert everything(place, without=root) == before
    assert not {"config.toml", "ignore"} & set(os.listdir(root / ".p2psync"))
    _open_up(root)
    held = {seen.data for seen in snapshot(root).values()} | set(history(root))
    assert held >= set(MINE.values())
    if errors:
        (error,) = errors
        assert code == (Exit.GUARD if "GuardTripped" in error else Exit.FAILED)
        # To write after a dry run is refused as the nonsense that it is, by the manifest.
        in_words = ("ProtocolError", "GuardTripped", "within a transaction")
        assert any(words in error for words in in_words), error
    else:
        assert code in (Exit.IN_STEP, Exit.UNREACHABLE)
    with contextlib.closing(sqlite3.connect(root / ".p2psync" / "manifest.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _open_up(root: Path) -> None:
    """Let us look at whatever permissions the session gave."""
    for folder, folders, files in os.walk(root):
        for path in (Path(folder) / name for name in (*folders, *files)):
            if not path.is_symlink():
                path.chmod(0o700)
