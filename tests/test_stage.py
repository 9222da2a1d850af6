"""The stage on its own: what it takes in, what is ready, and what becomes of what a broken run left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

import p2psync.stage as stage_module
from p2psync.core.model import Entry, Kind, Stat, Transition
from p2psync.core.paths import split
from p2psync.core.replica import Content, More, Piece
from p2psync.disk import BLOCK, Span, lstat, stat_of
from p2psync.errors import ProtocolError, ReplicaError
from p2psync.stage import Stage
from tests.support import (
    OLD_NS,
    Link,
    Seen,
    digest,
    directory,
    file,
    make_tree,
    not_as_root,
    snapshot,
    symlink,
    tombstone,
    version,
)

NEW_NS = OLD_NS + 987_654_321
WANTED = b"wanted"
CONTENT = Content(digest(WANTED), len(WANTED))
LARGE = b"large" * 10
OTHER = b"other"
FOLDER = Seen("directory", 0o700, 0, b"")
"""What a directory looks like until it is finished."""


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[int]:
    """An empty sidecar, open."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def stage(sidecar: int) -> Iterator[Stage]:
    with contextlib.closing(Stage(sidecar)) as stage:
        yield stage


def expect(stage: Stage, wanted: Mapping[bytes, Entry]) -> list[Content]:
    """Have all of `wanted` made where nothing is; return the contents that are waited for."""
    return stage.expect([Transition(path, None, entry) for path, entry in wanted.items()])


def receive(stage: Stage, *pieces: Piece) -> list[bytes]:
    """Have `pieces` arrive; return what is offered to be kept."""
    kept: list[bytes] = []
    stage.receive([list(pieces)], lambda digest, data: kept.append(data))
    return kept


def whole(data: bytes) -> Piece:
    return Piece(digest(data), data, More.LAST)


def in_pieces(data: bytes, claimed: bytes | None = None) -> list[Piece]:
    """Cut `data` in three, sent as what `claimed` is."""
    name = digest(data if claimed is None else claimed)
    return [
        Piece(name, data[:2], More.MORE),
        Piece(name, data[2:4], More.MORE),
        Piece(name, data[4:], More.LAST),
    ]


def in_stage(tmp_path: Path) -> dict[bytes, Seen]:
    return snapshot(tmp_path / "stage")


def ready(data: bytes) -> Seen:
    """What `file(data)` looks like when it is staged."""
    return Seen("file", 0o644, OLD_NS, data)


def no_room(patch: pytest.MonkeyPatch, when: Callable[[bytes], bool]) -> None:
    """Have the disk be full for these blocks."""
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if when(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    patch.setattr(os, "write", write)


# -- what is waited for


def test_each_content_is_waited_for_once(stage: Stage) -> None:
    wanted = {b"p": file(WANTED), b"q": file(OTHER), b"d/p": file(WANTED, 0o600), b"e": file(b"")}
    assert expect(stage, wanted) == [CONTENT, Content(digest(OTHER), len(OTHER)), Content(digest(b""), 0)]


def test_only_what_is_not_there_yet_is_staged(tmp_path: Path, stage: Stage) -> None:
    later = version(9)
    steps = [
        Transition(b"chmod", file(WANTED), file(WANTED, 0o600, seen=later)),
        Transition(b"touch", file(WANTED), file(WANTED, mtime_ns=NEW_NS, seen=later)),
        Transition(b"delete", file(WANTED), tombstone(later)),
        Transition(b"never was", None, tombstone(later)),
        Transition(b"folder", directory(), directory(0o700, seen=later)),
        Transition(b"link", symlink(b"target"), symlink(b"target", NEW_NS, later)),
    ]
    assert stage.expect(steps) == []
    assert in_stage(tmp_path) == {}


@pytest.mark.parametrize("before", [None, tombstone(), file(OTHER), directory(), symlink(b"x")])
def test_what_replaces_or_follows_something_else_is_staged(
    tmp_path: Path, stage: Stage, before: Entry | None
) -> None:
    assert stage.expect([Transition(b"p", before, file(WANTED, seen=version(9)))]) == [CONTENT]
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}


def test_a_content_is_written_wherever_it_is_waited_for(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(WANTED), b"d/e/p": file(WANTED, 0o600, NEW_NS), b"q": file(WANTED, 0o444)})
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {
        b"d": FOLDER,
        b"d/e": FOLDER,
        b"d/e/p": ("file", 0o600, NEW_NS, WANTED),
        b"p": ready(WANTED),
        b"q": ("file", 0o444, OLD_NS, WANTED),
    }
    inodes = {os.stat(tmp_path / "stage" / path).st_ino for path in ("p", "d/e/p", "q")}
    assert len(inodes) == 3


def test_what_has_come_is_not_waited_for_any_more(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(WANTED)})
    assert stage.fill(CONTENT.digest, iter([WANTED]))
    assert not stage.fill(CONTENT.digest, iter([WANTED]))
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}


