"""The Replica protocol: all that a sync asks of a side, wherever that side is.

`LocalReplica` does it on disk, `RemoteReplica` sends each call to one. The types here are what travels;
`wire` decodes them within their bounds and checks paths and entries.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Annotated, NamedTuple, Protocol

import msgspec
from xxhash import xxh3_128_digest

from p2psync.core.chunking import HASH_BYTES, MOST_BASES, Chunks
from p2psync.core.model import Digest, Entry, Problem, ShownPath, Stat, Transition
from p2psync.core.reconcile import Contest
from p2psync.core.vector import ReplicaId, Stamp

_Count = msgspec.Meta(ge=0, le=(1 << 63) - 1)
"""What SQLite can hold."""
Count = Annotated[int, _Count]
AnyReplica = Annotated[ReplicaId, _Count]
_Rules = Annotated[bytes, msgspec.Meta(max_length=256)]
AnyDigest = Annotated[Digest, msgspec.Meta(min_length=16, max_length=16)]

RECALLED = 100_000
"""Changes of its own that a replica recalls. Those before are not doubted: who has not met it for so long
must not take it for a copy."""
RECALLED_STEP = 1000
"""Of those before, it recalls each of a number that this divides: to find what two states have in common."""
TEXTS_AT_ONCE = 12
"""Texts of 1 MiB at most in an answer."""
MAX_ITEMS = 1 << 14
"""More cannot be in a frame of a MiB: a list of empty lists takes seventy times its bytes in memory."""
FEW = msgspec.Meta(max_length=MAX_ITEMS)
MAX_PATHS = 1 << 17
"""In what is told at once: more than are in a MiB of paths."""
_PATHS = msgspec.Meta(max_length=MAX_PATHS)
VERSIONS = 256
"""Earlier versions of a path that are told at most."""
BASES = msgspec.Meta(max_length=MOST_BASES)
SOURCES = msgspec.Meta(max_length=MOST_BASES + 1)
"""Of contents: their bases, and what a broken transfer left."""


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Who a replica is."""

    replica: AnyReplica
    name: str
    """For people: `host:dirname` unless they chose another."""
    epoch: Count
    """New with the id. Who takes a replica that has become another for the one that it was keeps the mark of
    that, but nothing counts as known: versions were marked anew under the sequence numbers that they had."""


class Scanned(msgspec.Struct, frozen=True, array_like=True):
    """What a scan found out."""

    problems: Annotated[list[Problem], _PATHS]
    """Paths that could not be read; their entries stay what they were (I6)."""
    skipped: Annotated[list[ShownPath], _PATHS]
    """Sockets, fifos, devices and reserved names met for the first time."""
    rules: _Rules
    """Fingerprint of all ignore rules in force; empty: there are none."""
    mounts: Annotated[list[ShownPath], _PATHS] = []
    """Directories on which something is mounted."""
    unread: Count = 0
    """Bytes of large new files that were left for `read_unread`."""


class Point(msgspec.Struct, frozen=True, array_like=True):
    """How far a replica's own changes go."""

    seq: Count
    """Of the newest change; 0: it knows nothing yet."""
    nonce: Count
    """Random, made with that change: a copy or an old state of the replica has another there, or none."""


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """How far a replica has taken in the changes of another."""

    epoch: Count
    seq: Count
    """0: nothing is taken for known, for too much was left behind to remember all of it."""
    rules: _Rules
    """The rules of both sides at the time: other rules may show other paths."""
    pending: Annotated[list[bytes], _PATHS] = []
    """Paths that were left behind all the same."""
    nonce: Count = 0
    """Of the change `seq`."""
    tick: Count = 0
    """The largest of the other's that is known here, whoever told of it; only where a mark is asked for."""
    in_step: bool = True
    """Was there no problem with any path, that could not be read, say, when it was made?"""


class Change(NamedTuple):
    """A path and its entry."""

    path: bytes
    entry: Entry


class Name(NamedTuple):
    """A path asked about, and whether the other side has a directory there: rules may depend on it."""

    path: bytes
    directory: bool


class Found(msgspec.Struct, frozen=True, array_like=True):
    """The answer to a lookup."""

    entries: Annotated[list[Entry | None], FEW]
    """One for each path asked about."""
    ignored: Annotated[list[bytes], FEW]
    """Those of the paths that this replica's rules ignore."""


class Content(NamedTuple):
    """The contents of a file, wherever they are."""

    digest: AnyDigest
    size: Count


class Like(NamedTuple):
    """A question: of what are large contents made that both sides may have?"""

    content: Content
    bases: Annotated[list[AnyDigest], BASES]
    """Contents that they are probably like."""


