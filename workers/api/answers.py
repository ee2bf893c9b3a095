"""The answers to one request: their sequences, and their text on its way from the engine.

The engine's thread delivers text to the event loop, and an `AnswerStream` holds it there until
the response writer takes it.
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
from workers.requests.resume import ResumableCall, not_resumable
from workers.service import WorkerService

Update = tuple[int, str, "SequenceEnd | None", int]
"""Index of the answer, its new text, its end or None, and tokens generated so far."""


class AnswerStream:
    """The queue of updates to all answers of one request. It has one reader.

    Updates that arrive while the reader is busy are queued unmerged. The engine delivers all
    updates of a step together, so the reader wakes once a step.
    """

    def __init__(self) -> None:
        self._updates: list[Update] = []
        self._waiter: asyncio.Future[None] | None = None

    def sink(self, index: int) -> StreamSink:
        """Return the sink for answer `index`."""
        return StreamSink(self, index)

    def put(self, update: Update) -> None:
        """Queue an update, and wake the reader."""
        self._updates.append(update)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> list[Update]:
        """Wait for updates; return all since the last call."""
        if not self._updates:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        updates, self._updates = self._updates, []
        return updates


class StreamSink:
    """The sink of one answer, which labels its updates with the answer's index."""

    def __init__(self, stream: AnswerStream, index: int) -> None:
        self._stream = stream
        self._index = index

    def deliver(self, text: str, end: SequenceEnd | None, generated: int) -> None:
        """Queue new text, and the end if there is one."""
        self._stream.put((self._index, text, end, generated))


MAX_ANSWERS = 256
"""Answers to one request, over all of its prompts."""


class ToolCallConstraint(Protocol):
    """The grammar for tool calls in a chat's answers, and the detector that switches it on."""

    @property
    def call_grammar(self) -> Grammar | None:
        """The grammar for the text after a call's marker; None: any text."""

    def start(self) -> CallStart | None:
        """Return a detector of the marker for one answer; None: none is needed."""


@dataclass(slots=True)
class AnswerDelta:
    """New text of one answer. Not frozen, because a frozen one takes four times as long to make."""

    index: int
    text: str
    end: Finished | None
    generated: int
    """Tokens drawn for the answer so far."""
    logprobs: list[TokenLogprobs]
    """The tokens of `text`, if the request asks for log-probabilities."""


class Answers:
    """The answers to one request: `n` for each prompt. Used on the event loop's thread.

    Only the first answer to a prompt is submitted at once. The others follow when it has
    delivered something, so that they share the prompt's cells in the prefix cache.
    """

    def __init__(
        self,
        worker: WorkerService,
        request: Generation,
        prompts: list[list[int]],
        call: ResumableCall,
        *,
        grammar: Grammar | None = None,
        calls: ToolCallConstraint | None = None,
        alternatives: int | None = None,
    ) -> None:
        """Check the request and make its sequences; `start` submits them. Raises ApiError.

        `grammar` constrains each answer, `calls` the tool calls in it. `alternatives` is the
        number of likely tokens to report beside each token; None: report no log-probabilities.
        """
        self._worker = worker
        self._stream = AnswerStream()
        self._sequences: list[Sequence] = []
        self._logs: list[TokenLog] | None = None if alternatives is None else []
        self._ends: dict[int, Finished] = {}
        self._n = request.n or 1
        if self._n * len(prompts) > MAX_ANSWERS:
            raise ApiError(400, f"More than {MAX_ANSWERS} answers were requested.", param="n")
        if any(place >= self._n * len(prompts) for place in call.sent or ()):
            raise not_resumable("the request has fewer answers than the events")
        for tokens in prompts:
            for number in range(self._n):
                drawn: deque[tuple[int, float, list[tuple[int, float]]]] = deque()
                start = None if calls is None else calls.start()
                call_grammar = None if calls is None else calls.call_grammar
                guide = None
                if not (grammar is None and alternatives is None and start is None):
                    guide = GrammarConstraint(grammar, alternatives, start, call_grammar, drawn)
                if self._logs is not None:
                    self._logs.append(TokenLog(worker.model, drawn))
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
                # Answers with one seed would be equal: each takes the seed after the last one.
                if number and sequence.sampling.seed >= 0:
                    seed = sequence.sampling.seed + number
                    sequence.sampling = replace(sequence.sampling, seed=seed)
                self._sequences.append(sequence)
        # Indices are dense: the answers to prompt p are n·p … n·p + n - 1.
        self._deferred = {
            first: self._sequences[first + 1 : first + self._n] for first in self._firsts
        }
        self._started = False

    def start(self) -> None:
        """Submit the first answer to each prompt to the engine; the others follow."""
        self._started = True
        for first in self._firsts:
            self._worker.engine.submit(self._sequences[first])

    @property
    def _firsts(self) -> range:
        return range(0, len(self._sequences), self._n)

    @property
    def count(self) -> int:
        """Number of answers; their indices run prompt by prompt."""
        return len(self._sequences)

    def sequence(self, index: int) -> Sequence:
        """Return an answer's sequence. The engine's thread changes it until the answer ends."""
        return self._sequences[index]

    def drawn(self, index: int, first: int, end: int) -> list[int]:
        """Return the tokens of an answer from position `first` to before `end`."""
        sequence = self._sequences[index]
        begin = sequence.prompt_length
        return sequence.tokens[begin + first : begin + end]

    def without_end(self, tokens: list[int]) -> list[int]:
        """Return `tokens` without an end-of-generation token at the end."""
        ends = tokens and self._worker.model.piece(tokens[-1]) is None
        return tokens[:-1] if ends else tokens

    @property
    def adapted(self) -> bool:
        """True if the answers are computed with an adapter."""
        return any(sequence.wanted for sequence in self._sequences)

    @property
    def ended(self) -> bool:
        """True if all answers have ended."""
        return len(self._ends) == len(self._sequences)

    async def next(self) -> list[AnswerDelta]:
        """Wait for new text of any answer. Raises ApiError if one of them failed."""
        parts = []
        for index, text, end, generated in await self._stream.next():
            if isinstance(end, Failed):
                kind = "server_error" if end.status >= 500 else "invalid_request_error"
                raise ApiError(end.status, end.message, kind)
            # The prompt has been read: its other answers find it in the cache.
            for sequence in self._deferred.pop(index, ()):
                self._worker.engine.submit(sequence)
            logprobs = [] if self._logs is None else self._logs[index].take(text)
            if end is not None:
                self._ends[index] = end
            parts.append(AnswerDelta(index, text, end, generated, logprobs))
        return parts

    async def whole(self) -> list[AnswerDelta]:
        """Wait for all answers to end; return one part for each."""
        texts: list[list[str]] = [[] for _ in self._sequences]
        logprobs: list[list[TokenLogprobs]] = [[] for _ in self._sequences]
        counts = [0] * len(self._sequences)
        while not self.ended:
            for part in await self.next():
                texts[part.index].append(part.text)
                logprobs[part.index] += part.logprobs
                counts[part.index] = part.generated
        return [
            AnswerDelta(index, "".join(text), self._ends[index], counts[index], logprobs[index])
            for index, text in enumerate(texts)
        ]

    @property
    def timings(self) -> Timings:
        """Timings over all answers. A prompt counts once; times are the longest of each kind,
        because answers are generated at the same time."""
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
        """Cancel the answers that have not ended."""
        if not self._started:
            return
        deferred = {id(sequence) for rest in self._deferred.values() for sequence in rest}
        for index, sequence in enumerate(self._sequences):
            if index not in self._ends and id(sequence) not in deferred:
                self._worker.engine.cancel(sequence)
