"""Where the engine's text arrives on the event loop's side."""

from __future__ import annotations

import asyncio

from workers.sequence import End


class Stream:
    """A sequence's sink. One reader; text that comes while it is busy waits, and is not merged.

    The engine hands it whole: so the reader wakes once a step, whatever the step brought.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._end: End | None = None
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, text: str, end: End | None) -> None:
        """As `Sink` promises."""
        if text:
            self._parts.append(text)
        self._end = end
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> tuple[list[str], End | None]:
        """Waits for news. The texts since the last call, and the end if it has come."""
        if not self._parts and self._end is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        parts, self._parts = self._parts, []
        return parts, self._end
