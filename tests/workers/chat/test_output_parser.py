"""The output parser: equal results for any cuts, and no part of a marker in the output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.chat.answer_parts import ArgumentsPart, ContentPart, Piece, ToolCall
from workers.chat.output_parser import MARKERS, Dialect, OutputParser

SCHEMAS: dict[str, Any] = {
    "add": {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    "say": {"properties": {"text": {"type": "string"}, "loud": {"type": "boolean"}}},
}


def merged(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Join neighbouring parts of a kind, as a client does."""
    found: list[tuple[str, str]] = []
    for piece in pieces:
        kind = type(piece).__name__
        text = piece.name if isinstance(piece, ToolCall) else piece.text
        if found and found[-1][0] == kind and not isinstance(piece, ToolCall):
            found[-1] = (kind, found[-1][1] + text)
        else:
            found.append((kind, text))
    return found


def parse(
    text: str, dialect: Dialect | None, places: Sequence[int] = (), *, thinking: bool = False
) -> list[Piece]:
    """Return all parts of `text`, fed in chunks cut at `places`."""
    parser = OutputParser(dialect, SCHEMAS, thinking=thinking)
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    pieces = []
    for start, end in pairwise(edges):
        pieces += parser.feed(text[start:end])
    return pieces + parser.finish()


ONE = '{"name": "add", "arguments": {"a": 1, "b": [2, "}"]}}'
ONE_READ = [("ToolCall", "add"), ("ArgumentsPart", '{"a": 1, "b": [2, "}"]}')]
TWO = '{"arguments": {"text": "a \\"b\\" </tool_call>"}, "name": "say"}'
TWO_READ = [("ToolCall", "say"), ("ArgumentsPart", '{"text": "a \\"b\\" </tool_call>"}')]
LLAMA_ONE = ONE.replace("arguments", "parameters")
XML = (
    "<tool_call>\n<function=say>\n<parameter=text>\nlet <b> = 1;\n\nend\n</parameter>\n"
    "<parameter=loud>\ntrue\n</parameter>\n</function>\n</tool_call>"
)
XML_READ = [
    ("ToolCall", "say"),
    ("ArgumentsPart", '{"text": "let <b> = 1;\\n\\nend", "loud": true}'),
]

KNOWN: list[tuple[Dialect | None, str, list[tuple[str, str]]]] = [
    (None, " plain <tool_call> text \n", [("ContentPart", " plain <tool_call> text \n")]),
    (None, "<think>\n why? \n</think>\n\nso ", [("ReasoningPart", "why?"), ("ContentPart", "so ")]),
    (None, "\n<think>only", [("ReasoningPart", "only")]),
    (None, "<thinkers> unite", [("ContentPart", "<thinkers> unite")]),
    (None, "x <think>y</think>", [("ContentPart", "x <think>y</think>")]),
    (Dialect.HERMES, f"<tool_call>\n{ONE}\n</tool_call>", ONE_READ),
    (
        Dialect.HERMES,
        f"I add. \n<tool_call>{ONE}</tool_call>\n<tool_call>{TWO}</tool_call>\n Done.",
        [("ContentPart", "I add."), *ONE_READ, *TWO_READ, ("ContentPart", "Done.")],
    ),
    (
        Dialect.HERMES,
        f"<think>\nHm <tool_call>\n</think>\n\n<tool_call>\n{ONE}",
        [("ReasoningPart", "Hm <tool_call>"), *ONE_READ],
    ),
    (Dialect.HERMES, "<tool_call>nothing", [("ContentPart", "<tool_call>nothing")]),
    (Dialect.HERMES, "<tool_call>\n{'a'}\n", [("ContentPart", "<tool_call>\n{'a'}\n")]),
    (Dialect.HERMES, '<tool_call>{"name": 5}', [("ContentPart", '<tool_call>{"name": 5}')]),
    (Dialect.HERMES, '<tool_call>{"name": "a', [("ContentPart", '<tool_call>{"name": "a')]),
    (
        Dialect.HERMES,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [("ToolCall", "add"), ("ArgumentsPart", '{"a": 1}')],
    ),
    (
        Dialect.HERMES,
        '<tool_call>{"name": "add", "arguments": {"a": ',
        [("ToolCall", "add"), ("ArgumentsPart", '{"a": ')],
    ),
    (Dialect.HERMES, "1 < 2 <tool", [("ContentPart", "1 < 2 <tool")]),
    (Dialect.HERMES, XML, XML_READ),
    (Dialect.TAGS, f"Look: {XML}\n{XML}", [("ContentPart", "Look:"), *XML_READ, *XML_READ]),
    (Dialect.TAGS, XML.removeprefix("<tool_call>\n"), XML_READ),
    (Dialect.TAGS, "<function=>x", [("ContentPart", "<function=>x")]),
    (
        Dialect.TAGS,
        "<function=add><parameter=a>7</parameter><parameter=b>{x</parameter></function>.",
        [("ToolCall", "add"), ("ArgumentsPart", '{"a": 7, "b": "{x"}'), ("ContentPart", ".")],
    ),
    (
        Dialect.TAGS,
        "<function=add><parameter=a>7</parameter><param",
        [("ToolCall", "add"), ("ArgumentsPart", '{"a": 7')],
    ),
    (Dialect.LLAMA, f" {LLAMA_ONE}", ONE_READ),
    (Dialect.LLAMA, f"{LLAMA_ONE}; {LLAMA_ONE}", ONE_READ * 2),
    (Dialect.LLAMA, f"<|python_tag|>{LLAMA_ONE}", ONE_READ),
    (Dialect.LLAMA, f'{{"type": "function", {LLAMA_ONE[1:]}', ONE_READ),
    (Dialect.LLAMA, '{"answer": 5}', [("ContentPart", '{"answer": 5}')]),
    (
        Dialect.LLAMA,
        '{"name": "Ada", "parameters": {"a": 1}}',
        [("ContentPart", '{"name": "Ada", "parameters": {"a": 1}}')],
    ),
    (Dialect.LLAMA, f"Not at first {LLAMA_ONE}", [("ContentPart", f"Not at first {LLAMA_ONE}")]),
    (Dialect.LLAMA, "<|python_tag|>print(1)", [("ContentPart", "<|python_tag|>print(1)")]),
    (Dialect.MISTRAL, f"[TOOL_CALLS][{ONE}, {TWO}]", [*ONE_READ, *TWO_READ]),
    (Dialect.MISTRAL, f"[TOOL_CALLS] [{ONE}] yes", [*ONE_READ, ("ContentPart", "yes")]),
    (Dialect.MISTRAL, "[TOOL_CALLS] [1]", [("ContentPart", "[TOOL_CALLS] [1]")]),
    (
        Dialect.MISTRAL_NAMED,
        '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]say{"text": ""}',
        [
            ("ToolCall", "add"),
            ("ArgumentsPart", '{"a": 1}'),
            ("ToolCall", "say"),
            ("ArgumentsPart", '{"text": ""}'),
        ],
    ),
    (Dialect.MISTRAL_NAMED, "[TOOL_CALLS]no call", [("ContentPart", "[TOOL_CALLS]no call")]),
]


