"""Text is emitted in whole characters, and without stop strings."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.llama.detokenizer import TextOutput

cuts = st.lists(st.integers(0, 40), max_size=12)


def cut(data: bytes, places: list[int]) -> list[str | bytes]:
    """Split `data` into a model's pieces: str where they are whole characters."""
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    pieces: list[str | bytes] = []
    for start, end in pairwise(edges):
        try:
            pieces.append(data[start:end].decode())
        except UnicodeDecodeError:
            pieces.append(data[start:end])
    return pieces


@given(st.text(max_size=20), cuts)
def test_characters_stay_whole_wherever_tokens_cut_them(text: str, places: list[int]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    output = TextOutput([])
    parts = [output.push(piece) for piece in cut(text.encode(), places)]
    assert "".join(parts) + output.rest() == text


@given(st.binary(max_size=30), cuts)
def test_invalid_bytes_are_replaced_and_not_lost(data: bytes, places: list[int]) -> None:
    output = TextOutput([])
    parts = "".join(output.push(piece) for piece in cut(data, places))
    whole = data.decode("utf-8", "replace")
    assert whole.startswith(parts), "only the beginning of a character may be missing at the end"
    assert whole.removeprefix(parts).strip("\ufffd") == ""


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts,
)
def test_stop_strings_are_never_emitted(text: str, stops: list[str], places: list[int]) -> None:
    output = TextOutput(stops)
    parts = []
    for piece in cut(text.encode(), places):
        parts.append(output.push(piece))
        if output.stopped:
            break
        certain = "".join(parts)
        assert not any(stop in certain for stop in stops)
    found = [at for at in map(text.find, stops) if at >= 0]
    assert output.stopped == bool(found)
    expected = text[: min(found)] if found else text
    got = "".join(parts) + output.rest()
    if found and got != expected:
        # A longer stop string may be completed by a later token than a shorter one after it.
        assert any((got + stop) in text for stop in stops)
    else:
        assert got == expected


def test_a_possible_stop_string_is_held_back() -> None:
    output = TextOutput(["</end>"])
    assert [output.push("a <"), output.push("/en"), output.push("ough")] == ["a ", "", "</enough"]
    assert (output.push("</end"), output.push("> b"), output.stopped) == ("", "", True)
