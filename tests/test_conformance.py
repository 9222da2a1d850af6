"""What a sync may expect of a replica, wherever it is: here, in a fork, or at the far end of an ssh."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest

from p2psync.config import Peer
from p2psync.connect import connect_local, connect_ssh
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Entry, Kind, Problem, Transition
from p2psync.core.replica import PIECE_BYTES, Content, Identity, Mark, More, Name, Piece, Replica
from p2psync.core.vector import ReplicaId
from p2psync.errors import Locked, NotAReplica
from p2psync.local import LocalReplica, open_replica
from p2psync.peer import Address
from tests.sshd import Sshd
from tests.support import (
    OLD_NS,
    Link,
    carry_out,
    digest,
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

Connect = Callable[[Path], AbstractContextManager[Replica]]

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
here_and_in_a_fork = pytest.mark.parametrize("connect", ["local", "fork"], indirect=True)
everywhere = pytest.mark.parametrize("connect", ["local", "fork", "ssh"], indirect=True)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Connect:
    """How to open the replica at a root."""
    match request.param:
        case "local":
            return opened
        case "fork":
            return lambda root: contextlib.closing(
                connect_local(os.fsencode(root), open_replica, create=False)
            )
        case _:
            sshd: Sshd = request.getfixturevalue("sshd")
            return lambda root: contextlib.closing(over_ssh(root, sshd))


def over_ssh(root: Path, sshd: Sshd) -> Replica:
    peer = Peer("far", "", sshd.ssh_command, None, sshd.remote_command)
    return connect_ssh(Address(os.fsencode(root), sshd.host), peer, create=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty replica."""
    return new_replica(tmp_path / "replica")


def pieces(replica: Replica, *digests: Digest) -> list[Piece]:
    return [piece for batch in replica.read(digests) for piece in batch]


def outcome(replica: Replica) -> tuple[int, list[Problem]]:
    """Have what was prepared carried out; return how much was, and the problems."""
    outcomes = list(replica.apply())
    return sum(o.done for o in outcomes), [problem for o in outcomes for problem in o.problems]


def content(data: bytes) -> Content:
    return Content(digest(data), len(data))


def waiting(replica: Replica, **wanted: bytes) -> list[Content]:
    """Have `replica` prepare new files with these contents; return those that it lacks."""
    return replica.prepare([Transition(name.encode(), None, file(data)) for name, data in wanted.items()])


def scanned_identity(root: Path) -> ReplicaId:
    """Scan the replica at `root`; return its id."""
    with opened(root) as replica:
        replica.scan(keep=True)
        return replica.identity.replica


# -- identity and lock


@everywhere
def test_it_has_the_identity_that_it_was_made_with(root: Path, connect: Connect) -> None:
    with opened(root) as local:
        made = local.identity
    with connect(root) as replica:
        assert replica.identity == made
        assert made.name == "replica"


@everywhere
def test_open_means_locked_and_closed_means_unlocked(root: Path, connect: Connect) -> None:
    with connect(root):
        with pytest.raises(Locked):
            LocalReplica(os.fsencode(root))
        with pytest.raises(Locked), connect(root):
            pass
    with connect(root):
        pass


@everywhere
def test_what_is_no_replica_is_said_to_be_none(tmp_path: Path, connect: Connect) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder", "nothing"):
        with pytest.raises(NotAReplica, match=name), connect(tmp_path / name):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]


@here_and_in_a_fork
def test_a_manifest_of_nonsense_is_made_anew(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"1"})
    before = scanned_identity(root)
    (root / ".p2psync" / "manifest.db").write_bytes(b"nonsense" * 1000)
    with connect(root) as replica:
        assert replica.identity.replica != before
        (problem,) = replica.scan(keep=True).problems
        assert "made anew" in problem.why
        assert entries(replica)[b"f"].revision == 0
        assert replica.scan(keep=True).problems == []
    assert list((root / ".p2psync").glob("manifest.db.damaged-*"))


@here_and_in_a_fork
def test_a_replica_recalls_its_own_changes_and_no_others(root: Path, connect: Connect) -> None:
    with connect(root) as replica:
        assert replica.recalls(0, 0)
        make_tree(root, {b"f": b"1"})
        replica.scan(keep=True)
        first = replica.point()
        make_tree(root, {b"f": b"2"})
        replica.scan(keep=True)
        assert replica.point().seq > first.seq
        assert replica.recalls(first.seq, first.nonce)
        assert not replica.recalls(first.seq, first.nonce + 1)
        assert not replica.recalls(replica.point().seq + 1, first.nonce)