@pytest.mark.parametrize(("dialect", "text", "expected"), KNOWN, ids=lambda value: str(value)[:50])
def test_known_outputs(dialect: Dialect | None, text: str, expected: list[tuple[str, str]]) -> None:
    assert merged(parse(text, dialect)) == expected
    each = merged(parse(text, dialect, range(len(text))))
    assert each == expected, "the result differs letter by letter"
    for place in range(len(text)):
        assert merged(parse(text, dialect, [place])) == expected


def test_a_prompt_may_open_the_think_tag() -> None:
    text = "\nwhy\n</think>\n\nso"
    assert merged(parse(text, None, thinking=True)) == [
        ("ReasoningPart", "why"),
        ("ContentPart", "so"),
    ]


def test_the_name_comes_first_and_arguments_are_streamed() -> None:
    parser = OutputParser(Dialect.HERMES, SCHEMAS)
    assert parser.feed("Well <tool_call>") == [ContentPart("Well")]
    assert parser.feed('{"name": "add"') == []
    assert parser.feed(', "arguments": {"a"') == [ToolCall("add"), ArgumentsPart('{"a"')]
    assert parser.feed(": 1}") == [ArgumentsPart(": 1}")]
    assert parser.feed("}</tool_call>") == []
    assert parser.finish() == []


def test_text_without_markers_is_passed_on_at_once() -> None:
    parser = OutputParser(None, {})
    assert parser.feed(" a") == [ContentPart(" a")]
    assert parser.passthrough


PARTS = st.sampled_from(
    [
        "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "<function=add>",
        "</function>", "<parameter=a>", "</parameter>", "<|python_tag|>", "[TOOL_CALLS]",
        "[ARGS]", "[", "]", "{", "}", '"', "\\", ",", ";", " ", "\n", "<", "a", "add", "7",
        '{"name": "add", "arguments": ', '{"name": "add", "parameters": {', '{"a": 1}', ONE, XML,
        '"name"', '"arguments"', ":", "[CALL_ID]", "é♜",
    ]
)  # fmt: skip
TEXTS = st.lists(PARTS, max_size=12).map("".join)


@given(TEXTS, st.sampled_from([None, *Dialect]), st.lists(st.integers(0, 200)), st.booleans())
@example(f"{XML}</tool_call>", Dialect.HERMES, [], False)
def test_the_cuts_do_not_matter(
    text: str, dialect: Dialect | None, places: list[int], thinking: bool
) -> None:
    whole = merged(parse(text, dialect, thinking=thinking))
    assert merged(parse(text, dialect, places, thinking=thinking)) == whole
    assert merged(parse(text, dialect, range(len(text)), thinking=thinking)) == whole


@given(TEXTS, TEXTS, st.sampled_from([None, *Dialect]), st.booleans())
def test_emitted_parts_stay_valid_for_any_continuation(
    text: str, more: str, dialect: Dialect | None, thinking: bool
) -> None:
    """Check thereby that no part of a marker was emitted."""
    parser = OutputParser(dialect, SCHEMAS, thinking=thinking)
    emitted = merged(parser.feed(text))
    finally_ = merged(parse(text + more, dialect, thinking=thinking))
    assert [kind for kind, _ in emitted] == [kind for kind, _ in finally_[: len(emitted)]]
    for (_, begun), (_, whole) in zip(emitted, finally_, strict=False):
        assert whole.startswith(begun)


@pytest.mark.parametrize("dialect", list(Dialect))
def test_no_beginning_of_a_marker_is_content(dialect: Dialect) -> None:
    for marker in (*MARKERS[dialect], "<think>"):
        for length in range(1, len(marker)):
            parser = OutputParser(dialect, SCHEMAS)
            first = "" if marker == "<think>" else "x"
            assert merged(parser.feed(first + marker[:length])) == (
                [("ContentPart", "x")] * bool(first)
            )


@given(TEXTS)
def test_arguments_of_tags_are_json(text: str) -> None:
    call = f"<tool_call><function=say><parameter=text>\n{text}\n</parameter></function></tool_call>"
    pieces = merged(parse(call, Dialect.TAGS))
    if "</parameter>" not in text:
        assert json.loads(pieces[1][1]) == {"text": text}
