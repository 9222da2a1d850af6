"""Large files: what both sides hold is not sent again, a broken transfer goes on, and every byte is right."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyfastcdc.cy import FastCDC as Compiled
from pyfastcdc.py import FastCDC as Plain
from xxhash import xxh3_64_hexdigest

from p2psync import alike, chunks, contents, disk, held
from p2psync import sync as syncing
from p2psync.chunks import ChunkLists, Cutter, cut_file
from p2psync.connect import connect_local
from p2psync.core.chunking import Chunks
from p2psync.core.chunking import sampled as some_of
from p2psync.core.model import Digest, Resolution
from p2psync.core.replica import Ask, Content, Like, Piece, Source, Want
from p2psync.core.retention import Limits
from p2psync.disk import OPEN_DIRECTORY
from p2psync.errors import PeerError
from p2psync.local import LocalReplica, open_replica
from p2psync.remote import RemoteReplica
from p2psync.room import RESERVE_BYTES
from p2psync.sender import Sender
from p2psync.sync import Result
from tests.support import (
    Tree,
    digest,
    do_not_wait_for_disk,
    history,
    make_tree,
    new_replica,
    opened,
    snapshot,
    sync,
    sync_open,
    write,
)

UNIT = 16 << 10
SMALL_CHANGE = 6 * UNIT
"""What an edit of a few bytes may send: the chunks that it is in, or next to."""

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


DATA = noise(1 << 20)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_wait_for_disk(monkeypatch)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two replicas with the same file."""
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    (here / "file").write_bytes(DATA)
    synced(here, there)
    return here, there


def synced(here: Path, there: Path) -> Result:
    """Sync two replicas as if the second were on another machine; they are the same then."""
    with opened(here) as home, contextlib.closing(far(there)) as peer:
        result = sync_open(home, peer)
    assert result.in_step
    assert snapshot(here) == snapshot(there)
    return result


def far(root: Path) -> RemoteReplica:
    return connect_local(os.fsencode(root), open_replica, create=False)


def edited(path: Path, data: bytes) -> None:
    write(os.fsencode(path), data)


INSERTED = DATA[: 1 << 19] + b"x" * 100 + DATA[1 << 19 :]
OVERWRITTEN = DATA[: 1 << 19] + b"x" * 100 + DATA[(1 << 19) + 100 :]


@pytest.mark.parametrize("side", ["here", "there"])
@pytest.mark.parametrize(
    "data",
    [INSERTED, OVERWRITTEN, DATA + b"x" * 100, DATA[:-100], DATA[100:], DATA[: 1 << 19] * 2],
    ids=["inserted", "overwritten", "appended", "cut short", "beginning gone", "doubled"],
)
def test_of_an_edited_file_only_what_changed_is_sent(pair: tuple[Path, Path], side: str, data: bytes) -> None:
    root = pair[side == "there"]
    edited(root / "file", data)
    assert synced(*pair).transferred < SMALL_CHANGE
    assert history(pair[side == "here"]) == [DATA]


def test_who_sent_a_version_needs_not_be_told_what_the_other_has(pair: tuple[Path, Path]) -> None:
    assert chunks_told_for(pair, pair[0], OVERWRITTEN) == [False]
    assert chunks_told_for(pair, pair[1], INSERTED) == [True]  # it was given it, and has not cut it
    assert chunks_told_for(pair, pair[1], DATA) == [False]


def chunks_told_for(pair: tuple[Path, Path], sender: Path, data: bytes) -> list[bool]:
    """Edit the file of `sender` and sync; return of which sources it was told the chunks."""
    told: list[bool] = []
    edited(sender / "file", data)
    with opened(pair[0]) as home, opened(pair[1]) as peer:
        replica = home if sender == pair[0] else peer
        real = replica.differences

        def differences(wants: Sequence[Want]) -> Iterator[list[Piece]]:
            told.extend(source.cuts is not None for want in wants for source in want.sources)
            return real(wants)

        replica.differences = differences  # type: ignore[method-assign]
        assert sync_open(home, peer).transferred < SMALL_CHANGE
    return told


def test_what_was_moved_and_edited_is_made_of_what_was_there(pair: tuple[Path, Path]) -> None:
    (pair[0] / "file").rename(pair[0] / "renamed")
    edited(pair[0] / "renamed", INSERTED)
    assert synced(*pair).transferred < SMALL_CHANGE


@pytest.mark.parametrize(
    "data",
    [INSERTED, b"x" * 100 + DATA, DATA[1 << 19 :] + noise(UNIT, 3) + DATA[: 1 << 19]],
    ids=["inserted", "put before", "in another order"],
)
def test_a_new_file_is_made_of_any_that_was_sent(pair: tuple[Path, Path], data: bytes) -> None:
    (pair[0] / "elsewhere").mkdir()
    (pair[0] / "elsewhere" / "another").write_bytes(data)
    assert synced(*pair).transferred < 2 * SMALL_CHANGE


