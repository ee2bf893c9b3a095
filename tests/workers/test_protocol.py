"""The contract between worker and supervisor: encoded by one side, parsed by the other."""

from __future__ import annotations

import msgspec
import pytest

from workers.protocol import (
    ALL_ENDED,
    DeviceReport,
    EventId,
    Heartbeat,
    LoadFailure,
    Message,
    ReadyMessage,
    StreamHead,
    add_event_id,
    encode_message,
    encode_resumption,
    encode_tokens,
    message_type,
    parse_event_id,
    split_event_id,
)

HEAD = StreamHead("0" * 32, 1700000000, 7, "abc")


@pytest.mark.parametrize(
    "message",
    [
        ReadyMessage(port=1, slots=2, devices=(DeviceReport("CUDA0", 8, 5, 3),), resumable=True),
        LoadFailure("no such file"),
        Heartbeat(0),
    ],
)
def test_a_message_is_decoded_as_it_was_sent(message: Message) -> None:
    fields = msgspec.json.decode(encode_message(message), type=dict[str, object])
    assert msgspec.convert(fields, message_type(fields)) == message


def test_an_unknown_message_is_an_error() -> None:
    with pytest.raises(ValueError, match="ready, error, beat"):
        message_type({"other": 1})


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (HEAD.encode() + encode_tokens(0, [5, -1]), EventId(HEAD, 0, (5, -1), False)),
        (encode_tokens(3, []), EventId(None, 3, (), False)),
        (ALL_ENDED, EventId(None, 0, (), True)),
        ("nonsense", None),
    ],
)
def test_an_event_id_is_parsed_as_it_was_written(text: str, parsed: EventId | None) -> None:
    assert parse_event_id(text) == parsed
    event = b"data: 1\n\n"
    assert split_event_id(add_event_id(text, event)) == (text.encode(), event)


def test_a_resumption_holds_the_request_and_the_ids() -> None:
    body = msgspec.json.decode(encode_resumption(b'{"a":1}', ["1,2", "-"]))
    assert body == {"request": {"a": 1}, "resume": ["1,2", "-"]}
