"""Where a call begins, however the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.chat.output_parser import CallStart

MARK = "<tool_call>"


def seen(text: str, places: list[int], *, thinking: bool = False) -> str | None:
    """What follows the mark, put together as it comes."""
    start = CallStart((MARK,), thinking=thinking)
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
def test_the_first_mark_that_is_no_thought(text: str, rest: str | None, places: list[int]) -> None:
    assert seen(text, places) == rest


def test_a_thought_that_the_prompt_began() -> None:
    assert seen("a <tool_call> b", [], thinking=True) is None
    assert seen("a <tool_call> b</think> <tool_call>c", [], thinking=True) == "c"
