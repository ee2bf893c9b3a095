"""Event ids in a stream: removed and stored, for any division into chunks."""

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
def test_a_stream_passes_without_its_ids(stream: list[tuple[str, str]], sizes: list[int]) -> None:
    ids, passed = EventIds(), b""
    for chunk in _cut(_bytes(stream, with_ids=True), sizes):
        passed += ids.take(chunk)
        assert passed.endswith(b"\n\n") or not passed
    assert passed == _bytes(stream, with_ids=False)
    assert ids.can_resume
    resumption = msgspec.json.decode(ids.resumption(b'{"a": 1}'))
    assert resumption == {"request": {"a": 1}, "resume": [token for token, _ in stream]}


@given(events, cuts, st.integers(1, 200))
def test_only_complete_events_are_resumed_from(
    stream: list[tuple[str, str]], sizes: list[int], end: int
) -> None:
    ids, passed = EventIds(), b""
    for chunk in _cut(_bytes(stream, with_ids=True)[:end], sizes):
        passed += ids.take(chunk)
    resumed = msgspec.json.decode(ids.resumption(b"{}"))["resume"]
    assert resumed == [token for token, _ in stream][: passed.count(b"\n\n")]
    # The beginning of the next event is dropped: the next worker starts with that event.
    assert ids.rest() == b""


@given(events, cuts)
def test_a_stream_without_ids_passes_and_is_not_resumable(
    stream: list[tuple[str, str]], sizes: list[int]
) -> None:
    ids, data = EventIds(), _bytes(stream, with_ids=False)
    assert b"".join(map(ids.take, _cut(data, sizes))) + ids.rest() == data
    assert not ids.can_resume
    assert ids.ids == b""


def test_stored_ids_are_limited() -> None:
    ids, known = EventIds(), []
    long = b"x" * (sse.MOST // 2 + 1)
    for number in (b"1", b"2"):
        assert ids.take(b"id: " + long + b"\ndata: " + number + b"\n\n") == (
            b"data: " + number + b"\n\n"
        )
        known.append(ids.can_resume)
    assert known == [True, False]


def test_an_event_without_an_end_is_limited() -> None:
    endless, half = EventIds(), b"data: " + b"x" * (sse.MOST // 2 + 1)
    assert endless.take(half) == b""
    assert endless.take(half) == half + half
    assert not endless.can_resume