@here_and_in_a_fork
def test_a_replica_recalls_its_own_ticks_and_knows_the_largest_of_all_others(
    root: Path, connect: Connect
) -> None:
    with connect(root) as replica:
        mine = []
        for data in (b"1", b"2"):
            make_tree(root, {b"f": data})
            replica.scan(keep=True)
            mine.append(entries(replica)[b"f"].version.tick_of(replica.identity.replica))
        assert all(replica.recalls(0, 0, tick) for tick in mine)
        assert not any(replica.recalls(0, 0, tick + by) for tick in mine for by in (-1, 1))
        for tick in (6, 9, 7):  # by way of others, which is why there is no mark
            seen = tombstone(version(77, tick))
            carry_out(replica, [Transition(b"gone %d" % tick, None, seen)])
            mark = replica.mark(ReplicaId(77))
            assert mark and (mark.seq, mark.tick) == (0, max(6, 9 if tick != 6 else 0))


@here_and_in_a_fork
def test_a_replica_that_becomes_another_marks_its_versions_anew(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"1"})
    with connect(root) as replica:
        replica.scan(keep=True)
        before, entry = replica.identity, entries(replica)[b"f"]
        after = replica.remint(ReplicaId(5), 0)
        assert replica.identity == after
        assert (after.replica == before.replica, after.epoch == before.epoch) == (False, False)
        renewed = entries(replica)[b"f"]
        assert not (entry.version <= renewed.version or renewed.version <= entry.version)
        assert renewed.same_content(entry)


@here_and_in_a_fork
def test_files_are_counted(root: Path, connect: Connect) -> None:
    make_tree(root, {b"d/f": b"1", b"g": b"2", b"l": Link(b"g")})
    with connect(root) as replica:
        replica.scan(keep=True)
        assert replica.files() == 2


# -- what has changed


@everywhere
def test_a_scan_finds_what_is_there(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"text", b"d/\xff\n": b"", b"l": Link(b"\xfe")})
    os.mkfifo(root / "fifo")
    with connect(root) as replica:
        scanned = replica.scan(keep=True)
        found = entries(replica)
    assert (scanned.problems, scanned.skipped) == ([], [b"fifo"])
    assert {path: entry.kind for path, entry in found.items()} == {
        b"f": Kind.FILE,
        b"d": Kind.DIRECTORY,
        b"d/\xff\n": Kind.FILE,
        b"l": Kind.SYMLINK,
    }
    assert found[b"f"].same_content(file(b"text"))
    assert found[b"l"].same_content(symlink(b"\xfe"))
    assert (found[b"f"].mtime_ns, found[b"f"].revision) == (OLD_NS, 1)


@here_and_in_a_fork
def test_a_scan_is_kept_only_if_told_to(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"1"})
    for keep, then in ((False, set()), (True, {b"f"})):
        with connect(root) as replica:
            replica.scan(keep)
            assert set(entries(replica)) == {b"f"}
        with connect(root) as replica:
            assert set(entries(replica)) == then


@here_and_in_a_fork
def test_changes_are_those_since_a_sequence_number(root: Path, connect: Connect) -> None:
    make_tree(root, {b"same": b"1", b"edited": b"1", b"deleted": b"1"})
    with connect(root) as replica:
        assert replica.newest() == 0
        replica.scan(keep=True)
        then = replica.newest()
        assert entries(replica, then) == {}
        make_tree(root, {b"edited": b"2", b"new": b"1"})
        (root / "deleted").unlink()
        replica.scan(keep=True)
        changed = entries(replica, then)
        assert {path: entry.alive for path, entry in changed.items()} == {
            b"edited": True,
            b"new": True,
            b"deleted": False,
        }
        assert entries(replica, replica.newest()) == {}
        assert set(entries(replica)) == {b"same", *changed}


@here_and_in_a_fork
def test_thousands_of_changes_come_in_batches_and_are_all_there(root: Path, connect: Connect) -> None:
    names = {b"%d" % number for number in range(2500)}
    make_tree(root, {name: Link(b"x") for name in names})
    with connect(root) as replica:
        replica.scan(keep=True)
        batches = list(replica.changes(0))
    assert len(batches) > 1
    assert {change.path for batch in batches for change in batch} == names


@everywhere
def test_a_lookup_answers_each_name_in_its_place(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"1", b"d/f": b"2"})
    with connect(root) as replica:
        replica.scan(keep=True)
        known = entries(replica)
        names = [Name(path, False) for path in (b"nothing", b"d/f", b"f", b"f/below", b"no/thing", b"d")]
        found = replica.lookup(names)
        assert found.entries == [None, known[b"d/f"], known[b"f"], None, None, known[b"d"]]
        assert found.ignored == []
        assert replica.lookup([]).entries == []


