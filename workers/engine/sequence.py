"""One request on its way through the engine, and what it gets back.

What becomes of a generated token: text that may go out, or the end of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Protocol

from workers.engine.lora import AdapterFiles
from workers.engine.metrics import Counters
from workers.engine.prefix_cache import Adapters
from workers.llama.detokenizer import TextOutput
from workers.llama.model import Model
from workers.llama.sampler import GrammarConstraint, Sampler
from workers.settings import Sampling


@dataclass(frozen=True)
class Timings:
    """Where a generation's time went. Seconds; counted from the start of its prefill."""

    prompt_tokens: int
    cached_tokens: int
    """How many of the prompt's tokens were in the cache already, and not computed."""
    prompt_seconds: float
    """From the slot to the first token."""
    predicted_tokens: int
    predicted_seconds: float
    """From the first token to the last."""
    guessed: int = 0
    """Tokens that were guessed ahead."""
    right: int = 0
    """How many of them were right."""


@dataclass(frozen=True)
class Finished:
    """A generation came to its end."""

    reason: str
    """"stop" (the model or a stop string ended it) or "length"."""
    timings: Timings


@dataclass(frozen=True)
class Failed:
    """A generation could not go on; `message` is one sentence for the client."""

    message: str
    status: int = 500
    """HTTP's: 400 where the request is the reason."""


SequenceEnd = Finished | Failed


class Sink(Protocol):
    """Where a sequence's text goes. Called on the event loop's thread, never on the engine's."""

    def deliver(self, text: str, end: SequenceEnd | None, generated: int) -> None:
        """More text (maybe none), and the end if this is it. Nothing comes after an end.

        `generated`: how many tokens were generated when this was certain.
        """


@dataclass(eq=False)
class Draft:
    """How guessing goes for one sequence."""

    reach: int = 2
    """Tokens to guess next time."""
    pause: int = 0
    """Tokens to wait before that."""
    guessed: int = 0
    right: int = 0


@dataclass(eq=False)
class Sequence:
    """A generation. Made by the HTTP side, then the engine's alone."""

    number: int
    """Rises with every request: its age, and llama-server's `id_task`."""
    tokens: list[int]
    """The prompt, and what was generated since."""
    limit: int
    """Tokens to generate at most, within what the context allows; 0 only reads the prompt."""
    sampling: Sampling
    output: TextOutput
    sink: Sink
    streaming: bool
    """Whether text is delivered as it comes, or all of it at the end."""
    arrived: float
    """`time.monotonic()` at the request's arrival."""

    guide: GrammarConstraint | None = None
    """What the answer must follow; None: nothing."""
    isolated: bool = False
    """Whether it shares no step, so that nothing else has a part in how it is rounded."""
    tenant: str = ""
    """Whose it is; one tenant's requests wait for another's only in turns."""
    wanted: AdapterFiles = ()
    """The adapter files it wants to be computed with."""
    reuses: bool = True
    """Whether it may begin with what others computed, and be kept for others."""

    resumed: Tokens[int] = ()
    """What another process has generated of it already, by this prompt and these wishes."""

    read_again: float = 0.0
    """Since when it has been read; 0: it has not yet."""

    prompt_length: int = field(init=False)
    unplayed: int = field(init=False)
    """Of `resumed`, the tokens that its sampler and its output have not been told of yet."""
    passed: int = 0
    """How often another came in before it because it did not fit."""
    slot: int = -1
    """The slot it holds; -1: it waits for one."""
    adapters: Adapters = ()
    """What `wanted` is called in the cache, once loaded."""
    seq_id: int = -1
    """Its llama.cpp sequence id while it has a slot."""
    reused: int = 0
    """Tokens of the prompt that were in the cache when it first got a slot."""
    sought: bool = False
    """Whether the disk was asked for what it can go on from."""
    restored: bool = False
    """Whether it goes on from what was there."""
    cached: int = 0
    """Leading tokens that are in the KV cache."""
    draft: Draft = field(default_factory=Draft)
    sampler: Sampler | None = None
    """Its own chain, made at its first turn; None while greedy, which has no state."""
    text: list[str] = field(default_factory=list)
    """Parts not delivered yet."""
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)
        if self.resumed:
            self.tokens = [*self.tokens, *self.resumed]
        self.unplayed = len(self.resumed)

    @property
    def length(self) -> int:
        """Tokens known so far."""
        return len(self.tokens)

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.tokens) - self.cached

    @property
    def generated(self) -> int:
        """Tokens generated so far, by whomever."""
        return len(self.tokens) - self.prompt_length - self.unplayed


def take_token(
    sequence: Sequence, token: int, model: Model, counters: Counters, now: float
) -> tuple[str, SequenceEnd | None]:
    """Adds `token` to the answer. What may be sent now, and the end if this is it.

    What is not streamed is collected, and comes whole with the end.
    """
    sampler = sequence.sampler
    if sampler is not None and sampler.failure:
        counters.requests["failed"] += 1
        return "", Failed(sampler.failure, 400)
    if not sequence.first_token:
        sequence.first_token = sequence.last_token = now
        if sequence.limit == 0:
            return "", _end(sequence, "length", counters, now)
    elif not sequence.unplayed:
        counters.between_tokens.observe(now - sequence.last_token)
        sequence.last_token = now
    if sequence.unplayed:
        sequence.unplayed -= 1
    else:
        sequence.tokens.append(token)
        counters.predicted_tokens += 1
    piece = model.piece(token)
    if piece is None:
        return _all(sequence, sequence.output.rest()), _end(sequence, "stop", counters, now)
    text = sequence.output.push(piece)
    if sequence.output.stopped:
        return _all(sequence, text), _end(sequence, "stop", counters, now)
    if sequence.generated >= sequence.limit:
        rest = sequence.output.rest()
        return _all(sequence, text + rest), _end(sequence, "length", counters, now)
    if text and not sequence.streaming:
        sequence.text.append(text)
        text = ""
    return text, None


def _all(sequence: Sequence, text: str) -> str:
    return "".join(sequence.text) + text


def _end(sequence: Sequence, reason: str, counters: Counters, now: float) -> Finished:
    timings = Timings(
        prompt_tokens=sequence.prompt_length,
        cached_tokens=min(sequence.reused, sequence.prompt_length),
        prompt_seconds=sequence.first_token - sequence.started,
        predicted_tokens=sequence.generated,
        predicted_seconds=now - sequence.first_token,
        guessed=sequence.draft.guessed,
        right=sequence.draft.right,
    )
    counters.requests[reason] += 1
    counters.finished(timings, sequence.arrived, sequence.first_token)
    counters.longest = max(counters.longest, len(sequence.tokens))
    return Finished(reason, timings)
