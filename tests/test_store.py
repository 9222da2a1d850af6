"""The store on its own: what a stage holds after a broken run, and where the history puts things."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2psync.bases import Bases
from p2psync.core.model import Digest, Extent
from p2psync.core.replica import Content, More, Piece
from p2psync.disk import BLOCK
from p2psync.errors import ProtocolError
from p2psync.store import Store
from tests.support import OLD_NS, digest, directory, file, symlink

WANTED = b"wanted"
CONTENT = Content(digest(WANTED), len(WANTED))


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[int]:
    """An empty sidecar, open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def store(sidecar: int) -> Iterator[Store]:
    store = Store(sidecar)
    yield store
    store.close()


def reopened(sidecar: int) -> Store:
    return Store(sidecar)


def in_stage(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "stage").iterdir()}


def leave_behind(tmp_path: Path, data: bytes, mode: int = 0o600) -> Path:
    """Have a broken run leave `data` in the stage, as what is wanted."""
    (tmp_path / "stage").mkdir(exist_ok=True)
    path = tmp_path / "stage" / digest(WANTED).hex()
    path.write_bytes(data)
    path.chmod(mode)
    return path


def nothing(digest: Digest, data: bytes) -> None:
    """Keep nothing."""


# -- what a broken run left


def test_a_leftover_that_is_whole_is_used(tmp_path: Path, sidecar: int) -> None:
    leave_behind(tmp_path, WANTED)
    store = Store(sidecar)
    assert store.has_staged(CONTENT)
    name = store.take(file(WANTED, 0o640))
    assert os.stat(name, dir_fd=store.fd).st_mtime_ns == OLD_NS
    assert in_stage(tmp_path) == {os.fsdecode(name): WANTED}
    store.close()


@pytest.mark.parametrize("data", [b"", b"want", b"WANTED", b"wanted and more"])
def test_a_leftover_that_is_not_whole_is_replaced(tmp_path: Path, sidecar: int, data: bytes) -> None:
    leave_behind(tmp_path, data)
    store = Store(sidecar)
    assert not store.has_staged(CONTENT)
    store.want([CONTENT])
    store.stage([[Piece(CONTENT.digest, WANTED, More.LAST)]], nothing)
    assert store.has_staged(CONTENT)
    assert in_stage(tmp_path) == {CONTENT.digest.hex(): WANTED}
    store.close()


def test_a_leftover_that_cannot_be_read_is_replaced(tmp_path: Path, sidecar: int) -> None:
    leave_behind(tmp_path, WANTED).unlink()
    (tmp_path / "stage" / digest(WANTED).hex()).symlink_to("/dev/null")
    store = Store(sidecar)
    assert not store.has_staged(CONTENT)
    assert store.stage_bytes(WANTED, CONTENT)
    assert in_stage(tmp_path) == {CONTENT.digest.hex(): WANTED}
    store.close()


def test_what_died_between_stage_and_tree_does_not_get_in_the_way(tmp_path: Path, sidecar: int) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "new").mkdir()
    store = Store(sidecar)
    assert store.take(symlink(b"target")) == b"new"
    assert os.readlink(b"new", dir_fd=store.fd) == b"target"
    store.close()


def test_an_unfinished_copy_in_the_same_run_can_be_begun_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert not store.stage_bytes(WANTED, CONTENT)
    assert not store.has_staged(CONTENT)
    assert store.stage_bytes(WANTED, CONTENT)
    assert in_stage(tmp_path) == {CONTENT.digest.hex(): WANTED}


def test_clearing_the_stage_leaves_nothing(tmp_path: Path, store: Store) -> None:
    assert store.stage_bytes(WANTED, CONTENT)
    (tmp_path / "stage" / "folder").mkdir()
    store.clear_stage()
    assert in_stage(tmp_path) == {}
    assert not store.has_staged(CONTENT)
    assert store.stage_bytes(WANTED, CONTENT)


# -- stage


def test_bytes_that_are_not_what_is_wanted_are_not_staged(tmp_path: Path, store: Store) -> None:
    assert not store.stage_bytes(b"WANTED", CONTENT)
    assert in_stage(tmp_path) == {}


def test_a_file_is_copied_whole_however_large(tmp_path: Path, store: Store) -> None:
    data = os.urandom(BLOCK) * 2 + b"end"
    (tmp_path / "source").write_bytes(data)
    with (tmp_path / "source").open("rb") as source:
        assert store.stage_copy(source.fileno(), Content(digest(data), len(data)))
    assert in_stage(tmp_path) == {digest(data).hex(): data}


def test_short_writes_are_continued(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:2]))
    assert store.stage_bytes(WANTED, CONTENT)
    assert in_stage(tmp_path) == {CONTENT.digest.hex(): WANTED}


def test_staged_files_are_private_until_they_are_taken(tmp_path: Path, store: Store) -> None:
    store.stage_bytes(WANTED, CONTENT)
    (path,) = (tmp_path / "stage").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    store.take(file(WANTED, 0o644))
    assert path.stat().st_mode & 0o777 == 0o644


def test_only_small_whole_contents_that_match_are_offered_to_be_kept(store: Store) -> None:
    kept: list[bytes] = []
    large, other = b"large" * 10, b"other"
    store.want([CONTENT, Content(digest(large), len(large))])
    batches = [
        [Piece(digest(large), large[:-1], More.MORE), Piece(digest(large), large[-1:], More.LAST)],
        [Piece(digest(other), other, More.LAST), Piece(CONTENT.digest, WANTED, More.LAST)],
    ]
    store.stage(batches, lambda digest, data: kept.append(data))
    assert kept == [WANTED]