Seed = Callable[[Path, Path], None]


def received(here: Path, there: Path) -> None:
    (there / "file").write_bytes(DATA)
    synced(here, there)


def taken(here: Path, there: Path) -> None:
    (there / "file").write_bytes(DATA)
    sync(here, there)


def seeded(here: Path, there: Path) -> None:
    for root in (here, there):
        (root / "file").write_bytes(DATA)
        os.utime(root / "file", (1, 1))
    synced(here, there)


@pytest.mark.parametrize("seed", [received, taken, seeded])
@pytest.mark.parametrize("path", ["beside", "elsewhere/file"])
@pytest.mark.parametrize(
    "data", [INSERTED, OVERWRITTEN, DATA + b"x"], ids=["inserted", "overwritten", "appended"]
)
def test_a_new_file_is_made_of_one_that_both_sides_have_however_it_came(
    tmp_path: Path, seed: Seed, path: str, data: bytes
) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    seed(here, there)
    (here / path).parent.mkdir(exist_ok=True)
    (here / path).write_bytes(data)
    assert synced(here, there).transferred < SMALL_CHANGE


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files that are sampled."""
    sizes: list[int] = []

    def hashes_of_some(fd: int, size: int) -> bytes:
        sizes.append(size)
        return chunks.hashes_of_some(fd, size)

    monkeypatch.setattr(alike, "hashes_of_some", hashes_of_some)
    return sizes


def test_a_file_is_sampled_once(pair: tuple[Path, Path], sampled: list[int]) -> None:
    for number in range(3):
        (pair[1] / f"large-{number}").write_bytes(noise((1 << 20) - 1, number))
    synced(pair[1], pair[0])
    assert sorted(sampled) == [(1 << 20) - 1] * 3 + [1 << 20]  # what is sent, and what was received
    sampled.clear()
    for number in range(3):
        (pair[1] / f"new-{number}").write_bytes(noise((1 << 20) - 2, number))
        synced(pair[1], pair[0])
    assert sampled == [(1 << 20) - 2] * 3


def test_one_of_many_as_large_is_found_by_its_name(tmp_path: Path, sampled: list[int]) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    make_tree(there, {b"%d.raw" % number: noise(1 << 19, number) for number in range(100, 140)})
    synced(here, there)
    (here / "elsewhere").mkdir()
    (here / "elsewhere" / "127 edited.raw").write_bytes(noise(1 << 19, 127)[:-100] + bytes(100))
    assert synced(here, there).transferred < SMALL_CHANGE
    assert len(sampled) < 40


def test_of_more_than_a_few_files_no_more_is_read_to_find_what_is_alike_than_would_be_sent(
    pair: tuple[Path, Path], sampled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "_AT_LEAST", 2)
    for number in range(11):
        (pair[1] / f"large-{number}").write_bytes(noise(1 << 20, 10 + number))
    synced(*pair)
    sampled.clear()
    (pair[0] / "new").write_bytes(noise(3 << 20, 2))
    synced(*pair)
    assert sampled == [1 << 20] * 3 + [3 << 20]
    sampled.clear()
    (pair[0] / "small").write_bytes(noise(1 << 19, 4))
    synced(*pair)
    assert sampled == [1 << 20] * 2 + [1 << 19]
    sampled.clear()
    monkeypatch.setattr(alike, "_AT_ONCE", 4)
    (pair[0] / "newer").write_bytes(noise(6 << 20, 3))
    synced(*pair)
    assert sampled == [1 << 20] * 4 + [6 << 20]


def test_files_that_cannot_be_read_keep_no_others_from_being_sampled(
    pair: tuple[Path, Path], sampled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "_AT_ONCE", 1)
    for name, seed in (("new closed", 5), ("new too", 6)):
        (pair[1] / name).write_bytes(noise(1 << 19, seed))
    synced(*pair)
    (pair[0] / "new").write_bytes(noise(1 << 19, 6) + b"x")

    def open_file(name: bytes, folder: int) -> int:
        if name == b"new closed":
            raise PermissionError(errno.EACCES, "Permission denied")
        return disk.open_file(name, folder)

    monkeypatch.setattr(contents, "open_file", open_file)
    assert synced(*pair).transferred < SMALL_CHANGE


def test_of_very_many_files_the_latest_are_sampled(
    pair: tuple[Path, Path], sampled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "_AMONG", 2)
    for size in (300_000, 300_001, 300_002):
        (pair[1] / f"large-{size}").write_bytes(noise(size, size))
        synced(*pair)
    sampled.clear()
    (pair[0] / "new").write_bytes(noise(300_000, 2))
    synced(*pair)
    assert sorted(sampled) == [300_000, 300_001, 300_002]  # the first is what is new


def test_where_the_other_side_has_nothing_yet_nothing_is_sampled(tmp_path: Path, sampled: list[int]) -> None:
    tree = {b"%d" % number: noise(1 << 18, number) for number in range(5)}
    synced(new_replica(tmp_path / "here", tree), new_replica(tmp_path / "there"))
    assert sampled == []


@pytest.mark.parametrize("size", [1 << 19, 3 << 20], ids=["small", "large"])
def test_a_file_that_is_written_to_is_not_sampled(pair: tuple[Path, Path], size: int) -> None:
    edited(pair[1] / "other", noise(size, 5))
    synced(*pair)
    (pair[0] / "new").write_bytes(noise(size, 5) + b"x")
    with opened(pair[0]) as home, contextlib.closing(far(pair[1])) as peer:
        real = home.alike

        def written_to(likes: Sequence[Like]) -> list[list[Digest]]:
            edited(pair[0] / "other", noise(size, 6))
            return real(likes)

        home.alike = written_to  # type: ignore[method-assign]
        assert sync_open(home, peer).transferred == size + 1
        assert home.manifest.samples.contents_with(some_of(hashes_of(noise(size, 6))), 4) == []
    synced(*pair)


def test_a_file_that_is_written_to_while_it_is_sampled_is_sampled_another_day(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(pair[1] / "other", noise(1 << 19, 5))
    synced(*pair)
    stat = (pair[0] / "other").stat()
    (pair[0] / "new").write_bytes(noise(3 << 20, 2))

    def written_to(fd: int, size: int) -> bytes:
        if size == 1 << 19:
            edited(pair[0] / "other", noise(1 << 19, 6))
        return chunks.hashes_of_some(fd, size)

    with monkeypatch.context() as patch, opened(pair[0]) as home, contextlib.closing(far(pair[1])) as peer:
        patch.setattr(alike, "hashes_of_some", written_to)
        sync_open(home, peer)
        assert home.manifest.samples.contents_with(some_of(hashes_of(noise(1 << 19, 6))), 4) == []
        assert not samples_known(home, noise(1 << 19, 5))
    (pair[0] / "other").write_bytes(noise(1 << 19, 5))  # as if nothing had been
    os.utime(pair[0] / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (pair[0] / "newer").write_bytes(noise(1 << 19, 5) + b"x")
    assert synced(*pair).transferred < SMALL_CHANGE


def test_a_file_that_is_not_what_it_was_is_not_taken_for_what_is_held(pair: tuple[Path, Path]) -> None:
    edited(pair[1] / "other", noise(1 << 20, 5))
    synced(*pair)
    (pair[0] / "new").write_bytes(noise(1 << 20, 5) + b"x")
    stat = (pair[0] / "other").stat()
    with opened(pair[0]) as home, contextlib.closing(far(pair[1])) as peer:
        real = home.alike

        def lost(likes: Sequence[Like]) -> list[list[Digest]]:
            (pair[0] / "other").write_bytes(noise(1 << 19, 5) + bytes(1 << 19))  # the disk says nothing
            os.utime(pair[0] / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
            return real(likes)

        home.alike = lost  # type: ignore[method-assign]
        assert sync_open(home, peer).transferred == (1 << 20) + 1
    assert (pair[1] / "new").read_bytes() == noise(1 << 20, 5) + b"x"


def test_a_small_part_of_a_much_larger_file_is_sent(pair: tuple[Path, Path]) -> None:
    edited(pair[1] / "other", noise(1 << 20, 5))
    synced(*pair)
    (pair[0] / "part").write_bytes(noise(1 << 20, 5)[: 1 << 17])
    (pair[0] / "whole").write_bytes(noise(1 << 20, 6))
    assert synced(*pair).transferred == (1 << 17) + (1 << 20)


def cut(data: bytes) -> tuple[Digest, Chunks]:
    fd = os.memfd_create("data")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    cutter = Cutter(UNIT)
    for _ in cut_file(fd, cutter):
        pass
    return cutter.result()


def hashes_of(data: bytes) -> bytes:
    return cut(data)[1].hashes


def test_a_new_file_is_made_of_several(pair: tuple[Path, Path]) -> None:
    other = noise(1 << 20, 2)
    (pair[0] / "other").write_bytes(other)
    assert synced(*pair).transferred == 1 << 20
    (pair[0] / "both").write_bytes(DATA + other)
    assert synced(*pair).transferred < SMALL_CHANGE


def test_a_new_file_is_made_of_several_that_were_received(pair: tuple[Path, Path]) -> None:
    for number in (2, 3):
        (pair[1] / f"part-{number}").write_bytes(noise(1 << 20, number))
    synced(*pair)
    (pair[0] / "both").write_bytes(noise(1 << 20, 2) + noise(1 << 20, 3))
    assert synced(*pair).transferred < 2 * SMALL_CHANGE


def test_of_what_a_new_file_may_be_made_of_no_more_is_read_than_four_times_its_size(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def of(lists: ChunkLists, digest: Digest, unit: int, fd: int) -> Chunks | None:
        read.append(os.fstat(fd).st_size)
        return really(lists, digest, unit, fd)

    really = ChunkLists.of
    monkeypatch.setattr(ChunkLists, "of", of)
    for number in (2, 3):
        (pair[1] / f"part-{number}").write_bytes(noise(3 << 20, number))
    synced(*pair)
    (pair[0] / "both").write_bytes(noise(3 << 20, 2)[: 5 << 17] + noise(3 << 20, 3)[: 5 << 17])
    synced(*pair)
    assert read == [3 << 20]


def test_what_a_file_may_be_made_of_is_forgotten_when_it_is_in_no_file_any_more(
    pair: tuple[Path, Path],
) -> None:
    with opened(pair[0]) as home:
        home.collect(Limits(days=0, percent=0))
        assert home.manifest.samples.are_any()
    (pair[0] / "file").unlink()
    synced(*pair)
    with opened(pair[0]) as home:
        home.collect(Limits(days=0, percent=0))
        assert not home.manifest.samples.are_any()


def test_samples_of_what_is_in_no_file_any_more_are_forgotten(pair: tuple[Path, Path]) -> None:
    (pair[0] / "new").write_bytes(noise(1 << 20, 2))
    (pair[1] / "new too").write_bytes(noise(1 << 20, 3))
    synced(*pair)
    (pair[1] / "newer").write_bytes(noise(1 << 20, 4))
    synced(*pair)
    with opened(pair[1]) as peer:
        assert samples_known(peer, DATA)
    (pair[0] / "file").unlink()
    synced(*pair)
    with opened(pair[1]) as peer:
        assert samples_known(peer, DATA)
        peer.collect(Limits(days=0, percent=0))
        assert not samples_known(peer, DATA)
        assert samples_known(peer, noise(1 << 20, 3))


def lists_known(root: Path) -> set[str]:
    """Return the digests of the contents of which it is known how they are cut."""
    return set(os.listdir(root / ".p2psync" / "chunks"))


def versions_of(count: int) -> list[bytes]:
    return [b"%d" % number + DATA for number in range(count)]


def hexes(contents: Sequence[bytes]) -> set[str]:
    return {digest(data).hex() for data in contents}


def test_of_versions_that_no_replica_should_have_any_more_it_is_forgotten_how_they_are_cut(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    synced(pair[0], new_replica(tmp_path / "behind"))
    versions = versions_of(12)
    for data in versions:
        edited(pair[0] / "file", data)
        synced(*pair)
    assert lists_known(pair[0]) == hexes([DATA, *versions])
    with opened(pair[0]) as home:
        home.collect(Limits())
        assert sum(samples_known(home, data) for data in versions) == 1
    assert lists_known(pair[0]) == hexes([DATA, *versions[-9:]])
    (pair[0] / "file").unlink()
    synced(*pair)
    with opened(pair[0]) as home:
        home.collect(Limits())
    assert lists_known(pair[0]) == hexes([DATA])


@pytest.mark.parametrize("what", ["one file", "a file each"])
def test_what_is_known_of_large_files_that_change_all_the_time_has_a_limit(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("p2psync.collect.FEW_LISTS", 4)
    most, last = 0, pair[0] / "file"
    for number, data in enumerate(versions_of(40)):
        if what == "a file each":
            last.unlink()
            last = pair[0] / str(number)
        edited(last, data)
        assert synced(*pair).transferred < SMALL_CHANGE
        most = max(most, len(lists_known(pair[0])))
    assert most <= 2 * 10 + 4 + 1
    with opened(pair[0]) as home:
        assert len(home.manifest.samples.contents_with([chunks.SAMPLED], 100)) <= most


def test_a_list_of_chunks_that_is_gone_is_made_anew(pair: tuple[Path, Path]) -> None:
    for root in pair:
        for file in (root / ".p2psync" / "chunks").iterdir():
            file.unlink()
    edited(pair[0] / "file", INSERTED)
    assert synced(*pair).transferred < SMALL_CHANGE


def samples_known(replica: LocalReplica, data: bytes) -> bool:
    return replica.manifest.samples.contents_with([chunks.SAMPLED], 100).count(digest(data)) == 1


def test_what_the_other_side_does_not_hold_any_more_is_sent(pair: tuple[Path, Path]) -> None:
    (pair[1] / "file").unlink()
    synced(*pair)
    (pair[0] / "again").write_bytes(INSERTED)
    assert synced(*pair).transferred == len(INSERTED)


def test_the_copy_of_what_loses_is_made_of_what_wins(pair: tuple[Path, Path]) -> None:
    edited(pair[0] / "file", INSERTED)
    edited(pair[1] / "file", OVERWRITTEN)
    assert synced(*pair).transferred < 2 * SMALL_CHANGE
    assert {path.read_bytes() for path in pair[0].iterdir() if path.is_file()} == {INSERTED, OVERWRITTEN}


def test_what_only_moved_is_not_sent_at_all(pair: tuple[Path, Path]) -> None:
    (pair[0] / "file").rename(pair[0] / "renamed")
    assert synced(*pair).transferred == 0


def test_nothing_in_common_is_sent_whole(pair: tuple[Path, Path]) -> None:
    edited(pair[0] / "file", noise(1 << 20, 2))
    assert synced(*pair).transferred == 1 << 20


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 1 << 20), st.integers(0, 1 << 18), st.binary(max_size=3 * UNIT)), max_size=4
    )
)
def test_whatever_is_edited_arrives(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    here, there = new_replica(folder / "here"), new_replica(folder / "there")
    data = DATA
    for root in (here, there):
        for at, gone, new in edits:
            data = data[:at] + new + data[at + gone :]
        edited(root / "file", data)
        synced(here, there)


# -- what goes wrong


def test_a_base_that_is_not_what_it_is_said_to_be_is_found_out_and_all_is_sent(
    pair: tuple[Path, Path],
) -> None:
    """As if a file was written to in the instant after it was looked at."""
    edited(pair[0] / "file", INSERTED)
    with opened(pair[0]) as home, opened(pair[1]) as peer:
        real = peer.sources

        def sources(asks: Sequence[Ask]) -> list[list[Source]]:
            found = real(asks)
            with (pair[1] / "file").open("r+b") as file:
                file.write(b"edited")
            os.utime(pair[1] / "file", ns=(0, 0))
            return found

        peer.sources = sources  # type: ignore[method-assign]
        result = sync_open(home, peer)
    assert result.transferred > 1 << 20
    assert [problem.path for problem in result.peer.problems] == [b"file"]
    assert (pair[1] / "file").read_bytes() == b"edited" + DATA[6:]


def test_wrong_chunk_lists_cost_a_transfer_and_nothing_else(pair: tuple[Path, Path]) -> None:
    for root in pair:
        with replica_lists(root) as lists:
            _, found = cut((root / "file").read_bytes())
            wrong = Chunks(array("I", reversed(found.lengths)), found.hashes)
            lists.put(digest(DATA), UNIT, wrong)
    edited(pair[0] / "file", INSERTED)
    assert synced(*pair).transferred > 1 << 20


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\xff" * 100, b"\x94\x01\xcd\x40\x00\xc4\x01a\xc4\x00"])
def test_damaged_chunk_lists_are_made_anew(pair: tuple[Path, Path], damage: bytes) -> None:
    for file in (pair[0] / ".p2psync" / "chunks").iterdir():
        file.write_bytes(damage)
    edited(pair[0] / "file", INSERTED)
    assert synced(*pair).transferred < SMALL_CHANGE


@contextlib.contextmanager
def replica_lists(root: Path) -> Iterator[ChunkLists]:
    fd = os.open(root / ".p2psync", OPEN_DIRECTORY)
    lists = ChunkLists(fd)
    yield lists
    lists.close()
    os.close(fd)


def broken_after(size: int, replica: LocalReplica) -> None:
    """Have `replica` send no more than about so many bytes."""

    def cut_off(batches: Iterator[list[Piece]]) -> Iterator[list[Piece]]:
        sent = 0
        for batch in batches:
            yield batch
            sent += sum(len(piece.data) for piece in batch)
            if sent >= size:
                raise PeerError("the connection broke")

    read, differences = replica.read, replica.differences
    replica.read = lambda digests: cut_off(read(digests))  # type: ignore[method-assign]
    replica.differences = lambda wants: cut_off(differences(wants))  # type: ignore[method-assign]


def test_a_broken_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    data = noise(8 << 20)
    (here / "file").write_bytes(data)
    for sent in (2 << 20, 3 << 20):
        with opened(here) as home, opened(there) as peer:
            broken_after(sent, home)
            with pytest.raises(PeerError, match="broke"):
                sync_open(home, peer)
    assert synced(here, there).transferred < (3 << 20) + SMALL_CHANGE
    assert not list((there / ".p2psync" / "partial").iterdir())


def test_a_transfer_that_breaks_early_keeps_what_an_earlier_one_had(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    (here / "file").write_bytes(noise(80 << 20))
    with opened(here) as home, opened(there) as peer:
        broken_after(70 << 20, home)
        with pytest.raises(PeerError, match="broke"):
            sync_open(home, peer)
    with opened(here) as home, opened(there) as peer:
        differences = home.differences

        def break_off(wants: Sequence[Want]) -> Iterator[list[Piece]]:
            yield next(differences(wants))[:1]  # the first run of what is held: 32 MiB
            raise PeerError("the connection broke")

        home.differences = break_off  # type: ignore[method-assign]
        with pytest.raises(PeerError, match="broke"):
            sync_open(home, peer)
    assert synced(here, there).transferred < (11 << 20) + SMALL_CHANGE


def broken_transfer(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Make two replicas whose sync broke when a file had come, and half of another; and a third one."""
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    third = new_replica(tmp_path / "third", {b"d/other": b"other"})
    make_tree(here, {b"d/1": noise(2 << 20, 1), b"d/2": noise(4 << 20, 2)})
    with opened(here) as home, opened(there) as peer:
        broken_after(4 << 20, home)
        with pytest.raises(PeerError, match="broke"):
            sync_open(home, peer)
    return here, there, third


