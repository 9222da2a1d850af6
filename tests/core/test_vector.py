"""Version vectors: a partial order with a join, and one spelling for each."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2psync.core.vector import MAX_REPLICAS, NOTHING, ReplicaId, Stamp, Version

A, B = ReplicaId(1), ReplicaId(2)
MAX_ID = MAX_TICK = 2**63 - 1

FEW_REPLICAS = st.sampled_from([A, B, ReplicaId(0), ReplicaId(MAX_ID)])
TICKS = st.integers(1, 3) | st.integers(1, MAX_TICK)
VERSIONS = st.dictionaries(FEW_REPLICAS, TICKS).map(Version)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_join_is_a_join(a: Version, b: Version, c: Version) -> None:
    assert a | a == a == a | NOTHING
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a <= a | b
    assert (a <= b) == (a | b == b)
    assert not (a <= c and b <= c) or a | b <= c


@given(VERSIONS, VERSIONS, VERSIONS)
def test_seen_by_is_a_partial_order(a: Version, b: Version, c: Version) -> None:
    assert NOTHING <= a <= Version(dict(a))
    assert (a <= b and b <= a) == (a == b)
    assert not (a <= b <= c) or a <= c


@pytest.mark.parametrize(
    ("a", "b", "a_seen_by_b", "b_seen_by_a"),
    [
        ({A: 1}, {A: 2}, True, False),
        ({A: 1}, {A: 1, B: 1}, True, False),
        ({A: 2}, {A: 1, B: 9}, False, False),
        ({A: 1}, {B: 1}, False, False),
        ({A: 1, B: 2}, {B: 2, A: 1}, True, True),
    ],
)
def test_a_version_is_seen_by_one_that_has_all_its_ticks(
    a: dict[ReplicaId, int], b: dict[ReplicaId, int], a_seen_by_b: bool, b_seen_by_a: bool
) -> None:
    assert (Version(a) <= Version(b)) is a_seen_by_b
    assert (Version(b) <= Version(a)) is b_seen_by_a
    assert (Version(a) == Version(b)) is (a_seen_by_b and b_seen_by_a)


@given(VERSIONS, FEW_REPLICAS)
def test_a_bump_follows_what_it_bumps(version: Version, replica: ReplicaId) -> None:
    stamp = Stamp(replica, version.tick_of(replica) + 1)
    bumped = version.bump(stamp)
    assert version <= bumped
    assert not bumped <= version
    assert bumped.tick_of(replica) == stamp.tick
    assert set(bumped) - {stamp} <= set(version)


@given(st.dictionaries(FEW_REPLICAS, TICKS))
def test_a_version_reads_like_a_sorted_set_of_stamps(ticks: dict[ReplicaId, int]) -> None:
    version = Version(ticks)
    assert [(stamp.replica, stamp.tick) for stamp in version] == sorted(ticks.items())
    assert len(version) == len(ticks)
    assert all(version.tick_of(replica) == tick for replica, tick in ticks.items())
    assert version.tick_of(ReplicaId(77)) == 0


def test_a_version_does_not_change_with_what_it_was_made_of() -> None:
    ticks = {A: 1}
    version = Version(ticks)
    ticks[B] = 1
    assert version == Version({A: 1})


@given(VERSIONS, VERSIONS)
def test_equal_versions_hash_and_encode_alike_and_no_others(a: Version, b: Version) -> None:
    assert Version(dict(reversed(list(a)))).encode() == a.encode()
    assert hash(Version(dict(reversed(list(a))))) == hash(a)
    assert (a == b) == (a.encode() == b.encode())
    assert a != a.encode()


@given(VERSIONS)
def test_what_is_encoded_can_be_decoded(version: Version) -> None:
    assert Version.decode(version.encode()) == version


@given(st.binary(max_size=64))
def test_bytes_are_refused_or_canonical(data: bytes) -> None:
    try:
        version = Version.decode(data)
    except ValueError:
        return
    assert version.encode() == data


def pairs(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}Q", *numbers)


MALFORMED = {
    "cut": pairs(1, 5)[:-1],
    "half a pair": pairs(1),
    "a tick of 0": pairs(1, 0),
    "a tick beyond SQLite": pairs(1, MAX_TICK + 1),
    "a replica beyond SQLite": pairs(MAX_ID + 1, 1),
    "out of order": pairs(2, 5, 1, 5),
    "one replica twice": pairs(1, 5, 1, 6),
    "one replica twice, alike": pairs(1, 5, 1, 5),
    "one pair too many": b"".join(pairs(replica, 1) for replica in range(MAX_REPLICAS + 1)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_version_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="a version vector"):
        Version.decode(data)


def test_the_largest_version_is_taken() -> None:
    data = b"".join(pairs(replica, MAX_TICK) for replica in range(MAX_REPLICAS))
    assert len(Version.decode(data)) == MAX_REPLICAS
    assert Version.decode(b"") == NOTHING


def test_a_version_is_shown_by_its_replicas_in_hexadecimal() -> None:
    assert repr(Version({B: 7, ReplicaId(255): 3})) == "{2:7, ff:3}"