class Ask(NamedTuple):
    """A question: what is held that large contents may be made of?"""

    content: Content
    bases: Annotated[list[AnyDigest], BASES]
    """Contents that they may be like."""
    known: Annotated[list[AnyDigest], BASES]
    """Those among these of which the other side knows how they are cut."""


class Cuts(msgspec.Struct, frozen=True, array_like=True):
    """How a file is cut into chunks."""

    lengths: bytes
    """Of each chunk: its bytes, in four bytes, the least first."""
    hashes: bytes
    """Of each chunk, one after the other."""

    def __post_init__(self) -> None:
        if len(self.lengths) // 4 != len(self.hashes) // HASH_BYTES or len(self.lengths) % 4:
            raise ValueError("there is not one hash for each chunk")

    @classmethod
    def of(cls, chunks: Chunks) -> Cuts:
        """Return chunks as they are told."""
        return cls(_turned(chunks.lengths).tobytes(), chunks.hashes)

    def chunks(self) -> Chunks:
        """Return the chunks that were told."""
        return Chunks(_turned(array("I", self.lengths)), self.hashes)


def _turned(lengths: array[int]) -> array[int]:
    """Turn the bytes of numbers, if they are not in the order in which they are told."""
    if sys.byteorder == "little":
        return lengths
    turned = array("I", lengths)
    turned.byteswap()
    return turned


class Source(NamedTuple):
    """A file that is held, and may be like contents that are lacking."""

    digest: Annotated[Digest, msgspec.Meta(max_length=16)]
    """Of its contents; empty: they are what a broken transfer left."""
    cuts: Cuts | None
    """None: the other side knows them."""


class Want(NamedTuple):
    """Large contents, and what is held there that they may be made of."""

    content: Content
    sources: Annotated[list[Source], SOURCES]


class More(IntEnum):
    """What follows a piece of content."""

    MORE = 0
    LAST = 1
    GONE = 2
    """Nothing: what has the digest is not there any more."""


class Unread(NamedTuple):
    """A large file that a scan has left."""

    path: bytes
    size: Count
    """Bytes."""


class Met(NamedTuple):
    """What such a file was when it was copied: verified, with a stat that was the same before and after."""

    path: bytes
    digest: AnyDigest
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)]
    stat: Stat
    began_ns: int
    """When that began, in nanoseconds since 1970."""


class Piece(NamedTuple):
    """A part of a file's contents; the pieces of a file follow one another."""

    digest: AnyDigest
    data: bytes
    more: More
    source: Count = 0
    """Instead of data: a part of this one of the sources that were told."""
    offset: Count = 0
    size: Count = 0
    """Bytes of it."""


def place_of(path: bytes) -> Digest:
    """Return what stands for the digest of a file that nobody has read yet."""
    return Digest(xxh3_128_digest(path))


PIECE_BYTES = 1024 * 1024
"""A piece holds at most this much, so that a text that may be merged is one piece; a batch of pieces
holds at most twice as much."""


MAX_PIECES = 1000
"""In a batch, at most."""
AnyPieces = Annotated[list[Piece], msgspec.Meta(max_length=MAX_PIECES)]


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """What became of some transitions: all are done but those with a problem."""

    done: Count
    problems: Annotated[list[Problem], FEW]


class Taken(msgspec.Struct, frozen=True, array_like=True):
    """How far contents are taken in."""

    files: Count
    size: Count
    """Bytes."""
    lacking: Annotated[list[Content], FEW] = []
    """What could not be had; told at the end."""
    path: ShownPath = b""
    """The last of the files."""


