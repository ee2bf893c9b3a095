"""Ids in a stream of events: taken out on the way and kept, however the bytes come."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from swapd.proxy import sse
from swapd.proxy.sse import EventIds

lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n")).map(str.strip)
events = st.lists(st.tuples(lines, lines), min_size=1, max_size=8)
cuts = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def _bytes(stream: list[tuple[str, str]], with_ids: bool) -> bytes:
    head = "id: {}\n" if with_ids else ""
    return "".join((head + "data: {}\n\n").format(*e[not with_ids :]) for e in stream).encode()


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks, at, number = [], 0, 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        chunks.append(data[at : at + size])
        at, number = at + size, number + 1
    return chunks


@given(events, cuts)
def test_what_passes_is_the_stream_without_its_ids(
    stream: list[tuple[str, str]], sizes: list[int]
) -> None:
    ids, passed = EventIds(), b""
    for chunk in _cut(_bytes(stream, with_ids=True), sizes):
        passed += ids.take(chunk)
        assert passed.endswith(b"\n\n") or not passed
    assert passed == _bytes(stream, with_ids=False)
    assert ids.can_resume
    told = msgspec.json.decode(ids.resumption(b'{"a": 1}'))
    assert told == {"request": {"a": 1}, "resume": [token for token, _ in stream]}


@given(events, cuts, st.integers(1, 200))
def test_only_events_that_have_passed_whole_are_counted(
    stream: list[tuple[str, str]], sizes: list[int], end: int
) -> None:
    ids, passed = EventIds(), b""
    for chunk in _cut(_bytes(stream, with_ids=True)[:end], sizes):
        passed += ids.take(chunk)
    told = msgspec.json.decode(ids.resumption(b"{}"))["resume"]
    assert told == [token for token, _ in stream][: passed.count(b"\n\n")]
    # What had come of the next event is not sent: the next worker begins with it.
    assert ids.rest() == b""


@given(events, cuts)
def test_a_stream_without_ids_passes_and_can_not_be_gone_on_with(
    stream: list[tuple[str, str]], sizes: list[int]
) -> None:
    ids, data = EventIds(), _bytes(stream, with_ids=False)
    assert b"".join(map(ids.take, _cut(data, sizes))) + ids.rest() == data
    assert not ids.can_resume
    assert ids.ids == b""


def test_ids_are_kept_within_bounds() -> None:
    ids, known = EventIds(), []
    long = b"x" * (sse.MOST // 2 + 1)
    for number in (b"1", b"2"):
        assert ids.take(b"id: " + long + b"\ndata: " + number + b"\n\n") == (
            b"data: " + number + b"\n\n"
        )
        known.append(ids.can_resume)
    assert known == [True, False]


def test_an_event_without_end_is_kept_within_bounds() -> None:
    endless, half = EventIds(), b"data: " + b"x" * (sse.MOST // 2 + 1)
    assert endless.take(half) == b""
    assert endless.take(half) == half + half
    assert not endless.can_resume