def left_over(root: Path) -> list[int]:
    """Return the sizes of what broken transfers left here."""
    return sorted(file.stat().st_size for file in (root / ".p2psync" / "partial").glob("*"))


@pytest.mark.parametrize("brings", [{b"d/other": b"other"}, {}], ids=["something", "nothing"])
def test_a_broken_transfer_goes_on_after_a_sync_with_another_peer(tmp_path: Path, brings: Tree) -> None:
    here, there, _ = broken_transfer(tmp_path)
    third = new_replica(tmp_path / "another", brings)
    assert synced(third, there).transferred <= 5
    assert set(snapshot(there)) == set(snapshot(third))
    assert synced(here, there).transferred < (2 << 20) + SMALL_CHANGE
    assert left_over(there) == []


def test_what_broke_twice_goes_on_after_syncs_with_another_peer(tmp_path: Path) -> None:
    here, there, third = broken_transfer(tmp_path)
    synced(third, there)
    with opened(here) as home, opened(there) as peer:
        broken_after(1 << 20, home)
        with pytest.raises(PeerError, match="broke"):
            sync_open(home, peer)
    write(os.fsencode(third / "d" / "other"), b"edited")
    synced(third, there)
    assert synced(here, there).transferred < (1 << 20) + SMALL_CHANGE
    assert left_over(there) == []


