"""What was learned of a model by running it, and is worth knowing when it is to be run again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Learned:
    """Of one command with the files that it names. 0: not known."""

    bytes: int = 0
    """Most that a worker of it was seen to hold."""
    load_seconds: float = 0.0
    """From its start to its being ready, in the mean."""
