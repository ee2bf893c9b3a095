"""Detection of a tool call's start, for any cuts of the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.chat.output_parser import CallStart

MARKER = "<tool_call>"


def seen(text: str, places: list[int], *, thinking: bool = False) -> str | None:
    """Feed `text` in chunks cut at `places`; return the text after the marker, or None."""
    start = CallStart((MARKER,), thinking=thinking)
    ends = [*sorted(place % (len(text) + 1) for place in places), len(text)]
    begin, found = 0, None
    for end in ends:
        piece, begin = text[begin:end], end
        if found is not None:
            found += piece
        else:
            found = start.see(piece)
    return found


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", None),
        ("no call < here <tool_cal", None),
        ("I look. <tool_call>\n{", "\n{"),
        ("<tool_call><tool_call>", "<tool_call>"),
        ("<think>a <tool_call> b</think><tool_call>x", "x"),
        ("<think>a <tool_call> b", None),
        ("</think><tool_call>", ""),
    ],
)
@given(places=st.lists(st.integers(0, 100)))
def test_the_first_marker_outside_of_reasoning(
    text: str, rest: str | None, places: list[int]
) -> None:
    assert seen(text, places) == rest


def test_reasoning_that_the_prompt_begins() -> None:
    assert seen("a <tool_call> b", [], thinking=True) is None
    assert seen("a <tool_call> b</think> <tool_call>c", [], thinking=True) == "c"