@here_and_in_a_fork
def test_a_lookup_tells_what_is_ignored_also_of_paths_that_are_only_on_the_other_side(
    root: Path, connect: Connect
) -> None:
    make_tree(root, {b"f.o": b"1", b"d/.p2pignore": b"build/\n"})
    with connect(root) as replica:
        replica.scan(keep=True)
        make_tree(root, {b".p2pignore": b"*.o\n"})
        replica.scan(keep=True)
        names = [
            Name(b"f.o", False),
            Name(b"f.c", False),
            Name(b"away/f.o", False),
            Name(b"d/build", False),
            Name(b"d/build", True),
            Name(b"d/build/f", False),
            Name(b"build/f", False),
        ]
        found = replica.lookup(names)
        assert found.entries == [None] * len(names)
        assert found.ignored == [b"f.o", b"away/f.o", b"d/build", b"d/build/f"]
        assert b"f.o" not in entries(replica)


@here_and_in_a_fork
def test_bases_are_the_earlier_versions_oldest_first(root: Path, connect: Connect) -> None:
    seen: list[Entry] = []
    with connect(root) as replica:
        for data in (b"1", b"22", b"333"):
            make_tree(root, {b"f": data})
            replica.scan(keep=True)
            seen.append(entries(replica)[b"f"])
        assert replica.bases([b"nothing", b"f"]) == [[], seen[:2]]


@here_and_in_a_fork
def test_a_problem_is_told_with_its_path(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"1"})
    with connect(root) as replica:
        replica.scan(keep=True)
        done, problems = carry_out(replica, [Transition(b"f", None, file(b"2", seen=version(9)))])
        assert (done, [problem.path for problem in problems]) == (0, [b"f"])


# -- contents


@everywhere
def test_contents_are_read_in_the_order_asked_for_and_what_is_gone_is_said_to_be(
    root: Path, connect: Connect
) -> None:
    make_tree(root, {b"a": b"1", b"b": b"", b"c": b"3"})
    with connect(root) as replica:
        replica.scan(keep=True)
        (root / "a").unlink()
        assert pieces(replica, digest(b"3"), digest(b"1"), digest(b"never"), digest(b"")) == [
            Piece(digest(b"3"), b"3", More.LAST),
            Piece(digest(b"1"), b"", More.GONE),
            Piece(digest(b"never"), b"", More.GONE),
            Piece(digest(b""), b"", More.LAST),
        ]


@here_and_in_a_fork
@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_a_large_file_is_read_in_pieces_that_follow_one_another(
    root: Path, connect: Connect, size: int
) -> None:
    data = os.urandom(1024) * (size // 1024 + 1)
    make_tree(root, {b"large": data[:size], b"small": b"1"})
    with connect(root) as replica:
        replica.scan(keep=True)
        *large, small = pieces(replica, digest(data[:size]), digest(b"1"))
    assert b"".join(piece.data for piece in large) == data[:size]
    assert [piece.more for piece in large] == [More.MORE] * (len(large) - 1) + [More.LAST]
    assert all(len(piece.data) <= PIECE_BYTES for piece in large)
    assert small.data == b"1"


@here_and_in_a_fork
def test_texts_are_those_held_here_and_not_too_large_to_merge(root: Path, connect: Connect) -> None:
    large = b"x" * (MAX_TEXT + 1)
    make_tree(root, {b"f": b"text\n", b"g": large, b"h": large[1:]})
    with connect(root) as replica:
        replica.scan(keep=True)
        texts = replica.texts([digest(b"never"), digest(b"text\n"), digest(large), digest(large[1:])])
    assert texts == [None, b"text\n", None, large[1:]]


@here_and_in_a_fork
def test_a_text_that_was_edited_since_is_not_held_any_more(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"text\n"})
    with connect(root) as replica:
        replica.scan(keep=True)
        make_tree(root, {b"f": b"edit\n"})
        assert replica.texts([digest(b"text\n")]) == [None]


@here_and_in_a_fork
@pytest.mark.parametrize("edited", ["a", "b"])
def test_a_text_that_was_edited_in_one_file_is_had_from_another(
    root: Path, connect: Connect, edited: str
) -> None:
    make_tree(root, {b"a": b"text\n", b"b": b"text\n"})
    with connect(root) as replica:
        replica.scan(keep=True)
        make_tree(root, {edited.encode(): b"edit\n"})
        assert replica.texts([digest(b"text\n")]) == [b"text\n"]


