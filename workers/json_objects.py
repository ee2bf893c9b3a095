"""GBNF for the members of a JSON object."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workers.gbnf import literal

PLAIN = r'[^"\\\x00-\x1F\x7F'
"""A set of characters that needs no escape, left open for more exceptions."""


def members(
    pairs: Sequence[tuple[str, bool]],
    other: str,
    *,
    needs_one: bool,
    add: Callable[[str], str],
) -> str | None:
    """Members in their order, with commas between those that are there.

    `pairs`: rules, and whether each must be there; `other`: a rule for any number of further
    ones, or empty; `needs_one`: there must be one, whichever. `add` makes a rule. None: what is
    needed can't be had.
    """
    following = f'("," ws {other})*' if other else ""
    """What may come after a member."""
    first = f"{other} {following}" if other else ""
    """What may come first, as far as it is something."""
    for pair, must in reversed(pairs):
        begun = f"{pair} {following}".strip()
        if must:
            first, following = begun, f'"," ws {begun}'
            needs_one = True
        else:
            first = add(f"{begun} | {first}") if first else begun
            following = f'("," ws {pair})? {following}'.strip()
        following = add(following)
    if needs_one:
        return f"{first} ws" if first else None
    return f"({first} ws)?" if first else ""


def other_name(names: Sequence[str], add: Callable[[str], str]) -> str:
    """Any text but `names`, inside quotes. Without escapes, which could spell one of them."""
    if not names:
        return f"{PLAIN}]*"
    starts: dict[str, list[str]] = {}
    for name in names:
        if name:
            starts.setdefault(name[0], []).append(name[1:])
    found = [f"{literal(start)} {other_name(rest, add)}" for start, rest in starts.items()]
    taken = "".join(f"\\U{ord(start):08X}" for start in starts)
    found.append(f"{PLAIN}{taken}] {PLAIN}]*")
    if "" not in names:
        found.append('""')
    return add(" | ".join(found))
