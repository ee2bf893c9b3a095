"""Problems of configuration files: sentences that name the place and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""The way from the top of a file to a value: keys, and positions in lists."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem, or a warning, at a place in a file.

    `line` counts from 1; 0 where there is no line to point at.
    """

    file: str
    line: int
    key: str
    message: str

    def __str__(self) -> str:
        """Return a line in the form that editors and terminals make clickable."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.message) if part)


class ConfigError(Exception):
    """A configuration cannot be used; carries all of its problems, not just the first."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(path: Path) -> str:
    """Return the path in dotted form: `models.bard.aliases[0]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word most similar to `word`, or None; case does not count."""
    folded = {name.lower(): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(word.lower(), folded, n=1)
    return folded[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a sentence, `; did you mean ttl?`, or empty text without a similar word."""
    near = nearest(word, known)
    return f"; did you mean {near}?" if near is not None else ""