def test_what_nobody_waits_for_is_read_to_its_end_and_dropped(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(WANTED)})
    blocks = iter([b"ot", b"h", b"er"])
    assert not stage.fill(digest(OTHER), blocks)
    assert list(blocks) == []
    assert in_stage(tmp_path) == {}


def test_what_only_the_last_run_waited_for_is_dropped(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(OTHER)})
    assert expect(stage, {b"q": file(WANTED)}) == [CONTENT]
    assert not stage.fill(digest(OTHER), iter([OTHER]))
    assert stage.fill(CONTENT.digest, iter([WANTED]))
    assert in_stage(tmp_path) == {b"q": ready(WANTED)}


def test_what_was_taken_out_is_waited_for_again(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(WANTED)})
    receive(stage, whole(WANTED))
    (tmp_path / "stage" / "p").rename(tmp_path / "taken")
    assert expect(stage, {b"p": file(WANTED)}) == [CONTENT]
    with pytest.raises(FileNotFoundError):
        stage.place(b"p")


# -- contents


@pytest.mark.parametrize("mode", [0o777, 0o666, 0o644, 0o400], ids=oct)
def test_a_staged_file_has_its_permissions_and_time_at_once(tmp_path: Path, stage: Stage, mode: int) -> None:
    expect(stage, {b"p": file(WANTED, mode, NEW_NS)})
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {b"p": ("file", mode, NEW_NS, WANTED)}


