"""Whether guessing ahead pays. Pure: it is told what steps took, and what they brought.

A step of a few rows may cost several times as much as one of a single row, or hardly more: that
depends on machine, model and threads. (Q8_0 on two x86 cores: two rows 3.9 times as much, 17 rows
9 times.) So steps with guesses are held against those without. What they gain is put by, up to a
bound; what they lose is taken from there; and when nothing is left, there are no guesses until
the steps without them have paid for the next one.
"""

from __future__ import annotations

SHARE = 0.01
"""Of the time in steps without guesses, what guesses may lose."""
MOST_CREDIT, LEAST_CREDIT = 8.0, -4.0
"""What may be put by, and what may be owed, counted in steps without guesses. No more is owed, for
a step that took far too long was most likely held up by something else."""
UNMEASURED = 64
"""Steps with guesses until there is one without, to be held against."""
_WEIGHT = 0.1
"""Of a new measurement in the moving average."""
_OUTLIER = 2.0
"""A step that took so many times as long was held up by something else."""


class GuessBalance:
    """For steps with one number of running sequences."""

    def __init__(self) -> None:
        self._step: float | None = None
        """Seconds of a step without guesses."""
        self._credit = MOST_CREDIT
        self._unmeasured = 0

    @property
    def allows(self) -> bool:
        """Whether the next step may have guesses."""
        return self._step is not None and self._credit > 0 and self._unmeasured < UNMEASURED

    def plain(self, seconds: float) -> None:
        """A step without guesses took so long."""
        self._unmeasured = 0
        if self._step is None:
            self._step = seconds
        else:
            seconds = min(seconds, _OUTLIER * self._step)
            self._step += _WEIGHT * (seconds - self._step)
        self._add(SHARE)

    def guessed(self, steps: float, seconds: float) -> None:
        """A step with guesses took so long, and did what `steps` do without."""
        self._unmeasured += 1
        if self._step:
            self._add(steps - seconds / self._step)

    def _add(self, steps: float) -> None:
        self._credit = min(max(self._credit + steps, LEAST_CREDIT), MOST_CREDIT)
