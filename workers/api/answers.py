"""What becomes of a request: one answer or several, from the engine to whoever writes them.

Where the engine's text arrives on the event loop's side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import Protocol

from workers.api.logprobs import TokenLog, TokenLogprobs
from workers.chat.output_parser import CallStart
from workers.engine.metrics import Timings
from workers.engine.sequence import Failed, Finished, Sequence, SequenceEnd
from workers.errors import ApiError
from workers.llama.sampler import Grammar, GrammarConstraint
from workers.requests.bodies import Generation
from workers.requests.resume import ResumedCall, lost
from workers.service import WorkerService

News = tuple[int, str, "SequenceEnd | None", int]
"""Which of a request's answers, more text of it, its end if it has come, and how many tokens had
been generated."""


class AnswerStream:
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

    def __init__(self, stream: AnswerStream, index: int) -> None:
        self._stream = stream
        self._index = index

    def deliver(self, text: str, end: SequenceEnd | None, generated: int) -> None:
        """As `Sink` promises."""
        self._stream.arrive((self._index, text, end, generated))


MOST_ANSWERS = 256


class Calls(Protocol):
    """What binds the calls in a chat's answers."""

    @property
    def call(self) -> Grammar | None:
        """What follows the mark of one; None: anything."""

    def start(self) -> CallStart | None:
        """Who finds that mark in an answer."""


@dataclass(slots=True)
class AnswerDelta:
    """News of one answer. Not frozen, because that makes making one four times as slow."""

    index: int
    text: str
    end: Finished | None
    generated: int
    """Tokens drawn for the answer up to this."""
    told: list[TokenLogprobs]
    """The tokens of `text`, if that was asked for."""


class Answers:
    """The answers to one request: `n` for each prompt. Made and used on the event loop's thread.

    Those to one prompt begin when the first of them has read it, so that they share what it
    computed.
    """

    def __init__(
        self,
        worker: WorkerService,
        request: Generation,
        prompts: list[list[int]],
        call: ResumedCall,
        *,
        grammar: Grammar | None = None,
        calls: Calls | None = None,
        tell: int | None = None,
    ) -> None:
        """Checks all of it; raises ApiError. Nothing begins before `start`.

        `grammar`: what each must follow; `calls`: what the calls in it must follow. `tell`: of each
        token, and of so many alternatives to it.
        """
        self._worker = worker
        self._stream = AnswerStream()
        self._sequences: list[Sequence] = []
        self._logs: list[TokenLog] | None = None if tell is None else []
        self._ends: dict[int, Finished] = {}
        self._n = request.n or 1
        if self._n * len(prompts) > MOST_ANSWERS:
            raise ApiError(400, f"More than {MOST_ANSWERS} answers were asked for.", param="n")
        if any(place >= self._n * len(prompts) for place in call.past or ()):
            raise lost("it has fewer parts than were sent")
        for tokens in prompts:
            for number in range(self._n):
                told: deque[tuple[int, float, list[tuple[int, float]]]] = deque()
                start = None if calls is None else calls.start()
                bound = None if calls is None else calls.call
                guide = None
                if not (grammar is None and tell is None and start is None):
                    guide = GrammarConstraint(grammar, tell, start, bound, told)
                if self._logs is not None:
                    self._logs.append(TokenLog(worker.model, told))
                place = len(self._sequences)
                sequence = worker.begin(
                    request,
                    tokens if number == 0 else [*tokens],
                    streaming=bool(request.stream) or (number == 0 and self._n > 1),
                    sink=self._stream.sink(place),
                    guide=guide,
                    call=call,
                    resumed=call.tokens(place),
                )
                if number and sequence.sampling.seed >= 0:
                    seed = sequence.sampling.seed + number
                    sequence.sampling = replace(sequence.sampling, seed=seed)
                self._sequences.append(sequence)
        self._held = {first: self._sequences[first + 1 : first + self._n] for first in self._firsts}
        self._started = False

    def start(self) -> None:
        """Hands the first answer to each prompt to the engine; the others follow."""
        self._started = True
        for first in self._firsts:
            self._worker.engine.submit(self._sequences[first])

    @property
    def _firsts(self) -> range:
        return range(0, len(self._sequences), self._n)

    @property
    def count(self) -> int:
        """How many there are; they are numbered prompt by prompt."""
        return len(self._sequences)

    def sequence(self, index: int) -> Sequence:
        """An answer's sequence, to look at: a moment's view until it has ended."""
        return self._sequences[index]

    def drawn(self, index: int, first: int, end: int) -> list[int]:
        """The tokens of an answer from its `first` to before its `end`."""
        sequence = self._sequences[index]
        begin = sequence.prompt_length
        return sequence.tokens[begin + first : begin + end]

    def without_end(self, tokens: list[int]) -> list[int]:
        """`tokens` but one that ends a text."""
        ends = tokens and self._worker.model.piece(tokens[-1]) is None
        return tokens[:-1] if ends else tokens

    @property
    def adapted(self) -> bool:
        """Whether they are computed with an adapter."""
        return any(sequence.wanted for sequence in self._sequences)

    @property
    def ended(self) -> bool:
        """Whether all have come to their end."""
        return len(self._ends) == len(self._sequences)

    async def next(self) -> list[AnswerDelta]:
        """Waits for news. Raises ApiError if one of them failed: that is the end of all."""
        parts = []
        for index, text, end, generated in await self._stream.next():
            if isinstance(end, Failed):
                kind = "server_error" if end.status >= 500 else "invalid_request_error"
                raise ApiError(end.status, end.message, kind)
            for sequence in self._held.pop(index, ()):
                self._worker.engine.submit(sequence)
            told = [] if self._logs is None else self._logs[index].take(text)
            if end is not None:
                self._ends[index] = end
            parts.append(AnswerDelta(index, text, end, generated, told))
        return parts

    async def whole(self) -> list[AnswerDelta]:
        """Waits for all of them; one part each."""
        texts: list[list[str]] = [[] for _ in self._sequences]
        told: list[list[TokenLogprobs]] = [[] for _ in self._sequences]
        counts = [0] * len(self._sequences)
        while not self.ended:
            for part in await self.next():
                texts[part.index].append(part.text)
                told[part.index] += part.told
                counts[part.index] = part.generated
        return [
            AnswerDelta(index, "".join(text), self._ends[index], counts[index], told[index])
            for index, text in enumerate(texts)
        ]

    @property
    def timings(self) -> Timings:
        """Of all that have ended: each prompt counts once, answers go on at the same time."""
        if self.count == 1:
            return self._ends[0].timings
        each = [end.timings for end in self._ends.values()]
        firsts = [self._ends[first].timings for first in self._firsts]
        return Timings(
            prompt_tokens=sum(timings.prompt_tokens for timings in firsts),
            cached_tokens=sum(timings.cached_tokens for timings in firsts),
            prompt_seconds=max(timings.prompt_seconds for timings in firsts),
            predicted_tokens=sum(timings.predicted_tokens for timings in each),
            predicted_seconds=max(timings.predicted_seconds for timings in each),
        )

    def cancel(self) -> None:
        """Ends those that have not come to their end."""
        if not self._started:
            return
        held = {id(sequence) for rest in self._held.values() for sequence in rest}
        for index, sequence in enumerate(self._sequences):
            if index not in self._ends and id(sequence) not in held:
                self._worker.engine.cancel(sequence)