class Replica(Protocol):
    """One side of a sync. Open means locked: no other run can touch it until `close`."""

    @property
    def identity(self) -> Identity:
        """Who this is."""

    def room_if_blank(self) -> int:
        """Return how many bytes a replica takes in which there is nothing at all; of any other, 0."""

    def scan(self, keep: bool, doubt: bool = False, leave_large: bool = False) -> Scanned:
        """Find out what changed on disk.

        Args:
            keep: write the findings to the manifest; if not, they are forgotten by `close`.
            doubt: read every file, whatever its size and times are.
            leave_large: leave large files that are new for `read_unread`: until then it is as if they were
                not there.

        Raises:
            ReplicaError: the root or the manifest cannot be read at all.
        """

    def read_unread(self) -> Generator[list[Piece], None, None]:
        """Yield the files that the scan left, and record them as they are read.

        Their contents are named by their places, since nobody knows them yet. Of a file that cannot be read,
        or is written to meanwhile, the last piece is `GONE`: it is not recorded, and the next scan will tell.
        """

    def unread(self) -> Sequence[Unread]:
        """Return the files that the scan left, for a neighbour that takes them itself."""

    def take_unread(self, files: Sequence[Unread]) -> Iterator[Met]:
        """Take in such files of the neighbour, for `prepare`, but for what is not as it was seen."""

    def note_unread(self, met: Sequence[Met]) -> None:
        """Record what the neighbour has found these files to be."""

    def put_by(self, batches: Iterable[list[Piece]], size: int) -> None:
        """Take in what the other side reads with `read_unread`, for `prepare`; no more than `size` bytes."""

    def mark(self, peer: ReplicaId) -> Mark | None:
        """Return how far this replica has taken in the changes of `peer`, None if never."""

    def changes(self, since: int) -> Iterator[list[Change]]:
        """Yield all entries newer than sequence number `since` that are not ignored, in batches."""

    def lookup(self, names: Sequence[Name]) -> Found:
        """Return what is known of each of `names`."""

    def bases(self, paths: Sequence[bytes]) -> list[list[Entry]]:
        """Return the earlier versions of each of `paths` that are remembered."""

    def texts(self, digests: Sequence[Digest]) -> list[bytes | None]:
        """Return contents of at most `MAX_TEXT` bytes, None for those not held here."""

    def rehash(self, paths: Sequence[bytes]) -> list[Digest | None]:
        """Read files anew and return the digests of their bytes, whatever the manifest says they are.

        None for what the manifest does not vouch for as it is now, or what cannot be read.
        """

    def sparse(self, contents: Sequence[Content]) -> list[Content]:
        """Return those that this replica has with holes; their sizes are what they take without."""

    def prepare(self, transitions: Sequence[Transition], sparse: Sequence[Content] = ()) -> list[Content]:
        """Take note of what is to be done, and stage all of it that this replica holds; return what it lacks.

        Args:
            transitions: what is to be done.
            sparse: what the other side says of contents that come.

        Raises:
            ReplicaError: the stage cannot be written to.
            GuardTripped: the disk would be full, even without a few large files: those are problems.
        """

    def take(self) -> Iterator[Taken]:
        """Take in what `prepare` lacked from the other side's tree, if that is on this machine.

        Yields:
            How much more is taken in; in the end, what still lacks.
        """

    def read(self, digests: Sequence[Digest]) -> Iterator[list[Piece]]:
        """Yield the contents with these digests, in their order, in batches of pieces."""

    def alike(self, likes: Sequence[Like]) -> list[list[Digest]]:
        """Return what large contents that this replica has may be made of, and it knows how that is cut.

        Of each: those among its bases, or if it has none, others that have chunks in common with it.
        """

    def sources(self, asks: Sequence[Ask]) -> list[list[Source]]:
        """Return what is held of each of the contents that `prepare` lacked.

        Good until the next call: `stage` takes parts from there.
        """

    def differences(self, wants: Sequence[Want]) -> Iterator[list[Piece]]:
        """Yield contents as `read` does, but tell where a source has the same."""

    def stage(self, batches: Iterable[list[Piece]]) -> None:
        """Take in what `prepare` lacked, verified; what does not match its digest is dropped (I8)."""

    def apply(self) -> Iterator[Applied]:
        """Carry out what was prepared, telling how it goes; when exhausted, all outcomes are durable (I5)."""

    def newest(self) -> int:
        """Return the sequence number of the newest change; 0: this replica knows nothing yet."""

    def files(self) -> int:
        """Return how many files there are, as far as the last scan has seen."""

    def point(self) -> Point:
        """Return how far this replica's own changes go."""

    def recalls(self, seq: int, nonce: int, tick: int = 0) -> bool:
        """Was there ever this change, and was this tick used (0: any)?

        If not, this is a copy of who did so, or an older state.
        """

    def remint(self, peer: ReplicaId, since: int) -> Identity:
        """Become another replica, since the present identity belongs to another state; return the new one.

        What might have been marked so elsewhere is marked anew: what changed after sequence number `since`
        and after the last sync with `peer`.
        """

    def acknowledge(self, peer: Identity, mark: Mark) -> None:
        """Remember how far the changes of `peer` are taken in."""

    def close(self) -> None:
        """Unlock, and forget what was not kept."""


class Home(Replica, Protocol):
    """The side that decides: it marks the decisions."""

    def stamp(self) -> Stamp:
        """Return a stamp never used before; nothing marked by it may leave before `use_stamp`."""

    def contests(self, paths: Collection[bytes]) -> Mapping[bytes, Contest]:
        """Return the conflicts about these that were settled before, and whose copies are still there."""

    def keep(self, digest: Digest, text: bytes) -> None:
        """Keep a text that both versions of a conflict were made from, for who settles it."""

    def recalled(self) -> Sequence[Point]:
        """Return the changes of its own that are recalled, the earliest first."""

    def use_stamp(self, stamp: Stamp) -> None:
        """Make the tick of a stamp durable (I2)."""
