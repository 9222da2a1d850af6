"""First copies of large files: hashed as they are read for an empty replica, not before."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest

from p2psync import disk, look, stage
from p2psync.core.merge import MAX_TEXT
from p2psync.core.model import Digest, Prefer
from p2psync.core.replica import PIECE_BYTES, Met, More, Piece, Unread, place_of
from p2psync.disk import Span, hash_file
from p2psync.errors import ReplicaError
from p2psync.local import LocalReplica
from p2psync.restrict import Key
from p2psync.sync import Result, Session
from p2psync.watcher import Watcher
from tests.cli_support import p2psync, replica, wait_for
from tests.sshd import Sshd
from tests.support import (
    Quiet,
    digest,
    do_not_wait_for_disk,
    entries,
    new_replica,
    opened,
    snapshot,
    staged,
    sync,
    write,
)

VIDEO = os.urandom(2 * PIECE_BYTES + 5)
TREE = {b"notes": b"small", b"films/one": VIDEO, b"films/two": VIDEO[:0:-1], b"border": bytes(MAX_TEXT)}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return new_replica(tmp_path / "home", TREE)


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    return new_replica(tmp_path / "peer")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of the files that were read only to be hashed."""
    names: list[bytes] = []

    def noting(name: bytes, dir_fd: int) -> object:
        names.append(name)
        return hash_file(name, dir_fd)

    monkeypatch.setattr(look, "hash_file", noting)
    monkeypatch.setattr(stage, "hash_file", noting)
    return names


def first_sync(home: LocalReplica, peer: LocalReplica, roots: Sequence[Path] = ()) -> Result:
    near = bool(roots)
    if near:
        peer.neighbour, home.neighbour = map(os.fsencode, roots)
    session = Session(home, peer, Quiet(), near)
    session.scan(keep=True, all_new=True)
    return session.round(Prefer.BOTH)


def read_unread(replica: LocalReplica) -> dict[bytes, bytes]:
    """Return what a replica hands over, by what stands for the digest."""
    contents: dict[bytes, bytes] = {}
    for piece in (piece for batch in replica.read_unread() for piece in batch):
        contents[piece.digest] = contents.get(piece.digest, b"") + piece.data
    return contents


def cut(contents: bytes, name: bytes = b"films/one") -> list[list[Piece]]:
    parts = [contents[at : at + PIECE_BYTES] for at in range(0, len(contents), PIECE_BYTES)]
    return [[Piece(place_of(name), part, More.MORE)] for part in parts[:-1]] + [
        [Piece(place_of(name), parts[-1], More.LAST)]
    ]


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("filled", ["home", "peer"])
def test_what_one_side_alone_has_is_read_once(
    home: Path, peer: Path, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch, filled: str, near: bool
) -> None:
    monkeypatch.setattr(stage, "_COPIED_BYTES", PIECE_BYTES)
    one, other = (home, peer) if filled == "home" else (peer, home)
    if filled == "peer":
        os.rename(home / "films", peer / "films")
        for name in ("notes", "border"):
            os.rename(home / name, peer / name)
    with opened(home) as ours, opened(peer) as theirs:
        result = first_sync(ours, theirs, (home, peer) if near else ())
        assert result.in_step
        assert entries(ours) == entries(theirs)
        assert result.transferred == sum(map(len, TREE.values()))
    assert snapshot(one) == snapshot(other)
    assert sorted(hashed) == [b"border", b"notes"]
    assert staged(home) == staged(peer) == []


def test_nothing_is_left_to_do_after_it(home: Path, peer: Path, hashed: list[bytes]) -> None:
    with opened(home) as ours, opened(peer) as theirs:
        first_sync(ours, theirs)
    hashed.clear()
    result = sync(home, peer)
    assert result.in_step
    assert not (result.local.transitions or result.peer.transitions)
    assert hashed == []


def test_where_something_is_all_is_hashed_first(home: Path, peer: Path, hashed: list[bytes]) -> None:
    (peer / "films").mkdir()
    (peer / "films" / "one").write_bytes(VIDEO)
    os.utime(peer / "films" / "one", ns=(1, 1))
    with opened(home) as ours, opened(peer) as theirs:
        result = first_sync(ours, theirs)
    assert result.in_step
    assert result.transferred < 2 * len(VIDEO) + MAX_TEXT
    assert {b"one", b"two"} <= set(hashed)


