"""Where the engine's text arrives on the event loop's side."""

from __future__ import annotations

import asyncio

from workers.sequence import End

News = tuple[int, str, "End | None", int]
"""Which of a request's answers, more text of it, its end if it has come, and how many tokens had
been generated."""


class Stream:
    """The sink of a request's answers. One reader; what comes while it is busy waits unmerged.

    The engine hands it whole: so the reader wakes once a step, whatever the step brought.
    """

    def __init__(self) -> None:
        self._news: list[News] = []
        self._waiter: asyncio.Future[None] | None = None

    def sink(self, index: int) -> StreamSink:
        """Where answer `index` goes."""
        return StreamSink(self, index)

    def arrive(self, news: News) -> None:
        """From a sink."""
        self._news.append(news)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> list[News]:
        """Waits for news, and returns all since the last call."""
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        news, self._news = self._news, []
        return news


class StreamSink:
    """One answer's way into the stream."""

    def __init__(self, stream: Stream, index: int) -> None:
        self._stream = stream
        self._index = index

    def deliver(self, text: str, end: End | None, generated: int) -> None:
        """As `Sink` promises."""
        self._stream.arrive((self._index, text, end, generated))