@here_and_in_a_fork
@pytest.mark.parametrize("gone", ["a", "b"])
def test_contents_of_a_file_that_is_gone_are_read_from_another(
    root: Path, connect: Connect, gone: str
) -> None:
    make_tree(root, {b"a": b"same\n", b"b": b"same\n"})
    with connect(root) as replica:
        replica.scan(keep=True)
        (root / gone).unlink()
        pieces = [piece for batch in replica.read([digest(b"same\n")]) for piece in batch]
        assert [(piece.data, piece.more) for piece in pieces] == [(b"same\n", More.LAST)]
        wanted = Transition(b"c", None, file(b"same\n", seen=version(1, 1)))
        assert replica.prepare([wanted]) == []


@here_and_in_a_fork
@pytest.mark.parametrize("edited", ["a", "b"])
def test_large_contents_of_a_file_that_was_edited_are_had_from_another(
    root: Path, connect: Connect, edited: str
) -> None:
    large = b"large" * MAX_TEXT
    make_tree(root, {b"a": large, b"b": large})
    with connect(root) as replica:
        replica.scan(keep=True)
        (root / edited).write_bytes(b"edit" + large[4:])
        assert replica.prepare([Transition(b"c", None, file(large, seen=version(1, 1)))]) == []


@here_and_in_a_fork
def test_a_text_is_kept_when_the_file_has_become_another(root: Path, connect: Connect) -> None:
    with connect(root) as replica:
        replica.scan(keep=True)
        assert carry_out(replica, [Transition(b"f", None, file(b"base\n"))], b"base\n") == (1, [])
        make_tree(root, {b"f": b"edit\n"})
        replica.scan(keep=True)
        assert replica.texts([digest(b"base\n"), digest(b"edit\n")]) == [b"base\n", b"edit\n"]


@everywhere
def test_what_is_held_is_staged_and_only_the_rest_is_missing(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"held", b"empty": b""})
    with connect(root) as replica:
        replica.scan(keep=True)
        assert waiting(replica, moved=b"held", other=b"new", nothing=b"") == [content(b"new")]
        give(replica, b"new")
        assert outcome(replica) == (3, [])
    assert {path: seen.data for path, seen in snapshot(root).items()} == {
        b"f": b"held",
        b"moved": b"held",
        b"other": b"new",
        b"empty": b"",
        b"nothing": b"",
    }


@here_and_in_a_fork
def test_what_is_held_no_more_is_missing(root: Path, connect: Connect) -> None:
    make_tree(root, {b"f": b"held"})
    with connect(root) as replica:
        replica.scan(keep=True)
        make_tree(root, {b"f": b"edit"})
        assert waiting(replica, g=b"held") == [content(b"held")]


LYING: dict[str, Iterable[list[Piece]]] = {
    "other bytes": [[Piece(digest(b"wanted"), b"WANTED", More.LAST)]],
    "too short": [[Piece(digest(b"wanted"), b"want", More.LAST)]],
    "broken off": [[Piece(digest(b"wanted"), b"wan", More.MORE), Piece(digest(b"wanted"), b"", More.GONE)]],
    "not asked for": [[Piece(digest(b"other"), b"other", More.LAST)]],
    "gone": [[Piece(digest(b"wanted"), b"", More.GONE)]],
    "nothing": [],
}


@here_and_in_a_fork
@pytest.mark.parametrize("lie", LYING)
def test_what_is_not_what_was_asked_for_is_dropped(root: Path, connect: Connect, lie: str) -> None:
    with connect(root) as replica:
        replica.scan(keep=True)
        assert waiting(replica, f=b"wanted") == [content(b"wanted")]
        replica.stage(LYING[lie])
        assert staged(root) == []
        assert len(outcome(replica)[1]) == 1
        assert waiting(replica, f=b"wanted") == [content(b"wanted")]
        replica.stage(LYING[lie])
        give(replica, b"wanted")
        assert outcome(replica) == (1, [])


@here_and_in_a_fork
def test_no_more_is_taken_in_than_was_announced(root: Path, connect: Connect) -> None:
    announced = msgspec.structs.replace(file(b"wanted"), size=3)
    with connect(root) as replica:
        replica.scan(keep=True)
        assert replica.prepare([Transition(b"f", None, announced)]) == [Content(digest(b"wanted"), 3)]
        replica.stage(
            [[Piece(digest(b"wanted"), b"wan", More.MORE), Piece(digest(b"wanted"), b"ted", More.LAST)]]
        )
        assert staged(root) == []


