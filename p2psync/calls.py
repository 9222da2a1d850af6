"""What two p2psyncs say to each other: one message for each call of the Replica protocol.

Each call is one tagged frame; its answer is a value, a stream of values, or an error. Owns the messages,
how much goes into one, and the checks of what they bring, whichever side says it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Annotated, TypeVar

import msgspec

from p2psync import errors
from p2psync.core.model import Entry, Problem, Transition
from p2psync.core.replica import (
    BASES,
    FEW,
    SOURCES,
    VERSIONS,
    AnyDigest,
    AnyReplica,
    Ask,
    Change,
    Content,
    Count,
    Identity,
    Like,
    Mark,
    Met,
    Name,
    Scanned,
    Source,
    Unread,
    Want,
)
from p2psync.errors import ProtocolError
from p2psync.wire import check_path, plain

_T = TypeVar("_T")

BATCH_BYTES = 1 << 20
"""About as much goes into one frame: far below the limit, far above what a round trip costs."""

CALL, VALUE, END, ERROR = b"C", b"V", b"E", b"X"
"""Kinds of frames."""


# -- messages

AnyChanges = Annotated[list[Change], FEW]
AnyDigests = Annotated[list[AnyDigest | None], FEW]
AnyUnread = Annotated[list[Unread], FEW]
AnyContents = Annotated[list[Content], FEW]
AnyAlike = Annotated[list[Annotated[list[AnyDigest], BASES]], FEW]
AnySources = Annotated[list[Annotated[list[Source], SOURCES]], FEW]
AnyTransitions = Annotated[list[Transition], FEW]
_BASES_AT_ONCE = msgspec.Meta(max_length=512)
AnyBases = Annotated[list[Annotated[list[Entry], msgspec.Meta(max_length=VERSIONS)]], _BASES_AT_ONCE]
AnyTexts = Annotated[list[bytes | None], FEW]


Seconds = Annotated[float, msgspec.Meta(ge=0, le=366 * 24 * 3600)]


class _Call(msgspec.Struct, frozen=True, tag=True, array_like=True):
    pass


class RoomIfBlank(_Call, frozen=True):
    pass


class Scan(_Call, frozen=True):
    keep: bool
    doubt: bool = False
    leave_large: bool = False


class ReadUnread(_Call, frozen=True):
    pass


class GetUnread(_Call, frozen=True):
    pass


class TakeUnread(_Call, frozen=True):
    files: Annotated[list[Unread], FEW]


class NoteUnread(_Call, frozen=True):
    met: Annotated[list[Met], FEW]


class PutBy(_Call, frozen=True):
    size: Count


class GetMark(_Call, frozen=True):
    peer: AnyReplica


class Changes(_Call, frozen=True):
    since: Count


class Lookup(_Call, frozen=True):
    names: Annotated[list[Name], FEW]


class Bases(_Call, frozen=True):
    paths: Annotated[list[bytes], _BASES_AT_ONCE]


class Texts(_Call, frozen=True):
    digests: Annotated[list[AnyDigest], FEW]


class Rehash(_Call, frozen=True):
    paths: Annotated[list[bytes], FEW]


class Sparse(_Call, frozen=True):
    contents: AnyContents


class Prepare(_Call, frozen=True):
    sparse: AnyContents = []


class Take(_Call, frozen=True):
    pass


class Read(_Call, frozen=True):
    digests: Annotated[list[AnyDigest], FEW]


class Alike(_Call, frozen=True):
    likes: Annotated[list[Like], FEW]


class Sources(_Call, frozen=True):
    asks: Annotated[list[Ask], FEW]


class Differences(_Call, frozen=True):
    wants: Annotated[list[Want], FEW]


class Stage(_Call, frozen=True):
    pass


class Apply(_Call, frozen=True):
    pass


class Newest(_Call, frozen=True):
    pass


class Files(_Call, frozen=True):
    pass


class GetPoint(_Call, frozen=True):
    pass


class Recalls(_Call, frozen=True):
    seq: Count
    nonce: Count
    tick: Count


class Remint(_Call, frozen=True):
    peer: AnyReplica
    since: Count


class Acknowledge(_Call, frozen=True):
    peer: Identity
    mark: Mark


class Watch(_Call, frozen=True):
    """From now on, watch the tree, and scan only what changed."""

    settle: Seconds
    poll: Seconds
    full_every: Seconds


class Wait(_Call, frozen=True):
    """Unlock, and tell `News` until something has changed, or the next call comes."""


class News(IntEnum):
    """What a far end tells that was told to `Wait`."""

    CHANGED = 0
    """Something has changed there: the last that is told."""
    LOOKING = 1
    """Something happened there that takes long to look at; calls have to wait for that."""
    NOTHING = 2
    """It has been looked at, and nothing has changed."""


class Open(_Call, frozen=True):
    """Lock again after `Wait`; answered with the identity, or with `Locked`: then it can be tried again."""


class Describe(_Call, frozen=True):
    """Tell what is so there: `facts.Facts`."""


class Echo(_Call, frozen=True):
    """Send back so many bytes; `data` is only there to be sent."""

    data: bytes
    size: Annotated[int, msgspec.Meta(ge=0, le=8 << 20)]


class Close(_Call, frozen=True):
    pass


AnyCall = (
    RoomIfBlank
    | Scan
    | ReadUnread
    | GetUnread
    | TakeUnread
    | NoteUnread
    | PutBy
    | GetMark
    | Changes
    | Lookup
    | Bases
    | Texts
    | Rehash
    | Sparse
    | Prepare
    | Take
    | Read
    | Alike
    | Sources
    | Differences
    | Stage
    | Apply
    | Newest
    | Files
    | GetPoint
    | Recalls
    | Remint
    | Acknowledge
    | Watch
    | Wait
    | Open
    | Describe
    | Echo
    | Close
)


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An error, on its way to the other side."""

    kind: str
    message: str


