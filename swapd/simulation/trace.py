"""Traces: who asks for which model when, and how much there is to do."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("time", "model", "prompt_tokens", "output_tokens", "tenant")


GIB = 2**30
FAST, SLOW = 2.0 * GIB, 0.2 * GIB
"""Bytes read in a second from a disk in the machine, and from a hard disk or over the network."""
START = 0.5
"""Seconds from a worker's spawn to the first byte of the file read."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a model takes."""

    bytes: int
    speed: float = FAST
    """Bytes of it read in a second."""

    @property
    def load(self) -> float:
        """Seconds from a worker's start to its being ready."""
        return START + self.bytes / self.speed


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of a trace."""

    time: float
    """Seconds from the start of the trace."""
    model: str
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time, and the models that they ask for."""

    name: str
    asks: tuple[Ask, ...]
    models: dict[str, Model]


class TraceError(Exception):
    """A trace that can't be read; the text says where and why."""


def read(path: Path, models: dict[str, Model], usual: Model) -> Trace:
    """A trace from a CSV file with a header; models not in `models` are like the usual one."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            lack = set(COLUMNS[:4]) - set(rows.fieldnames or ())
            if lack:
                raise TraceError(f"{path}: no column {', '.join(sorted(lack))}")
            asks = [_ask(row, f"{path}:{rows.line_num}") for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise TraceError(f"{path}: {what}") from None
    names = sorted({ask.model for ask in asks})
    asks.sort(key=lambda ask: ask.time)
    return Trace(path.stem, tuple(asks), {name: models.get(name, usual) for name in names})


def _ask(row: dict[str, str], where: str) -> Ask:
    try:
        time, prompt, output = (float(row[column]) for column in (COLUMNS[0], *COLUMNS[2:4]))
    except (TypeError, ValueError):
        raise TraceError(f"{where}: time and tokens must be numbers") from None
    if not row["model"] or not 0 <= time < 1e9 or min(prompt, output) < 0:
        raise TraceError(f"{where}: a model, a time and tokens of 0 or more are needed")
    return Ask(time, row["model"], int(prompt), int(output), row.get("tenant") or "")


def write(path: Path, asks: Iterable[Ask]) -> None:
    """The requests as a CSV file that `read` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        rows.writerows(
            (f"{a.time:.3f}", a.model, a.prompt_tokens, a.output_tokens, a.tenant) for a in asks
        )