@here_and_in_a_fork
def test_a_large_content_is_staged_from_its_pieces(root: Path, connect: Connect) -> None:
    data = os.urandom(PIECE_BYTES) + b"end"
    with connect(root) as replica:
        replica.scan(keep=True)
        assert waiting(replica, f=data) == [content(data)]
        first, last = Piece(digest(data), data[:-3], More.MORE), Piece(digest(data), b"end", More.LAST)
        replica.stage(iter([[first], [last]]))
        assert outcome(replica) == (1, [])
    assert snapshot(root)[b"f"].data == data


# -- what becomes of it


@everywhere
def test_transitions_are_carried_out_and_known_from_then_on(root: Path, connect: Connect) -> None:
    make_tree(root, {b"replaced": b"1", b"deleted/f": b"2", b"edited": b"3"})
    with connect(root) as replica:
        replica.scan(keep=True)
        known, then = entries(replica), replica.newest()
        make_tree(root, {b"edited": b"mine"})
        wanted = {
            b"new/folder": directory(0o700),
            b"new": directory(),
            b"new/link": symlink(b"x"),
            b"replaced": file(b"new", 0o600, seen=version(9)),
            b"deleted": tombstone(version(9)),
            b"deleted/f": tombstone(version(9)),
            b"edited": file(b"new", seen=version(9)),
        }
        transitions = [Transition(path, known.get(path), wanted[path]) for path in wanted]
        done, problems = carry_out(replica, transitions, b"new")
        assert (done, [problem.path for problem in problems]) == (6, [b"edited"])
        assert entries(replica, then) == {path: entry for path, entry in wanted.items() if path != b"edited"}
        assert replica.newest() > then
    found = snapshot(root)
    assert set(found) == {b"new", b"new/folder", b"new/link", b"replaced", b"edited"}
    assert found[b"replaced"] == ("file", 0o600, OLD_NS, b"new")
    assert found[b"edited"].data == b"mine"
    assert sorted(history(root)) == [b"1", b"2"]


@here_and_in_a_fork
def test_no_transitions_are_no_change(root: Path, connect: Connect) -> None:
    with connect(root) as replica:
        replica.scan(keep=True)
        assert carry_out(replica, []) == (0, [])
        assert outcome(replica) == (0, [])
        assert replica.newest() == 0


@here_and_in_a_fork
def test_thousands_of_transitions_are_all_accounted_for(root: Path, connect: Connect) -> None:
    with connect(root) as replica:
        replica.scan(keep=True)
        transitions = [Transition(b"%d" % n, None, symlink(b"x")) for n in range(2500)]
        make_tree(root, {b"1234": b"in the way"})
        done, problems = carry_out(replica, transitions)
    assert (done, [problem.path for problem in problems]) == (2499, [b"1234"])
    assert len(snapshot(root)) == 2500


@everywhere
def test_a_mark_comes_back_as_it_was_given(root: Path, connect: Connect) -> None:
    peer = Identity(ReplicaId(77), "host:\u00e9", 5)
    first = Mark(5, 100, b"rules", [b"left", b"\xff\n"])
    second = Mark(5, 200, b"other rules", [])
    with connect(root) as replica:
        replica.scan(keep=True)
        assert replica.mark(peer.replica) is None
        for mark in (first, second):
            replica.acknowledge(peer, mark)
            assert replica.mark(peer.replica) == mark
        assert replica.mark(ReplicaId(78)) is None
    with connect(root) as replica:
        assert replica.mark(peer.replica) == second


@here_and_in_a_fork
def test_after_an_acknowledgement_nothing_is_left_in_the_stage(root: Path, connect: Connect) -> None:
    with connect(root) as replica:
        replica.scan(keep=True)
        waiting(replica, f=b"new")
        give(replica, b"new")
        assert staged(root) != []
        replica.acknowledge(Identity(ReplicaId(77), "peer", 5), Mark(5, 1, b""))
        assert staged(root) == []


@everywhere
def test_a_sync_with_it_brings_both_sides_to_the_same_state(
    root: Path, tmp_path: Path, connect: Connect
) -> None:
    home = new_replica(tmp_path / "home", {b"d/ours": b"1" * 5000, b"clash": b"ours", b"\xff": Link(b"x")})
    make_tree(root, {b"d/theirs": b"2", b"clash": b"theirs", b"empty": None}, OLD_NS + 1)
    with opened(home) as ours, connect(root) as theirs:
        assert sync_open(ours, theirs).in_step
        again = sync_open(ours, theirs)
    assert snapshot(home) == snapshot(root)
    assert len(snapshot(home)) == 7
    assert not again.local.transitions
    assert not again.peer.transitions
    assert again.transferred == 0