def test_pieces_of_two_files_that_are_mixed_up_are_an_error(store: Store) -> None:
    store.want([CONTENT])
    mixed = [Piece(CONTENT.digest, b"wan", More.MORE), Piece(digest(b"other"), b"ted", More.LAST)]
    with pytest.raises(ProtocolError, match="mixed up"):
        store.stage([mixed], nothing)


def test_what_is_taken_often_is_copied_until_the_last_time(tmp_path: Path, store: Store) -> None:
    store.stage_bytes(WANTED, CONTENT)
    entries = [file(WANTED), file(WANTED, 0o600)]
    store.expect(entries)
    taken = [store.take(entries[0])]
    os.rename(taken[0], "first", src_dir_fd=store.fd, dst_dir_fd=store.fd)
    taken.append(store.take(entries[1]))
    assert taken == [b"new", CONTENT.digest.hex().encode()]
    assert in_stage(tmp_path) == {"first": WANTED, CONTENT.digest.hex(): WANTED}
    with pytest.raises(FileNotFoundError):
        store.take(entries[1])


def test_what_was_never_staged_cannot_be_taken(tmp_path: Path, sidecar: int) -> None:
    leave_behind(tmp_path, b"not verified")
    store = Store(sidecar)
    with pytest.raises(FileNotFoundError):
        store.take(file(WANTED))
    store.close()


def test_a_new_directory_can_be_moved(store: Store) -> None:
    name = store.take(directory(0o555))
    assert os.stat(name, dir_fd=store.fd).st_mode & 0o777 == 0o755


# -- history


def put_away(store: Store, path: bytes, data: bytes) -> None:
    shelf, name = store.shelf(path)
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=shelf)
    os.write(fd, data)
    os.close(fd)


def test_each_run_has_a_folder_of_its_own_with_the_paths_as_they_were(tmp_path: Path, store: Store) -> None:
    for data in (b"1", b"2"):
        store.begin_run()
        put_away(store, b"a/b/f", data)
    runs = sorted((tmp_path / "history").iterdir())
    assert [(run / "a" / "b" / "f").read_bytes() for run in runs] == [b"1", b"2"]


def test_a_place_in_the_history_is_never_one_that_is_taken(tmp_path: Path, store: Store) -> None:
    store.begin_run()
    names = [b"f", b"f", b"f", b"n" * 255, b"n" * 255]
    for number, name in enumerate(names):
        put_away(store, name, b"%d" % number)
    (run,) = (tmp_path / "history").iterdir()
    assert sorted(path.read_bytes() for path in run.iterdir()) == [b"0", b"1", b"2", b"3", b"4"]


# -- kept texts


@pytest.fixture
def bases(sidecar: int) -> Iterator[Bases]:
    bases = Bases(sidecar, lambda digests: set())
    yield bases
    bases.close()


def keep(bases: Bases, *texts: bytes) -> dict[bytes, Extent]:
    for text in texts:
        bases.add(digest(text), text)
    return {text: extent for extent in bases.flush() for text in texts if extent.digest == digest(text)}


def test_kept_texts_are_read_back_each_by_itself(bases: Bases) -> None:
    texts = [b"one\n", b"two\n" * 1000, b"three"]
    extents = keep(bases, *texts) | keep(bases, b"later\n")
    assert {text: bases.read(extent) for text, extent in extents.items()} == {
        text: text for text in [*texts, b"later\n"]
    }


def test_texts_beyond_a_block_are_kept_too(bases: Bases) -> None:
    texts = [b"%d\n" % number + bytes([65 + number]) * 300_000 for number in range(5)]
    extents = keep(bases, *texts)
    assert [bases.read(extents[text]) for text in texts] == texts
    assert len({extent.offset for extent in extents.values()}) > 1


def test_only_texts_are_kept(bases: Bases) -> None:
    assert keep(bases, b"", b"\0", b"x" * (1 << 20) + b"x", b"text").keys() == {b"text"}


def test_a_text_that_is_kept_already_is_not_written_again(tmp_path: Path, sidecar: int) -> None:
    bases = Bases(sidecar, lambda digests: {digest(b"known\n")})
    assert keep(bases, b"known\n", b"new\n").keys() == {b"new\n"}
    bases.close()


@pytest.mark.parametrize("damage", ["cut", "overwritten", "lost", "another text"])
def test_a_kept_text_that_was_damaged_is_none(tmp_path: Path, bases: Bases, damage: str) -> None:
    extent = keep(bases, b"text\n" * 100)[b"text\n" * 100]
    path = tmp_path / "bases"
    match damage:
        case "cut":
            os.truncate(path, extent.length - 1)
        case "overwritten":
            path.write_bytes(os.urandom(extent.length))
        case "lost":
            path.write_bytes(b"")
        case _:
            extent = extent._replace(start=1, size=extent.size - 1)
    assert bases.read(extent) is None


def test_texts_kept_by_two_runs_do_not_overwrite_each_other(bases: Bases, sidecar: int) -> None:
    other = Bases(sidecar, lambda digests: set())
    mine, theirs = keep(bases, b"mine\n"), keep(other, b"theirs\n")
    assert bases.read(theirs[b"theirs\n"]) == b"theirs\n"
    assert other.read(mine[b"mine\n"]) == b"mine\n"
    other.close()
