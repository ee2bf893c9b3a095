"""GBNF, llama.cpp's notation for grammars: written, and looked over before llama.cpp reads it.

llama.cpp trusts whoever writes a grammar: a repetition that ends before it begins takes all
memory, deep nesting all of the stack, a rule that begins with itself behind something empty all of
the time, and tokens by number (`!<[5]>`) end the process. And it prints its reason for refusing a
grammar instead of returning it. So a client's is checked here first. What the notation is,
llama.cpp's `grammars/README.md` tells; tokens by number are left out.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from workers.gbnf_shape import Item, Shape, endless
from workers.gbnf_stacks import TooManyWaysError, check_ways

LONGEST = 1_000_000
"""Characters of a grammar."""
MOST_RULES = 10_000
DEEPEST = 100
"""Parentheses within each other; llama.cpp reads them by recursion."""
MOST_REPEATED = 2000
"""llama.cpp's own bound for one repetition (MAX_REPETITION_THRESHOLD)."""

_WORD = re.compile(
    r"""(?P<blank>(?:\s|\#[^\n]*)+)
    | (?P<rule>[A-Za-z0-9-]+[ \t]*::=)
    | (?P<name>[A-Za-z0-9-]+)
    | (?P<item>"(?:[^"\\]|\\.)*" | \[(?:[^\]\\]|\\.)*\] | \.)
    | (?P<repeat>[*+?] | \{[ \t]*\d+[ \t]*(?:,[ \t]*\d*[ \t]*)?\})
    | (?P<open>\() | (?P<close>\)) | (?P<or>\|)""",
    re.VERBOSE | re.DOTALL,
)
_PLAIN = re.compile(r'[^"\\\x00-\x1f\x7f]*')


class GrammarError(ValueError):
    """A grammar that can't be used; the message is one sentence."""


def literal(text: str) -> str:
    """`text` as a terminal."""
    return '"' + "".join(map(_escaped, text)) + '"' if not _PLAIN.fullmatch(text) else f'"{text}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return f"\\x{ord(character):02X}" if ord(character) < 0x20 or character == "\x7f" else character


def check(text: str) -> None:
    """Raises GrammarError for a grammar that is none, or that llama.cpp would choke on."""
    if len(text) > LONGEST:
        raise GrammarError(f"The grammar has more than {LONGEST} characters.")
    if "\x00" in text:
        raise GrammarError("The grammar has a zero byte.")
    shape = Shape()
    used: dict[str, int] = {}
    opened: list[int] = []
    before, at = "", 0
    while at < len(text):
        word = _WORD.match(text, at)
        if word is None:
            raise _error(text, at, f"{_shown(text, at)} makes no sense there")
        kind = str(word.lastgroup)
        if kind != "blank":
            _check_place(text, at, kind, before, opened)
            before = kind
        if kind == "name":
            used.setdefault(word[0], at)
        elif kind == "open":
            opened.append(at)
        elif kind == "close":
            opened.pop()
        _note(shape, kind, text, at, word[0])
        at = word.end()
    if opened:
        raise _error(text, opened[-1], "the parenthesis is never closed")
    _check_names(text, shape.rules.keys(), used)
    reason = endless(shape)
    if reason is not None:
        raise GrammarError(f"The grammar has no end: {reason}.")
    try:
        check_ways(shape)
    except TooManyWaysError as error:
        raise GrammarError(
            f"The grammar is too ambiguous: a text can be read in {error} ways at once."
        ) from error


def _note(shape: Shape, kind: str, text: str, at: int, word: str) -> None:
    """Adds a word to what is known of the grammar."""
    if kind == "rule":
        shape.rule(word.rstrip(":= \t"))
    elif kind == "name":
        shape.add(Item(name=word))
    elif kind == "item":
        shape.add(Item(empty=word == '""', word=word))
    elif kind == "open":
        shape.open()
    elif kind == "close":
        shape.close()
    elif kind == "or":
        shape.alternative()
    elif kind == "repeat":
        shape.repeat(*_bounds(text, at, word))


def _check_place(text: str, at: int, kind: str, before: str, opened: list[int]) -> None:
    """Whether a word of this `kind` may stand here."""
    if not before and kind != "rule":
        raise _error(text, at, "a rule was expected, as in root ::= ...")
    if kind == "rule" and opened:
        raise _error(text, opened[-1], "the parenthesis is never closed")
    if kind == "close" and not opened:
        raise _error(text, at, "nothing was opened that this closes")
    if kind == "item" and text.startswith(("[]", "[^]"), at):
        raise _error(text, at, "the set of characters is empty")
    if kind == "repeat" and before == "repeat":
        raise _error(text, at, "a repetition is repeated, which has too many meanings")
    if kind == "repeat" and before not in {"name", "item", "close"}:
        raise _error(text, at, "there is nothing to repeat")
    if kind == "open" and len(opened) >= DEEPEST:
        raise _error(text, at, f"more than {DEEPEST} parentheses are open")


def _bounds(text: str, at: int, repeat: str) -> tuple[int, int | None]:
    """How often at least, and at most; None: as often as may be."""
    if repeat in "*+?":
        return int(repeat == "+"), 1 if repeat == "?" else None
    bounds = [int(number) for number in re.findall(r"\d+", repeat)]
    if len(bounds) == 2 and bounds[1] < bounds[0]:
        raise _error(text, at, f"{repeat} ends before it begins")
    if any(bound > MOST_REPEATED for bound in bounds):
        raise _error(text, at, f"{repeat} is more than {MOST_REPEATED} times")
    return bounds[0], None if "," in repeat and len(bounds) == 1 else bounds[-1]


def _check_names(text: str, defined: Collection[str], used: dict[str, int]) -> None:
    for name, at in used.items():
        if name not in defined:
            raise _error(text, at, f"there is no rule {name}")
    if "root" not in defined:
        raise GrammarError("The grammar has no rule root.")
    if len(defined) > MOST_RULES:
        raise GrammarError(f"The grammar has more than {MOST_RULES} rules.")


def _error(text: str, at: int, what: str) -> GrammarError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return GrammarError(f"The grammar does not parse: line {line}, column {column}: {what}.")


def _shown(text: str, at: int) -> str:
    return repr(text[at : at + 12].partition("\n")[0])