def test_a_file_is_private_until_it_is_whole(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return real(fd, data)

    expect(stage, {b"p": file(LARGE, 0o666)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        receive(stage, *in_pieces(LARGE))
    assert seen == [0o600, 0o600, 0o600]


@pytest.mark.parametrize(
    "data", [b"", OTHER, os.urandom(BLOCK) * 2 + b"end"], ids=["empty", "small", "large"]
)
def test_a_file_is_copied_whole_however_large(tmp_path: Path, stage: Stage, data: bytes) -> None:
    (tmp_path / "source").write_bytes(data)
    expect(stage, {b"p": file(data), b"q": file(data)})
    with (tmp_path / "source").open("rb") as source:
        assert stage.copy(digest(data), source.fileno())
    assert in_stage(tmp_path) == {b"p": ready(data), b"q": ready(data)}


def test_a_source_that_was_edited_is_not_staged(tmp_path: Path, stage: Stage) -> None:
    (tmp_path / "source").write_bytes(b"WANTED")
    expect(stage, {b"p": file(WANTED)})
    with (tmp_path / "source").open("rb") as source:
        assert not stage.copy(CONTENT.digest, source.fileno())
    assert in_stage(tmp_path) == {}


@pytest.mark.parametrize("left", [b"much longer " * 9, Link(b"../outside")], ids=["longer", "link"])
@pytest.mark.parametrize("cut", [whole, in_pieces], ids=["whole", "pieces"])
def test_what_a_second_process_that_died_left_at_the_name_is_not_written_into(
    tmp_path: Path, stage: Stage, left: bytes | Link, cut: Callable[[bytes], Piece | list[Piece]]
) -> None:
    expect(stage, {b"p": file(WANTED)})
    make_tree(tmp_path, {b"stage/p": left, b"outside": b"precious"})
    pieces = cut(WANTED)
    receive(stage, *(pieces if isinstance(pieces, list) else [pieces]))
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}
    assert (tmp_path / "outside").read_bytes() == b"precious"


def test_short_writes_are_continued(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    expect(stage, {b"p": file(WANTED)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:2]))
        receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}


@pytest.mark.parametrize("wrong", [b"", b"want", b"WANTED", b"wanted and more"])
def test_wrong_bytes_leave_nothing_and_the_right_ones_can_still_come(
    tmp_path: Path, stage: Stage, wrong: bytes
) -> None:
    expect(stage, {b"p": file(WANTED), b"q": file(WANTED)})
    assert not stage.fill(CONTENT.digest, iter([wrong]))
    assert in_stage(tmp_path) == {}
    assert stage.fill(CONTENT.digest, iter([WANTED]))
    assert in_stage(tmp_path) == {b"p": ready(WANTED), b"q": ready(WANTED)}


@pytest.mark.parametrize("announced", [0, len(WANTED) - 1, len(WANTED) + 1])
def test_what_is_not_as_large_as_was_announced_is_not_staged(
    tmp_path: Path, stage: Stage, announced: int
) -> None:
    expect(stage, {b"p": msgspec.structs.replace(file(WANTED), size=announced)})
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {}


def test_no_more_is_written_than_was_announced(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    real = os.write

    def write(fd: int, data: bytes) -> int:
        written.append(data)
        return real(fd, data)

    expect(stage, {b"p": msgspec.structs.replace(file(LARGE), size=9)})
    blocks = iter([LARGE[:4], LARGE[4:8], LARGE[8:12], LARGE[12:]])
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert not stage.fill(digest(LARGE), blocks)
    assert written == [LARGE[:4], LARGE[4:8]]
    assert list(blocks) == []
    assert in_stage(tmp_path) == {}


class Compared(bytes):
    """A path that counts how often such paths are compared."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return super().__eq__(other)

    __hash__ = bytes.__hash__


def test_of_many_files_with_the_same_contents_each_is_taken_note_of_at_once(stage: Stage) -> None:
    expect(stage, {Compared(b"%d" % number): file(WANTED) for number in range(300)})
    Compared.times = 0
    for path, _ in reversed(stage.waiting()):
        stage.took(path, Stat(len(WANTED), 0, 0, 0))
    assert stage.lacking() == []
    assert Compared.times < 3 * 300


# -- how contents arrive


def test_what_did_not_fit_is_not_asked_for_again(stage: Stage) -> None:
    steps = [Transition(path, None, file(LARGE)) for path in (b"p", b"q")]
    stage.expect(steps, unsure=[b"p", b"q"], stays=1 << 62)
    assert not stage.fill(digest(LARGE), iter([LARGE]))
    assert stage.lacking() == []
    for step in steps:
        with pytest.raises(OSError, match="there is no room for it beside all else"):
            stage.place(step.path)


def test_only_small_whole_contents_that_match_are_offered_to_be_kept(stage: Stage) -> None:
    expect(stage, {b"p": file(WANTED), b"q": file(LARGE), b"r": file(b"right")})
    wrong = Piece(digest(b"right"), b"wrong", More.LAST)
    assert receive(stage, *in_pieces(LARGE), whole(OTHER), wrong, whole(WANTED)) == [WANTED]


def test_the_pieces_of_a_file_may_come_in_several_batches(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(LARGE), b"q": file(WANTED)})
    one, two, three = in_pieces(LARGE)
    stage.receive(iter([[one], [], [two], [three, whole(WANTED)]]), lambda digest, data: None)
    assert in_stage(tmp_path) == {b"p": ready(LARGE), b"q": ready(WANTED)}


DROPPED = {
    "nobody waits for it": in_pieces(OTHER),
    "it is something else": in_pieces(b"LARGE" * 10, claimed=LARGE),
    "it is longer": [Piece(digest(LARGE), LARGE + b"x", More.MORE), whole(LARGE)],
    "it is shorter": in_pieces(LARGE[:-1], claimed=LARGE),
    "it is gone": [Piece(digest(LARGE), b"", More.GONE)],
    "it is gone halfway": [*in_pieces(LARGE)[:2], Piece(digest(LARGE), b"", More.GONE)],
    "it was empty, and is gone": [Piece(digest(b""), b"", More.GONE)],
}


@pytest.mark.parametrize("why", DROPPED)
def test_what_is_dropped_leaves_nothing_and_what_follows_is_staged(
    tmp_path: Path, stage: Stage, why: str
) -> None:
    expect(stage, {b"p": file(LARGE), b"q": file(WANTED), b"r": file(b"")})
    assert receive(stage, *DROPPED[why], whole(WANTED)) == [WANTED]
    assert in_stage(tmp_path) == {b"q": ready(WANTED)}
    assert stage.fill(digest(LARGE), iter([LARGE]))
    assert in_stage(tmp_path) == {b"p": ready(LARGE), b"q": ready(WANTED)}


def test_a_file_whose_end_never_comes_is_dropped(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(LARGE)})
    assert receive(stage, *in_pieces(LARGE)[:2]) == []
    assert in_stage(tmp_path) == {}


@pytest.mark.parametrize("waited_for", [WANTED, OTHER], ids=["waited for", "not waited for"])
def test_pieces_of_two_files_that_are_mixed_up_are_an_error(stage: Stage, waited_for: bytes) -> None:
    expect(stage, {b"p": file(waited_for)})
    with pytest.raises(ProtocolError, match="mixed up"):
        receive(stage, in_pieces(WANTED)[0], in_pieces(LARGE)[1], in_pieces(WANTED)[2])


# -- links


@pytest.mark.parametrize("path", [b"l", b"d/e/l"])
@pytest.mark.parametrize("target", [b"target", b"..", b"\xff" * 300], ids=["a name", "a way out", "bytes"])
def test_a_link_is_made_with_its_target_and_time(
    tmp_path: Path, stage: Stage, path: bytes, target: bytes
) -> None:
    assert expect(stage, {path: symlink(target, NEW_NS)}) == []
    assert in_stage(tmp_path)[path] == ("symlink", 0, NEW_NS, target)
    folder, name = stage.place(path)
    assert os.readlink(name, dir_fd=folder) == target


def test_what_a_link_points_to_is_left_alone(tmp_path: Path, stage: Stage) -> None:
    make_tree(tmp_path, {b"outside": OTHER})
    expect(stage, {b"l": symlink(b"../outside", NEW_NS)})
    assert snapshot(tmp_path)[b"outside"].mtime_ns == OLD_NS
    assert in_stage(tmp_path) == {b"l": ("symlink", 0, NEW_NS, b"../outside")}


# -- directories


MODES = [0o777, 0o755, 0o555, 0o600, 0o300, 0o000]
"""Of directories that all may write to, as usual, write-protected, unsearchable, unreadable, closed."""


def finished(tmp_path: Path, *paths: str) -> list[tuple[int, int]]:
    """Return permissions and times of directories in the stage, parents first: they are opened then."""
    found = []
    for path in paths:
        st = (tmp_path / "stage" / path).stat()
        found.append((stat.S_IMODE(st.st_mode), st.st_mtime_ns))
        (tmp_path / "stage" / path).chmod(0o700)
    return found


def test_new_directories_are_there_at_once_and_private(tmp_path: Path, stage: Stage) -> None:
    assert expect(stage, {b"d": directory(0o777), b"e/f": directory(0o000)}) == []
    assert in_stage(tmp_path) == dict.fromkeys([b"d", b"e", b"e/f"], FOLDER)


@pytest.mark.parametrize("mode", MODES, ids=oct)
def test_new_directories_get_permissions_and_times_when_they_are_filled(
    tmp_path: Path, stage: Stage, mode: int
) -> None:
    inner = {b"d/e/f": file(WANTED), b"d/e/l": symlink(b"x"), b"d/e": directory(mode, NEW_NS)}
    expect(stage, {**inner, b"d": directory(mode), b"d/f": file(WANTED), b"d/a": directory(mode)})
    receive(stage, whole(WANTED))
    stage.finish_directories()
    assert finished(tmp_path, "d", "d/e", "d/a") == [(mode, OLD_NS), (mode, NEW_NS), (mode, OLD_NS)]
    assert in_stage(tmp_path).keys() == {b"d", b"d/a", b"d/e", b"d/e/f", b"d/e/l", b"d/f"}
    assert [stage.check(path) for path in (b"d", b"d/e", b"d/a")] == [None, None, None]


def test_directories_are_finished_after_all_that_are_in_them(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [b"a", b"a/b", b"a/b/c", b"a-b", b"a/d", b"a/d/e"]
    expect(stage, dict.fromkeys(folders, directory(0o000)))
    paths = {os.stat(tmp_path / "stage" / os.fsdecode(path)).st_ino: path for path in folders}
    done: list[bytes] = []
    real = os.fchmod

    def fchmod(fd: int, mode: int) -> None:
        done.append(paths[os.fstat(fd).st_ino])
        real(fd, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", fchmod)
        stage.finish_directories()
    assert sorted(done) == sorted(folders)
    assert all(done.index(path) < done.index(split(path)[0]) for path in folders if b"/" in path)
    finished(tmp_path, *map(os.fsdecode, folders))


def test_directories_that_are_there_already_are_not_finished(tmp_path: Path, stage: Stage) -> None:
    there = Transition(b"there", directory(), directory(0o500, seen=version(9)))
    assert stage.expect([there, Transition(b"there/f", None, file(WANTED))]) == [CONTENT]
    receive(stage, whole(WANTED))
    stage.finish_directories()
    assert in_stage(tmp_path) == {b"there": FOLDER, b"there/f": ready(WANTED)}


# -- what is ready


def test_what_is_placed_is_taken_out_by_one_rename(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"p": file(WANTED), b"d/l": symlink(b"target"), b"d/e/q": file(WANTED, 0o400)})
    receive(stage, whole(WANTED))
    for number, path in enumerate([b"p", b"d/l", b"d/e/q"]):
        folder, name = stage.place(path)
        os.rename(name, tmp_path / f"taken{number}", src_dir_fd=folder)
    taken = {path: seen for path, seen in snapshot(tmp_path).items() if path.startswith(b"taken")}
    assert taken == {
        b"taken0": ready(WANTED),
        b"taken1": ("symlink", 0, OLD_NS, b"target"),
        b"taken2": ("file", 0o400, OLD_NS, WANTED),
    }
    assert in_stage(tmp_path).keys() == {b"d", b"d/e"}


def test_a_new_directory_is_taken_out_with_all_that_is_in_it(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"d": directory(0o750), b"d/e": directory(0o700), b"d/e/p": file(WANTED)})
    receive(stage, whole(WANTED))
    stage.finish_directories()
    folder, name = stage.place(b"d")
    os.rename(name, tmp_path / "taken", src_dir_fd=folder)
    assert in_stage(tmp_path) == {}
    assert snapshot(tmp_path / "taken") == {b"e": ("directory", 0o700, 0, b""), b"e/p": ready(WANTED)}
    assert (tmp_path / "taken").stat().st_mode & 0o777 == 0o750


def test_a_directory_that_was_taken_out_is_not_written_to_any_more(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"d": directory(), b"d/p": file(WANTED)})
    receive(stage, whole(WANTED))
    stage.place(b"d/p")
    (tmp_path / "stage" / "d").rename(tmp_path / "taken")
    assert expect(stage, {b"d/q": file(WANTED)}) == [CONTENT]
    receive(stage, whole(WANTED))
    assert snapshot(tmp_path / "taken") == {b"p": ready(WANTED)}
    assert in_stage(tmp_path)[b"d/q"] == ready(WANTED)


def test_the_stat_of_a_staged_file_is_known(tmp_path: Path, stage: Stage) -> None:
    make_tree(tmp_path / "stage", {b"left": OTHER})
    expect(
        stage,
        {b"p": file(WANTED), b"d/q": file(WANTED), b"left": file(OTHER, 0o600, NEW_NS), b"l": symlink(b"x")},
    )
    receive(stage, whole(WANTED))
    for path in (b"p", b"d/q", b"left"):
        folder, name = stage.place(path)
        assert stage.check(path) == stat_of(lstat(name, folder))
    assert stage.check(b"l") is None


@pytest.mark.parametrize(
    "came", [[], [Piece(CONTENT.digest, b"WANTED", More.LAST)]], ids=["nothing", "wrong"]
)
def test_what_has_not_come_is_not_there(stage: Stage, came: list[Piece]) -> None:
    expect(stage, {b"p": file(WANTED), b"q": file(OTHER)})
    receive(stage, *came, whole(OTHER))
    for ask in (stage.place, stage.check):
        with pytest.raises(FileNotFoundError):
            ask(b"p")
        ask(b"q")


@pytest.mark.parametrize("part", [0, 1, 2])
def test_what_there_is_no_room_for_is_told_and_all_else_is_staged(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    pieces = in_pieces(LARGE)
    expect(stage, {b"p": file(LARGE), b"q": file(WANTED)})
    with monkeypatch.context() as patch:
        no_room(patch, lambda data: data == pieces[part].data)
        assert receive(stage, *pieces, whole(WANTED)) == [WANTED]
    assert in_stage(tmp_path) == {b"q": ready(WANTED)}
    for ask in (stage.place, stage.check):
        with pytest.raises(OSError) as caught:
            ask(b"p")
        assert caught.value.errno == errno.ENOSPC
        ask(b"q")


def test_what_there_was_no_room_for_can_be_begun_again(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect(stage, {b"p": file(WANTED)})
    with monkeypatch.context() as patch:
        no_room(patch, lambda data: True)
        assert not stage.fill(CONTENT.digest, iter([WANTED]))
    assert in_stage(tmp_path) == {}
    assert stage.fill(CONTENT.digest, iter([WANTED]))
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}
    assert stage.place(b"p")[1] == b"p"


def test_a_copy_that_there_is_no_room_for_is_told_and_the_others_are_staged(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []

    def second(data: bytes) -> bool:
        written.append(data)
        return len(written) == 2

    expect(stage, {b"p": file(WANTED), b"q": file(WANTED), b"r": file(WANTED)})
    with monkeypatch.context() as patch:
        no_room(patch, second)
        receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {b"p": ready(WANTED), b"r": ready(WANTED)}
    with pytest.raises(OSError) as caught:
        stage.place(b"q")
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("other", [b"b/p", b"b/q"])
def test_a_copy_in_another_folder_that_there_is_no_room_for_harms_no_other_and_leaves_nothing(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    def full(source: Span, target: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expect(stage, {b"a": directory(), b"b": directory(), b"a/p": file(LARGE), other: file(LARGE)})
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "copy_span", full)
        receive(stage, *in_pieces(LARGE))
    stage.finish_directories()
    assert in_stage(tmp_path).keys() == {b"a", b"a/p", b"b"}
    assert stage.check(b"a/p")
    with pytest.raises(OSError, match="No space") as caught:
        stage.place(other)
    assert caught.value.errno == errno.ENOSPC


def test_what_was_not_staged_for_a_new_folder_does_not_come_with_it(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"d": directory(), b"d/e": directory(), b"d/e/p": file(WANTED), b"d/l": symlink(b"x")})
    receive(stage, whole(WANTED))
    (tmp_path / "stage" / "d" / "e" / "part").write_bytes(b"of a file")
    (tmp_path / "stage" / "d" / "\udcff").write_bytes(b"")
    stage.finish_directories()
    assert in_stage(tmp_path).keys() == {b"d", b"d/e", b"d/e/p", b"d/l"}
    stage.check(b"d")


def test_what_was_not_staged_costs_no_look_at_all_files_for_each_folder(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [b"%d" % number for number in range(100)]
    expect(stage, {folder: directory() for folder in folders})
    for folder in folders:
        (tmp_path / "stage" / os.fsdecode(folder) / "part").write_bytes(b"of a file")
    looks = []
    real = stage._ready

    def ready() -> Iterator[bytes]:
        looks.append(1)
        return real()

    monkeypatch.setattr(stage, "_ready", ready)
    stage.finish_directories()
    assert in_stage(tmp_path).keys() == set(folders)
    assert len(looks) <= 2


def test_a_folder_with_what_was_not_staged_and_cannot_be_removed_stays(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"d": directory(), b"d/e": directory(), b"f": directory()})
    (tmp_path / "stage" / "d" / "e" / "folder").mkdir()
    stage.finish_directories()
    stage.check(b"f")
    for path in (b"d", b"d/e"):
        with pytest.raises(OSError):
            stage.check(path)


def test_a_staged_file_that_is_gone_ends_the_run(tmp_path: Path, stage: Stage) -> None:
    expect(stage, {b"d": directory(), b"d/p": file(WANTED), b"d/q": file(LARGE)})
    receive(stage, whole(WANTED), whole(LARGE))
    (tmp_path / "stage" / "d" / "p").unlink()
    with pytest.raises(ReplicaError, match="not there any more"):
        stage.finish_directories()


@pytest.mark.parametrize(("call", "path"), [("symlink", b"l"), ("mkdir", b"d")])
def test_a_link_or_directory_that_cannot_be_made_is_told_and_all_else_is_staged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, call: str, path: bytes
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        assert expect(stage, {b"d": directory(), b"l": symlink(b"x"), b"p": file(WANTED)}) == [CONTENT]
    receive(stage, whole(WANTED))
    stage.finish_directories()
    for ask in (stage.place, stage.check):
        with pytest.raises(OSError) as caught:
            ask(path)
        assert caught.value.errno == errno.ENOSPC
        for other in {b"d", b"l", b"p"} - {path}:
            ask(other)
    expect(stage, {b"d": directory(), b"l": symlink(b"x"), b"p": file(WANTED)})
    assert stage.place(path)[1] == path


def test_a_directory_that_cannot_be_finished_is_told_and_all_others_are_finished(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fchmod

    def fchmod(fd: int, mode: int) -> None:
        if mode == 0o750:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(fd, mode)

    expect(stage, {b"a": directory(), b"b": directory(0o750), b"c": directory()})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fchmod", fchmod)
        stage.finish_directories()
    with pytest.raises(PermissionError):
        stage.place(b"b")
    assert stage.place(b"a")[1] == b"a"
    assert stage.place(b"c")[1] == b"c"
    assert finished(tmp_path, "a", "c") == [(0o755, OLD_NS), (0o755, OLD_NS)]


# -- what a broken run left


def test_what_a_broken_run_staged_is_not_waited_for_by_the_next(tmp_path: Path, sidecar: int) -> None:
    wanted = {b"d": directory(), b"d/p": file(WANTED), b"q": file(OTHER), b"l": symlink(b"x")}
    with contextlib.closing(Stage(sidecar)) as broken:
        expect(broken, wanted)
        receive(broken, whole(WANTED))
        broken.finish_directories()
    with contextlib.closing(Stage(sidecar)) as stage:
        assert expect(stage, wanted) == [Content(digest(OTHER), len(OTHER))]
        receive(stage, whole(OTHER))
        assert in_stage(tmp_path) == {
            b"d": FOLDER,
            b"d/p": ready(WANTED),
            b"l": ("symlink", 0, OLD_NS, b"x"),
            b"q": ready(OTHER),
        }
        assert [stage.place(path)[1] for path in wanted] == [b"d", b"p", b"q", b"l"]


@pytest.mark.parametrize("data", [b"", WANTED, os.urandom(BLOCK + 1)], ids=["empty", "small", "large"])
def test_a_leftover_that_is_whole_is_used_with_the_permissions_and_time_now_wanted(
    tmp_path: Path, stage: Stage, data: bytes
) -> None:
    make_tree(tmp_path / "stage", {b"p": data})
    (tmp_path / "stage" / "p").chmod(0o600)
    assert expect(stage, {b"p": file(data, 0o444, NEW_NS)}) == []
    assert in_stage(tmp_path) == {b"p": ("file", 0o444, NEW_NS, data)}
    assert stage.place(b"p")[1] == b"p"


def test_a_leftover_in_closed_directories_is_used_and_they_are_open_again(
    tmp_path: Path, stage: Stage
) -> None:
    make_tree(tmp_path / "stage", {b"d/e/p": WANTED, b"d/e/q": OTHER, b"d/empty": None})
    for folder in ("d/empty", "d/e", "d"):
        (tmp_path / "stage" / folder).chmod(0o000)
    assert expect(stage, {b"d/e/p": file(WANTED)}) == []
    assert in_stage(tmp_path) == {
        b"d": FOLDER,
        b"d/e": FOLDER,
        b"d/e/p": ready(WANTED),
    }


PART = os.urandom(300_000)
"""Of a large file, and large enough to be kept."""


def broken_off(sidecar: int, data: bytes) -> None:
    """Have a run break off when there is so much of the file `p` in the stage."""
    with open(os.open("stage/p", os.O_WRONLY | os.O_CREAT, dir_fd=sidecar), "wb") as file:
        file.write(data)


def partial(folder: Path) -> list[int]:
    return [file.stat().st_size for file in folder.glob("partial/*")]


@pytest.mark.parametrize("wanted", [{b"p": file(PART)}, {}], ids=["wanted", "not wanted"])
@pytest.mark.parametrize("tight", [False, True])
def test_a_part_of_a_large_file_is_kept_unless_the_room_is_needed(
    tmp_path: Path, sidecar: int, stage: Stage, wanted: Mapping[bytes, Entry], tight: bool
) -> None:
    broken_off(sidecar, PART[:200_000])
    stage.expect([Transition(path, None, entry) for path, entry in wanted.items()], tight=tight)
    assert partial(tmp_path) == ([] if tight else [200_000])
    assert in_stage(tmp_path) == {}
    stage.clear()
    broken_off(sidecar, PART[:200_000])
    stage.expect([Transition(path, None, entry) for path, entry in wanted.items()])
    assert partial(tmp_path) == [200_000]


def test_a_whole_file_that_was_put_by_is_used_also_where_there_is_little_room(
    tmp_path: Path, sidecar: int, stage: Stage
) -> None:
    broken_off(sidecar, PART)
    stage.expect([])
    stage.clear()
    assert partial(tmp_path) == [len(PART)]
    assert stage.expect([Transition(b"p", None, file(PART))], tight=True) == []
    assert partial(tmp_path) == []


def test_of_two_parts_the_longer_is_kept(tmp_path: Path, sidecar: int, stage: Stage) -> None:
    for size in (250_000, 200_000):
        broken_off(sidecar, PART[:size])
        stage.expect([])
        stage.clear()
    assert partial(tmp_path) == [250_000]


def test_a_leftover_is_used_at_its_own_path_alone(tmp_path: Path, stage: Stage) -> None:
    make_tree(tmp_path / "stage", {b"p": WANTED, b"q": OTHER, b"unwanted": WANTED, b"r": OTHER})
    wanted = {b"p": file(WANTED), b"q": file(WANTED), b"r": file(WANTED), b"d/p": file(WANTED)}
    assert expect(stage, wanted) == [CONTENT]
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}
    receive(stage, whole(WANTED))
    assert {path: seen for path, seen in in_stage(tmp_path).items() if path != b"d"} == dict.fromkeys(
        wanted, ready(WANTED)
    )


@not_as_root
@pytest.mark.parametrize("mode", [0o000, 0o200], ids=oct)
def test_a_leftover_that_cannot_be_read_is_replaced(tmp_path: Path, stage: Stage, mode: int) -> None:
    make_tree(tmp_path / "stage", {b"p": WANTED})
    (tmp_path / "stage" / "p").chmod(mode)
    assert expect(stage, {b"p": file(WANTED)}) == [CONTENT]
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == {b"p": ready(WANTED)}


def leave_closed_folders(path: Path) -> None:
    make_tree(path, {b"a/b/f": WANTED, b"a/l": Link(b"f"), b"c": None, b"wanted": WANTED})
    for folder in ("a/b", "a", "c", ""):
        (path / folder).chmod(0o000)


def make_outside(tmp_path: Path) -> dict[bytes, Seen]:
    """Make what leftover links point to, and must stay as it is."""
    make_tree(tmp_path, {b"right bytes": WANTED, b"folder/d/f": WANTED})
    (tmp_path / "right bytes").chmod(0o600)
    return {path: seen for path, seen in snapshot(tmp_path).items() if path.split(b"/")[0] != b"stage"}


USELESS: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda path: path.write_bytes(b"WANTED"),
    "a part": lambda path: path.write_bytes(b"want"),
    "more": lambda path: path.write_bytes(b"wanted and more"),
    "no bytes": lambda path: path.touch(),
    "a link to the right bytes": lambda path: path.symlink_to("../right bytes"),
    "a link to a folder": lambda path: path.symlink_to("../folder"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to a device": lambda path: path.symlink_to("/dev/null"),
    "a fifo": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a folder that holds the right bytes": lambda path: make_tree(path, {b"p": WANTED}),
    "closed folders": leave_closed_folders,
}

NOW_WANTED: dict[str, tuple[Mapping[bytes, Entry], Mapping[bytes, Seen]]] = {
    "a file": ({b"p": file(WANTED)}, {b"p": ready(WANTED)}),
    "a file below": ({b"p/d/f": file(WANTED)}, {b"p": FOLDER, b"p/d": FOLDER, b"p/d/f": ready(WANTED)}),
    "a directory": ({b"p": directory()}, {b"p": FOLDER}),
    "a link": ({b"p": symlink(WANTED)}, {b"p": Seen("symlink", 0, OLD_NS, WANTED)}),
    "nothing": ({}, {}),
}
"""With what is in the stage then."""


@pytest.mark.parametrize("now", NOW_WANTED)
@pytest.mark.parametrize("useless", USELESS)
def test_any_other_leftover_makes_room_for_what_is_wanted(
    tmp_path: Path, stage: Stage, useless: str, now: str
) -> None:
    outside = make_outside(tmp_path)
    USELESS[useless](tmp_path / "stage" / "p")
    wanted, staged = NOW_WANTED[now]
    assert expect(stage, wanted) == [CONTENT for entry in wanted.values() if entry.kind is Kind.FILE]
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == staged
    assert [stage.place(path)[1] for path in wanted] == [split(path)[1] for path in wanted]
    assert {path: seen for path, seen in snapshot(tmp_path).items() if path in outside} == outside


@pytest.mark.parametrize("now", ["a file below", "a directory", "a link", "nothing"])
def test_the_right_bytes_make_room_where_no_file_is_wanted_any_more(
    tmp_path: Path, stage: Stage, now: str
) -> None:
    make_tree(tmp_path / "stage", {b"p": WANTED})
    wanted, staged = NOW_WANTED[now]
    expect(stage, wanted)
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path) == staged
    assert [stage.place(path)[1] for path in wanted] == [split(path)[1] for path in wanted]


def test_a_stage_that_is_a_link_is_not_followed(tmp_path: Path, sidecar: int) -> None:
    make_tree(tmp_path, {b"elsewhere/f": OTHER})
    (tmp_path / "stage").symlink_to("elsewhere")
    with pytest.raises(OSError):
        Stage(sidecar)


# -- clearing


def test_clearing_leaves_nothing_whatever_is_staged(tmp_path: Path, stage: Stage) -> None:
    outside = make_outside(tmp_path)
    expect(
        stage, {b"d": directory(0o000), b"d/e": directory(0o000), b"d/e/p": file(WANTED), b"q": file(OTHER)}
    )
    receive(stage, whole(WANTED))
    stage.finish_directories()
    for number, leave in enumerate(USELESS.values()):
        leave(tmp_path / "stage" / f"left {number}")
    stage.clear()
    assert snapshot(tmp_path) == {**outside, b"stage": FOLDER}


def test_nothing_is_waited_for_after_clearing_and_all_can_be_staged_again(
    tmp_path: Path, stage: Stage
) -> None:
    expect(stage, {b"d/p": file(WANTED)})
    receive(stage, whole(WANTED))
    expect(stage, {b"d/p": file(WANTED), b"q": file(OTHER)})
    stage.clear()
    assert not stage.fill(digest(OTHER), iter([OTHER]))
    assert in_stage(tmp_path) == {}
    assert expect(stage, {b"d/p": file(WANTED)}) == [CONTENT]
    receive(stage, whole(WANTED))
    assert in_stage(tmp_path)[b"d/p"] == ready(WANTED)


# -- depth


DEEP = [b"/".join([b"d" * 40] * depth) for depth in range(1, 301)]
"""Directories, the last with a path of three times PATH_MAX."""


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def deep(tmp_path: Path, few_descriptors: None) -> Iterator[bytes]:
    """A path longer than the system takes, in more directories than can be open."""
    yield DEEP[-1] + b"/f"
    subprocess.run(["chmod", "-R", "u+rwx", tmp_path / "stage"], check=True)
    subprocess.run(["rm", "-rf", tmp_path / "stage"], check=True)


def test_what_is_deeper_than_any_path_is_staged_and_used_by_the_next_run(stage: Stage, deep: bytes) -> None:
    wanted = {**dict.fromkeys(DEEP, directory(0o555)), deep: file(WANTED)}
    assert expect(stage, wanted) == [CONTENT]
    receive(stage, whole(WANTED))
    stage.finish_directories()
    folder, name = stage.place(deep)
    assert stage.check(deep) == stat_of(lstat(name, folder))
    st = os.fstat(folder)
    assert (st.st_mode & 0o777, st.st_mtime_ns) == (0o555, OLD_NS)
    assert expect(stage, wanted) == []
    stage.clear()


def test_clearing_leaves_nothing_however_deep(tmp_path: Path, stage: Stage, deep: bytes) -> None:
    expect(
        stage, {deep: file(WANTED), DEEP[-2] + b"/l": symlink(b"x"), **dict.fromkeys(DEEP, directory(0o000))}
    )
    receive(stage, whole(WANTED))
    stage.finish_directories()
    stage.clear()
    assert os.listdir(tmp_path / "stage") == []