FAILURES = {
    kind.__name__: kind
    for kind in (
        errors.ReplicaError,
        errors.NotAReplica,
        errors.NoRoom,
        errors.Damaged,
        errors.GuardTripped,
        errors.Locked,
        errors.PeerError,
        errors.ProtocolError,
    )
}


def batches(items: Sequence[_T], weigh: Callable[[_T], int]) -> Iterator[list[_T]]:
    """Split `items` into lists of about `BATCH_BYTES`, as `weigh` estimates the frames they make."""
    batch: list[_T] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += weigh(item)
        if weight >= BATCH_BYTES:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch


def weight(item: Transition | Change) -> int:
    """Estimate the bytes of what holds one or two entries."""
    if isinstance(item, Change):
        return len(item.path) + _entry_weight(item.entry)
    before = _entry_weight(item.expected) if item.expected is not None else 0
    return len(item.path) + before + _entry_weight(item.wanted) + sum(map(len, item.after))


def _entry_weight(entry: Entry) -> int:
    return 100 + len(entry.target) + 16 * len(entry.version)


def in_one(scanned: Scanned) -> Scanned:
    """Return as much of what a scan found as a message takes.

    The problems beyond it are counted: nothing is decided by those of the other side.
    """
    problems = next(batches(scanned.problems, lambda problem: 10 + len(problem.path) + len(problem.why)), [])
    if more := len(scanned.problems) - len(problems):
        path, why = problems[-1].path, problems[-1].why
        problems[-1] = Problem(path, f"{why}; {more} more paths there have problems")
    skipped = next(batches(scanned.skipped, lambda path: 10 + len(path)), [])
    return msgspec.structs.replace(scanned, problems=problems, skipped=skipped)


def plain_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems of the other side as they may be shown."""
    return [Problem(problem.path, plain(problem.why)) for problem in problems]


# -- what must be so, whoever says it


def check_length(answers: Sequence[object], asked: Sequence[object]) -> None:
    """Refuse more or fewer answers than questions, with a ProtocolError."""
    if len(answers) != len(asked):
        raise ProtocolError(f"the peer gave {len(answers)} answers to {len(asked)} questions")


def check_among(answers: Iterable[_T], asked: Container[_T]) -> None:
    """Refuse an answer to what was not asked, with a ProtocolError."""
    if any(answer not in asked for answer in answers):
        raise ProtocolError("the peer answered what was not asked")


def check_paths(paths: Iterable[bytes]) -> None:
    """Refuse paths as `wire.check_path` does."""
    for path in paths:
        check_path(path)
