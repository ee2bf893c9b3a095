"""Models in several files, named as llama.cpp's gguf-split names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One file's place among the parts of its model, counted from 1."""

    base: str
    number: int
    count: int


def part_of(path: str) -> Part | None:
    """Which part of which model the file is by its name; None for a model in one file."""
    match = _PART.fullmatch(path)
    return Part(match[1], int(match[2]), int(match[3])) if match is not None else None


def parts_of(path: str) -> tuple[str, ...]:
    """All files of the model of which `path` is one, in order; just `path` when it is the only."""
    match = _PART.fullmatch(path)
    if match is None:
        return (path,)
    base, _, count, end = match.groups()
    return tuple(f"{base}-{i:05}-of-{count}{end}" for i in range(1, int(count) + 1))