@pytest.mark.parametrize("there", ["a file", "a deleted file", "rules", "a staged file"])
def test_only_what_is_empty_is_blank(peer: Path, there: str) -> None:
    with opened(peer) as replica:
        assert replica.room_if_blank() > 0
    match there:
        case "rules":
            (peer / ".p2psync" / "ignore").write_text("*.tmp\n")
        case "a staged file":
            (peer / ".p2psync" / "stage").mkdir(exist_ok=True)
            (peer / ".p2psync" / "stage" / "left").write_text("by a run that died")
        case _:
            (peer / "file").write_text("there")
            if there == "a deleted file":
                with opened(peer) as replica:
                    replica.scan(keep=True)
                (peer / "file").unlink()
                with opened(peer) as replica:
                    replica.scan(keep=True)
    with opened(peer) as replica:
        assert replica.room_if_blank() == 0


def test_what_is_written_to_while_it_is_handed_over_comes_as_it_is_then(
    home: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = LocalReplica.read_unread

    def edited(replica: LocalReplica) -> Generator[list[Piece], None, None]:
        batches = read(replica)
        yield next(batches)
        (home / "films" / "two").write_bytes(b"cut anew" * PIECE_BYTES)
        (home / "films" / "one").unlink()
        yield from batches

    monkeypatch.setattr(LocalReplica, "read_unread", edited)
    with opened(home) as ours, opened(peer) as theirs:
        assert first_sync(ours, theirs).in_step
    assert snapshot(home) == snapshot(peer)
    assert (peer / "films" / "two").read_bytes() == b"cut anew" * PIECE_BYTES


@pytest.mark.parametrize("change", ["edited", "touched", "grown", "gone", "a folder", "a link"])
def test_what_changes_while_the_neighbour_takes_it_comes_as_it_is_then(
    home: Path, peer: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write_blocks = stage._write_blocks
    film = home / "films" / "one"

    def meanwhile(fd: int, blocks: stage.Blocks, most: int) -> Digest | None:
        digest = write_blocks(fd, blocks, most)
        if not changed:
            changed.append(change)
            match change:
                case "edited":
                    film.write_bytes(b"cut anew" + VIDEO[8:])
                case "touched":
                    os.utime(film)
                case "grown":
                    film.write_bytes(VIDEO + b"more")
                case _:
                    film.unlink()
                    if change == "a folder":
                        film.mkdir()
                    elif change == "a link":
                        film.symlink_to("two")
        return digest

    changed: list[str] = []
    with opened(home) as ours, opened(peer) as theirs:
        monkeypatch.setattr(stage, "_write_blocks", meanwhile)
        assert first_sync(ours, theirs, (home, peer)).in_step
        assert changed
    assert snapshot(home) == snapshot(peer)


def test_what_a_file_is_nobody_tells_who_is_not_on_this_machine(home: Path, peer: Path) -> None:
    with opened(home) as ours, opened(peer) as theirs:
        ours.scan(keep=True, leave_large=True)
        theirs.room_if_blank()
        unread = ours.unread()
        assert list(theirs.take_unread(unread)) == []
        theirs.neighbour = os.fsencode(home)
        met = list(theirs.take_unread(unread))
        assert [one.path for one in met] == [b"films/one", b"films/two"]
        with pytest.raises(ReplicaError, match="on the same machine"):
            ours.note_unread(met)
        assert b"films/one" not in entries(ours)


def test_a_copy_that_went_wrong_is_found(home: Path, peer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [b"wrong"]

    def copying(span: Span, fd: int) -> None:
        disk.copy_span(span, fd)
        if wrong:
            os.pwrite(fd, wrong.pop(), 100)

    monkeypatch.setattr(stage, "copy_span", copying)
    monkeypatch.setattr(stage, "_COPIED_BYTES", PIECE_BYTES)
    with opened(home) as ours, opened(peer) as theirs:
        first_sync(ours, theirs, (home, peer))
        assert not wrong
        assert entries(ours)[b"films/one"].digest == digest(VIDEO)
    assert sync(home, peer).in_step
    assert snapshot(home) == snapshot(peer)


def test_what_was_taken_is_recorded_when_that_breaks_off(
    home: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = LocalReplica.take_unread

    def breaking(replica: LocalReplica, files: Sequence[Unread]) -> Iterator[Met]:
        yield next(take(replica, files))
        raise ReplicaError("the disk hangs")

    monkeypatch.setattr(LocalReplica, "take_unread", breaking)
    with opened(home) as ours, opened(peer) as theirs:
        with pytest.raises(ReplicaError, match="hangs"):
            first_sync(ours, theirs, (home, peer))
        assert b"films/one" in entries(ours)


@pytest.mark.parametrize("near", [False, True])
def test_what_may_be_the_same_goes_once(tmp_path: Path, peer: Path, near: bool) -> None:
    home = new_replica(tmp_path / "other", {b"%d" % n: VIDEO for n in range(3)} | {b"alone": VIDEO[1:]})
    with opened(home) as ours, opened(peer) as theirs:
        result = first_sync(ours, theirs, (home, peer) if near else ())
        assert result.in_step
        assert near or result.transferred == 2 * len(VIDEO) - 1
    assert snapshot(home) == snapshot(peer)


def test_what_is_no_file_is_told_of_although_all_is_scanned_once_more(
    home: Path, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(home / "fifo")
    with opened(home) as ours, opened(peer) as theirs:
        monkeypatch.setattr(theirs, "room_if_blank", lambda: 1)
        assert first_sync(ours, theirs).local.scanned.skipped == [b"fifo"]


def test_what_was_left_is_looked_at_again_by_who_watches(home: Path, peer: Path) -> None:
    with contextlib.closing(Watcher(0, 0, 3600)) as watcher:
        with opened(home) as plain:
            plain.scan(keep=True)
        with contextlib.closing(LocalReplica(os.fsencode(home), watcher=watcher)) as ours:
            ours.scan(keep=True)
            write(os.fsencode(home / "new"), VIDEO)
            wait_for(lambda: watcher.due() < time.monotonic(), "what is new")
            assert ours.scan(keep=True, leave_large=True).unread == len(VIDEO)
            assert ours.scan(keep=True).unread == 0
            assert b"new" in entries(ours)


def test_a_neighbour_takes_no_more_than_it_has_room_for(home: Path, peer: Path) -> None:
    with opened(home) as ours, opened(peer) as theirs:
        theirs.neighbour = os.fsencode(home)
        ours.scan(keep=True, leave_large=True)
        unread = ours.unread()
        assert list(theirs.take_unread(unread)) == []  # nobody has asked whether it is blank
        theirs.room_if_blank()
        assert list(theirs.take_unread([unread[0]._replace(size=1 << 60)])) == []
        assert len(list(theirs.take_unread(unread[:1]))) == 1
        assert len(list(theirs.take_unread(unread[1:]))) == 1


def test_what_was_written_to_just_before_it_was_taken_is_looked_at_again(home: Path, peer: Path) -> None:
    (home / "films" / "one").write_bytes(VIDEO)
    with opened(home) as ours, opened(peer) as theirs:
        first_sync(ours, theirs, (home, peer))
        rows = [ours.manifest.row(b"films/" + name) for name in (b"one", b"two")]
        assert [row is not None and row.racy for row in rows] == [True, False]


def test_what_was_read_is_known_to_the_next_run_when_the_line_breaks(home: Path, peer: Path) -> None:
    with opened(home) as ours:
        ours.scan(keep=True, leave_large=True)
        batches = ours.read_unread()
        while not any(piece.more is More.LAST for piece in next(batches)):
            pass
        batches.close()
        assert len([path for path in entries(ours) if path.startswith(b"films/")]) == 1


def test_a_file_that_came_in_part_goes_on_where_it_was(tmp_path: Path, peer: Path) -> None:
    film = os.urandom(6 * PIECE_BYTES)
    home = new_replica(tmp_path / "other", {b"film": film})
    with opened(home) as ours, opened(peer) as theirs:
        ours.scan(keep=True, leave_large=True)
        theirs.room_if_blank()
        theirs.put_by(islice(ours.read_unread(), 5), len(film))
    with opened(home) as ours, opened(peer) as theirs:
        result = first_sync(ours, theirs)
        assert result.in_step
        assert 0 < result.transferred < 2 * PIECE_BYTES
    assert snapshot(home) == snapshot(peer)


def test_contents_that_are_not_what_was_read_do_not_come(home: Path, peer: Path) -> None:
    with opened(home) as ours, opened(peer) as theirs:
        ours.scan(keep=True, leave_large=True)
        pieces = cut(VIDEO[::-1], b"films/one") + cut(VIDEO[:-1], b"films/two")
        theirs.room_if_blank()
        theirs.put_by(pieces, 1 << 30)
        read_unread(ours)
        session = Session(ours, theirs, Quiet())
        session.scan(keep=True)
        assert session.round(Prefer.BOTH).in_step
    assert snapshot(home) == snapshot(peer)


def test_no_more_is_put_by_than_was_announced(peer: Path) -> None:
    with opened(peer) as replica:
        replica.room_if_blank()
        replica.put_by(cut(VIDEO, b"a") + cut(VIDEO, b"b"), 2 * len(VIDEO) - 1)
        assert os.listdir(peer / ".p2psync" / "partial") == [place_of(b"a").hex() + ".path"]


def test_nothing_is_put_by_where_something_is(peer: Path) -> None:
    with opened(peer) as replica:
        replica.put_by(cut(VIDEO), 1 << 30)  # nobody has asked
        assert replica.room_if_blank()
        replica.prepare([])
        replica.put_by(cut(VIDEO), 1 << 30)
        write(os.fsencode(peer / "file"), b"there")
        assert not replica.room_if_blank()
        replica.put_by(cut(VIDEO), 1 << 30)
    assert staged(peer) == []
    assert not (peer / ".p2psync" / "partial").exists() or not os.listdir(peer / ".p2psync" / "partial")


def test_more_than_there_is_room_for_is_told_as_ever(
    home: Path, peer: Path, hashed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(home) as ours, opened(peer) as theirs:
        monkeypatch.setattr(theirs, "room_if_blank", lambda: len(VIDEO))
        assert first_sync(ours, theirs).in_step
    assert {b"one", b"two"} <= set(hashed)


def test_digests_are_not_believed_of_what_was_written_to(home: Path, peer: Path) -> None:
    with opened(home) as ours, opened(peer) as theirs:
        ours.scan(keep=True, leave_large=True)
        theirs.room_if_blank()
        theirs.put_by(ours.read_unread(), 1 << 30)
        for part in (peer / ".p2psync" / "partial").iterdir():
            part.write_bytes(b"damaged" + part.read_bytes()[7:])
        session = Session(ours, theirs, Quiet())
        session.scan(keep=True)
        assert session.round(Prefer.BOTH).in_step
    assert snapshot(home) == snapshot(peer)


def test_what_one_that_was_made_anew_has_is_of_unknown_past(home: Path, peer: Path) -> None:
    with opened(home) as ours:
        ours.scan(keep=True)
    (home / ".p2psync" / "manifest.db").unlink()
    with opened(home) as ours, opened(peer) as theirs:
        first_sync(ours, theirs)
        assert entries(ours)[b"films/one"].revision == 0
        assert entries(ours) == entries(theirs)


# -- over a real sshd


@pytest.mark.parametrize("key", [Key(read_only=True), Key(append_only=True)])
@pytest.mark.parametrize("filled", ["home", "peer"])
def test_a_key_that_may_do_little_does_not_keep_from_it(tmp_path: Path, key: Key, filled: str) -> None:
    home = new_replica(tmp_path / "home", TREE if filled == "home" else None)
    peer = new_replica(tmp_path / "peer", TREE if filled == "peer" else None)
    with opened(home) as ours, contextlib.closing(key.open(os.fsencode(peer), create=False)) as theirs:
        session = Session(ours, theirs, Quiet())
        session.scan(keep=True, all_new=True)
        refused = key.read_only and filled == "home"
        assert session.round(Prefer.BOTH).in_step is not refused
    assert (snapshot(home) == snapshot(peer)) is not refused


def test_a_first_copy_over_ssh_and_a_clone_of_it(tmp_path: Path, sshd: Sshd) -> None:
    here, there, clone = tmp_path / "here", tmp_path / "there", tmp_path / "clone"
    replica(here, {"letter": "hello"})
    (here / "film").write_bytes(VIDEO)
    options = ["-e", sshd.ssh_command, "--remote-command", sshd.remote_command]
    ran = p2psync(here, "sync", "--create", *options, f"{sshd.host}:{there}")
    assert "2.0 MiB copied" in ran.out
    assert snapshot(here) == snapshot(there)
    (there / "another").write_bytes(VIDEO[::-1])
    p2psync(tmp_path, "clone", *options, f"{sshd.host}:{there}", str(clone))
    assert snapshot(clone) == snapshot(there)
    assert "in step" in p2psync(here, "sync", *options, f"{sshd.host}:{there}").out
    assert snapshot(here) == snapshot(there)