def test_what_was_left_long_ago_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, there, third = broken_transfer(tmp_path)
    monkeypatch.setattr("p2psync.leftover.KEEP_SECONDS", -1)
    synced(third, there)
    assert left_over(there)  # a clock may be wrong for a while
    monkeypatch.setattr("p2psync.collect.due", lambda now, last: now)
    synced(third, there)
    assert left_over(there) == []


def test_gc_drops_what_was_left_long_ago(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, there, third = broken_transfer(tmp_path)
    synced(third, there)
    assert left_over(there)
    with opened(there) as replica:
        replica.collect(Limits())
        assert left_over(there)
        monkeypatch.setattr("p2psync.leftover.KEEP_SECONDS", -1)
        replica.collect(Limits())
    assert left_over(there) == []


def test_what_was_left_takes_no_more_than_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, there, third = broken_transfer(tmp_path)
    synced(third, there)
    before = left_over(there)
    free_on_disk(monkeypatch, sum(before) - 4096)
    with opened(third) as home, opened(there) as peer:
        sync_open(home, peer)
    assert len(before) == 2
    assert len(left_over(there)) == 1


def free_on_disk(patch: pytest.MonkeyPatch, size: int) -> None:
    disk = os.statvfs_result((4096, 4096, 1 << 30, size // 4096, size // 4096, 0, 0, 0, 0, 255))
    patch.setattr(os, "fstatvfs", lambda fd: disk)


def test_what_was_left_makes_room_for_what_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, there, third = broken_transfer(tmp_path)
    synced(third, there)
    write(os.fsencode(third / "large"), noise(1 << 20))
    free_on_disk(monkeypatch, RESERVE_BYTES)
    with opened(third) as home, opened(there) as peer:
        assert sync_open(home, peer).in_step
    assert left_over(there) == []


LINES = [b"line %d of a long diary\n" % number for number in range(10_000)]
"""Large enough to be cut, and small enough to be merged."""


def diary(root: Path, change: dict[int, bytes]) -> None:
    lines = [change.get(number, line) for number, line in enumerate(LINES)]
    edited(root / "diary", b"".join(lines))


def merges(here: Path, there: Path, before: dict[int, bytes]) -> bool:
    """Edit the diary on both sides of what is in step, and sync."""
    diary(here, {**before, 5: b"ours\n"})
    diary(there, {**before, 9_995: b"theirs\n"})
    return [conflict.resolution for conflict in synced(here, there).conflicts] == [Resolution.MERGED]


def test_a_text_that_came_as_differences_can_be_merged(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    diary(here, {})
    synced(here, there)
    diary(here, {0: b"edited\n"})
    assert synced(here, there).transferred < SMALL_CHANGE
    assert merges(here, there, {0: b"edited\n"})


def test_a_text_that_a_broken_run_has_staged_can_be_merged(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    diary(here, {})
    (here / "last").write_bytes(noise(3 << 20))
    with opened(here) as home, opened(there) as peer:
        broken_after(1, home)
        with pytest.raises(PeerError, match="broke"):
            sync_open(home, peer)
    assert (there / ".p2psync" / "stage" / "diary").exists()
    synced(here, there)
    assert merges(here, there, {})


def test_lists_that_are_too_long_to_be_told_are_done_without(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "_TOLD_BYTES", 100)
    edited(pair[1] / "file", INSERTED)  # who sends it has not cut what it was given
    assert synced(*pair).transferred == len(INSERTED)


@pytest.mark.parametrize(
    ("edited", "most", "asked"), [(True, 17, 2), (True, 3, 6), (False, 3, 1)], ids=["16", "bytes", "new"]
)
def test_large_contents_are_asked_about_some_at_once_and_all_that_have_no_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: bool, most: int, asked: int
) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    for number in range(17):
        (here / f"file-{number}").write_bytes(noise(1 << 18, number))
    if edited:
        synced(here, there)
        for number in range(17):
            with (here / f"file-{number}").open("ab") as file:
                file.write(b"more")
    monkeypatch.setattr(syncing, "LARGE_BATCH_BYTES", (most << 18) + 1000)
    count = 0
    real = LocalReplica.sources

    def sources(self: LocalReplica, asks: Sequence[Ask]) -> list[list[Source]]:
        nonlocal count
        count += 1
        return real(self, asks)

    monkeypatch.setattr(LocalReplica, "sources", sources)
    with opened(here) as home, opened(there) as peer:
        assert sync_open(home, peer).in_step
    assert count == asked


def test_what_is_left_of_another_version_is_used_too(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    data = noise(4 << 20)
    (here / "file").write_bytes(data)
    with opened(here) as home, opened(there) as peer:
        broken_after(3 << 20, home)
        with pytest.raises(PeerError):
            sync_open(home, peer)
    edited(here / "file", b"x" + data)
    assert synced(here, there).transferred < (1 << 20) + SMALL_CHANGE


def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    with (here / "file").open("wb") as file:
        file.seek(30 << 20)
        file.write(noise(1 << 20))
        file.truncate(64 << 20)
    synced(here, there)
    assert (there / "file").stat().st_blocks * 512 <= 2 << 20
    with (here / "file").open("r+b") as file:
        file.seek(40 << 20)
        file.write(b"edited")
    synced(here, there)
    assert (there / "file").stat().st_blocks * 512 <= 2 << 20


def test_a_small_file_that_is_a_hole_stays_one(tmp_path: Path) -> None:
    here, there = new_replica(tmp_path / "here"), new_replica(tmp_path / "there")
    with (here / "file").open("wb") as file:
        file.truncate(1 << 20)
    synced(here, there)
    assert (there / "file").stat().st_blocks == 0


# -- how files are cut


def test_where_a_file_is_cut_never_changes() -> None:
    """Two machines have to cut alike, and two releases: raise the protocol's number if this must change."""
    found, how = cut(DATA)
    assert found == digest(DATA)
    assert sum(how.lengths) == len(DATA)
    assert (len(how.lengths), xxh3_64_hexdigest(how.lengths.tobytes() + how.hashes)) == PINNED


PINNED = (43, "c87ec47bac72d979")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3 * UNIT), max_size=40))
def test_how_contents_come_does_not_change_how_they_are_cut(sizes: list[int]) -> None:
    whole, pieces = Cutter(UNIT), Cutter(UNIT)
    data = DATA[: sum(sizes)]
    found = [*whole.feed(data), *whole.end()]
    again = []
    for size in sizes:
        again += [(bytes(chunk), value) for chunk, value in pieces.feed(data[:size])]
        data = data[size:]
    again += [(bytes(chunk), value) for chunk, value in pieces.end()]
    assert again == [(bytes(chunk), value) for chunk, value in found]
    assert pieces.result() == whole.result()


@pytest.mark.parametrize("cutter", [Compiled, Plain])
def test_it_is_cut_alike_where_the_library_was_not_compiled(cutter: type) -> None:
    data = DATA[: 1 << 18]
    _, how = cut(data)
    made = cutter(UNIT, min_size=UNIT, max_size=4 * UNIT, normalized_chunking=1, seed=0)
    assert [chunk.length for chunk in made.cut_buf(data)] == list(how.lengths)


def test_chunk_lists_are_kept_as_long_as_something_may_be_made_of_them(tmp_path: Path) -> None:
    fd = os.open(tmp_path, OPEN_DIRECTORY)
    lists = ChunkLists(fd)
    one = Chunks(array("I", [1]), b"123456")
    for data in (b"held", b"gone"):
        lists.put(digest(data), UNIT, one)
    assert lists.get(digest(b"held"), UNIT) == one
    assert lists.get(digest(b"held"), 2 * UNIT) is None
    assert lists.get(digest(b"other"), UNIT) is None
    assert lists.get(digest(b"gone"), UNIT) == one
    lists.collect(lambda found: found == digest(b"held"))
    assert lists.get(digest(b"held"), UNIT) == one
    assert lists.get(digest(b"gone"), UNIT) is None
    assert lists.count() == 1
    lists.close()
    os.close(fd)


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, *files: Path) -> Iterator[None]:
    """Have the disk fail below these files."""
    bad = {file.stat().st_ino for file in files}

    def read(fd: int, size: int) -> bytes:
        if os.fstat(fd).st_ino in bad:
            raise OSError(errno.EIO, "Input/output error")
        return really(fd, size)

    really = os.read
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", read)
        yield


def test_a_file_that_the_disk_has_lost_is_not_what_another_is_made_of_and_stops_nothing(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("here", "there"):
        for path in (tmp_path / side / ".p2psync" / "chunks").iterdir():
            path.unlink()
    edited(pair[0] / "file", INSERTED)
    with failing(monkeypatch, pair[1] / "file"), opened(pair[0]) as home, opened(pair[1]) as peer:
        assert sync_open(home, peer).in_step
    assert snapshot(pair[0]) == snapshot(pair[1])


def test_what_cannot_be_copied_from_a_file_that_is_here_is_sent(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(pair[0] / "small", b"small")
    os.utime(pair[0] / "small", (0, 0))  # nor is it looked at by the scan
    synced(*pair)
    edited(pair[0] / "copy", b"small")
    with failing(monkeypatch, pair[1] / "small"), opened(pair[0]) as home, opened(pair[1]) as peer:
        assert sync_open(home, peer).in_step
    assert snapshot(pair[0]) == snapshot(pair[1])


def test_a_list_that_was_made_by_older_rules_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_replica(tmp_path / "root")
    with replica_lists(tmp_path / "root") as lists:
        with monkeypatch.context() as patch:
            patch.setattr(chunks, "_RULES", chunks._RULES - 1)
            lists.put(digest(b"cut"), UNIT, Chunks(array("I", [1]), b"123456"))
            assert lists.get(digest(b"cut"), UNIT)
        assert lists.get(digest(b"cut"), UNIT) is None


@pytest.mark.parametrize("rotted", [True, False])
@pytest.mark.parametrize("who", ["holds", "sends"])
def test_how_a_file_is_cut_is_not_remembered_of_one_that_is_not_what_it_was(
    tmp_path: Path, who: str, rotted: bool
) -> None:
    """Who trusted such a list would take chunks for held that are nowhere."""
    (tmp_path / "file").write_bytes(noise(1 << 18, 2 if rotted else 1))
    claimed = digest(noise(1 << 18, 1))

    @contextlib.contextmanager
    def opened_as_claimed(*_: object) -> Iterator[int]:
        with (tmp_path / "file").open("rb") as file:
            yield file.fileno()

    contents: Any = SimpleNamespace(opened=opened_as_claimed, is_as_known=None)
    new_replica(tmp_path / "root")
    with replica_lists(tmp_path / "root") as lists:
        if who == "holds":
            ask = Ask(Content(digest(b"wanted"), 1 << 18), [claimed], [])
            held.Held(contents, lists, lambda wanted: None).sources([ask])
        else:
            list(Sender(contents, contents, lists).differences([Want(Content(claimed, 1 << 18), [])]))
        assert (lists._stored(claimed) is not None) is not rotted
