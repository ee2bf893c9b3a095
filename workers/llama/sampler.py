"""llama.cpp's samplers and grammars.

A request's tokens are drawn by a `Sampler`, or by a `ConstrainedSampler` if the answer must follow
a grammar or its log-probabilities are reported.
"""

from __future__ import annotations

import codecs
import ctypes
import math
import re
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from workers.llama.context import Context
from workers.llama.model import LlamaLog, Model, api

NO_TOKEN = -1
"""Token drawn when none may follow and the model has no end-of-text token."""
SLOWEST = 2.0
"""Longest time that a grammar may take for one token, in seconds; all requests wait meanwhile."""
STATEFUL = frozenset({"penalties", "dry", "mirostat", "mirostat_v2", "adaptive_p"})
"""Samplers that depend on past tokens."""


class Sampler:
    """A chain of llama.cpp samplers and the state of each. Belongs to one request."""

    def __init__(self) -> None:
        self.failure = ""
        """Reason why it has failed, in a sentence, or empty; a failed sampler draws NO_TOKEN."""
        params = api.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = api.llama_sampler_chain_init(params)
        self._stateful = False
        """True if a sampler of the chain depends on past tokens."""

    def add(self, kind: str, *arguments: Any) -> None:
        """Append `llama_sampler_init_<kind>(*arguments)`."""
        self._stateful = self._stateful or kind in STATEFUL
        api.llama_sampler_chain_add(
            self._chain, getattr(api, f"llama_sampler_init_{kind}")(*arguments)
        )

    def add_logit_bias(self, n_vocab: int, bias: dict[int, float]) -> None:
        """Append a sampler that adds `bias[token]` to the logits of these tokens."""
        entries = (api.llama_logit_bias * len(bias))(
            *[api.llama_logit_bias(token, value) for token, value in bias.items()]
        )
        self.add("logit_bias", n_vocab, len(bias), entries)

    def add_dry(
        self,
        model: Model,
        multiplier: float,
        base: float,
        allowed_length: int,
        last_n: int,
        breakers: Sequence[str],
    ) -> None:
        """Append the DRY sampler, which penalizes repetition; texts in `breakers` interrupt it."""
        texts = [text.encode("utf-8", "replace") for text in breakers if text]
        array_of_texts = (ctypes.c_char_p * len(texts))(*texts)
        numbers = (multiplier, base, allowed_length, last_n)
        self.add("dry", model.vocab, *numbers, array_of_texts, len(texts))

    def accept(self, token: int) -> None:
        """Record a token that was not drawn by this chain, such as those of the prompt."""
        api.llama_sampler_accept(self._chain, token)

    def apply(self, candidates: Candidates) -> None:
        """Apply the chain to `candidates`, without recording a token."""
        api.llama_sampler_apply(self._chain, candidates.reference)

    def sample(self, context: Context, row: int) -> int:
        """Draw a token from the logits of the last step's `row`, and record it."""
        token: int = api.llama_sampler_sample(self._chain, context.handle, row)
        return token

    def replay(self, context: Context, row: int, token: int, candidates: Candidates) -> None:
        """Bring the chain to its state after `token` was drawn from `row`.

        `candidates` is overwritten.
        """
        if not self._stateful:
            api.llama_sampler_sample(self._chain, context.handle, row)
            return
        candidates.fill(context, row)
        self.apply(candidates)
        self.accept(token)

    def free(self) -> None:
        """Free the chain; it must not be used afterwards."""
        api.llama_sampler_free(self._chain)


class Grammar:
    """A GBNF grammar and the position in it that a text has reached.

    llama.cpp ends the process on a token that does not fit; so `accept` may only be called with a
    token that `admits` allows.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def compile(cls, text: str, model: Model, log: LlamaLog) -> Grammar:
        """Compile `text`, which `gbnf.check` must have accepted.

        Raises ValueError with llama.cpp's reason.
        """
        handle = api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not handle:
            raise ValueError(log.reason("llama.cpp can't use the grammar"))
        return cls(handle)

    def clone(self) -> Grammar:
        """Return an independent copy at the same position."""
        return Grammar(api.llama_sampler_clone(self._handle))

    def admits(self, token: int) -> bool:
        """Return True if `token` may come next."""
        one = api.llama_token_data(token, 0.0, 0.0)
        single = api.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        api.llama_sampler_apply(self._handle, ctypes.byref(single))
        return bool(one.logit == 0.0)

    def narrow(self, candidates: Candidates) -> None:
        """Make every token impossible that may not come next. Costs a check of each."""
        api.llama_sampler_apply(self._handle, candidates.reference)

    def accept(self, token: int) -> None:
        """Advance by `token`."""
        api.llama_sampler_accept(self._handle, token)

    def __del__(self) -> None:
        api.llama_sampler_free(self._handle)


class Candidates:
    """The vocabulary with its logits, as samplers take it; they reorder and truncate it."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._data = (api.llama_token_data * n_vocab)()
        cells = memoryview(self._data).cast("B")
        fields = ctypes.sizeof(api.llama_token_data) // 4  # id, logit, p: 32 bits each
        cells.cast("i")[0::fields] = memoryview(array("i", range(n_vocab)))
        self._in_order = bytes(cells)
        self._cells = cells
        self._logits = cells.cast("f")[1::fields]
        self._array = api.llama_token_data_array(self._data, n_vocab, -1, False)
        self.reference = ctypes.byref(self._array)

    def fill(self, context: Context, row: int) -> None:
        """Take the logits of the last step's `row`, all tokens in the vocabulary's order."""
        logits = ctypes.cast(
            api.llama_get_logits_ith(context.handle, row),
            ctypes.POINTER(ctypes.c_float * self._n_vocab),
        ).contents
        self._cells[:] = self._in_order
        self._logits[:] = memoryview(logits).cast("B").cast("f")
        self._array.data = self._data
        self._array.size = self._n_vocab
        self._array.selected = -1
        self._array.sorted = False

    def forbid(self, token: int) -> None:
        """Make `token` impossible; only right after `fill`."""
        self._logits[token] = -math.inf

    def logit(self, token: int) -> float:
        """Return the logit of `token`; only right after `fill`."""
        return self._logits[token]

    def at(self, place: int) -> Any:
        """Return the entry in a place: id, logit and p."""
        return self._array.data[place]

    def chosen(self) -> int | None:
        """Return the token that a sampler has selected, or None if it is impossible."""
        at = self._array.selected
        if at < 0 or self._array.data[at].logit == -math.inf:
            return None
        token: int = self._array.data[at].id
        return token


class Probabilities:
    """Log-probabilities of tokens, before any sampler."""

    def __init__(self, n_vocab: int, alternatives: int) -> None:
        self._candidates = Candidates(n_vocab)
        self._count = min(alternatives, n_vocab)
        self._chain = Sampler()
        self._chain.add("dist", 0)  # a softmax that does not sort
        self._chain.add("top_k", max(self._count, 1))

    def of(self, context: Context, row: int, token: int) -> tuple[float, list[tuple[int, float]]]:
        """Return the log-probability of `token` in `row`, and the likeliest tokens with theirs."""
        self._candidates.fill(context, row)
        logit = self._candidates.logit(token)
        self._chain.apply(self._candidates)
        first = self._candidates.at(0)
        zero = first.logit - math.log(first.p)
        likeliest = [self._candidates.at(place) for place in range(self._count)]
        return logit - zero, [(one.id, one.logit - zero) for one in likeliest]

    def free(self) -> None:
        """Free the sampler chain."""
        self._chain.free()


class CallTrigger(Protocol):
    """A detector of the beginning of a tool call in an answer's text."""

    def see(self, text: str) -> str | None:
        """Take more of the answer; return the text after the beginning of a call when found."""


@dataclass(frozen=True)
class GrammarConstraint:
    """The grammar of one answer, and the log-probabilities to report of its tokens."""

    grammar: Grammar | None = None
    """Grammar at its first position, or None; cloned, so one may serve many answers."""
    alternatives: int | None = None
    """Likeliest tokens to report beside each drawn one; None reports no log-probabilities."""
    start: CallTrigger | None = None
    """Detector of the position from which `call` applies; for this answer alone."""
    call: Grammar | None = None
    """Grammar of the answer from that position on."""
    logprobs: deque[tuple[int, float, list[tuple[int, float]]]] = field(default_factory=deque)
    """Drawn tokens, each with its log-probability before any sampler and its alternatives."""


_HALF_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")
"""Bytes of a surrogate, which Python's decoder accepts as a beginning though none may follow."""


class ConstrainedSampler(Sampler):
    """A sampler that follows a grammar, draws valid UTF-8, and reports log-probabilities.

    Each token is drawn freely first. Only if the grammar rejects it, it is drawn again from the
    tokens that the grammar admits, because these cost a check of the whole vocabulary.
    """

    def __init__(self, model: Model, constraint: GrammarConstraint) -> None:
        super().__init__()
        self._model = model
        self._logprobs = constraint.logprobs
        self._grammar = None if constraint.grammar is None else constraint.grammar.clone()
        self._start, self._call = constraint.start, constraint.call
        self._character = codecs.getincrementaldecoder("utf-8")()
        count = constraint.alternatives
        self._probabilities = None if count is None else Probabilities(model.n_vocab, count)

    def sample(self, context: Context, row: int) -> int:
        """As Sampler; draw the model's end of text where no token may follow."""
        if self._grammar is None:
            token = super().sample(context, row)
            self._watch(token)
        else:
            token = self._sample_constrained(context, row, self._grammar)
        if self._probabilities is not None and token != NO_TOKEN:
            self._logprobs.append((token, *self._probabilities.of(context, row, token)))
        return token

    @cached_property
    def _candidates(self) -> Candidates:
        """Scratch candidates, made at the first use: some milliseconds for a large vocabulary."""
        return Candidates(self._model.n_vocab)

    def free(self) -> None:
        """As Sampler."""
        super().free()
        if self._probabilities is not None:
            self._probabilities.free()

    def replay(self, context: Context, row: int, token: int, candidates: Candidates) -> None:
        """As Sampler; the grammar, if any, must admit `token`."""
        if self._grammar is None:
            super().replay(context, row, token, candidates)
            self._watch(token)
        else:
            self._choose(context, row, self._grammar)
            if self._model.piece(token) is not None and self._grammar.admits(token):
                self._note(token, self._grammar)
        if self._probabilities is not None and token != NO_TOKEN:
            self._logprobs.append((token, *self._probabilities.of(context, row, token)))

    def _watch(self, token: int) -> None:
        """Apply the grammar of calls from here on if a tool call has begun with `token`.

        The text of the token after the marker must fit, or the call stays unconstrained.
        """
        piece = self._model.piece(token)
        if self._start is None or self._call is None or not piece:
            return
        rest = self._start.see(
            piece if isinstance(piece, str) else piece.decode("utf-8", "replace")
        )
        if rest is None:
            return
        self._start, grammar = None, self._call.clone()
        for one in self._model.tokenize(rest, add_special=False, parse_special=False):
            if not grammar.admits(one):
                return
            grammar.accept(one)
        self._grammar = grammar

    def _sample_constrained(self, context: Context, row: int, grammar: Grammar) -> int:
        began = time.perf_counter()
        token = self._choose(context, row, grammar)
        if token is not None:
            self._note(token, grammar)
        if time.perf_counter() - began > SLOWEST:
            self.failure = "The grammar is too ambiguous: a token of the answer took too long."
            return NO_TOKEN
        if token is None:
            return self._model.eos if self._model.eos >= 0 else NO_TOKEN
        return token

    def _choose(self, context: Context, row: int, grammar: Grammar) -> int | None:
        """Return the next token, or None if none may follow."""
        token = self._draw(context, row)
        if token is None or not (grammar.admits(token) and self._is_text(token)):
            token = self._draw_again(context, row, grammar)
        return token

    def _note(self, token: int, grammar: Grammar) -> None:
        """Advance samplers, grammar and text by `token`."""
        if self._stateful:
            self.accept(token)
        grammar.accept(token)
        piece = self._model.piece(token)
        if isinstance(piece, bytes):
            self._character.decode(piece)
        elif piece:
            self._character.reset()

    def _draw(self, context: Context, row: int) -> int | None:
        """Draw without the grammar, or return None.

        llama.cpp's own layout of the candidates is by far the fastest, but it records the token in
        the chain, even one that does not fit; so it is used only for chains without state.
        """
        if not self._stateful:
            return super().sample(context, row)
        self._candidates.fill(context, row)
        self.apply(self._candidates)
        return self._candidates.chosen()

    def _draw_again(self, context: Context, row: int, grammar: Grammar) -> int | None:
        """Draw from the tokens that the grammar admits, or return None if there are none."""
        candidates, forbidden = self._candidates, list[int]()
        while True:
            candidates.fill(context, row)
            for unfit in forbidden:
                candidates.forbid(unfit)
            grammar.narrow(candidates)
            self.apply(candidates)
            token = candidates.chosen()
            if token is None or self._is_text(token):
                return token
            forbidden.append(token)

    def _is_text(self, token: int) -> bool:
        """Return True if `token` ends the text, or adds to it and leaves it valid UTF-8.

        The grammar admits control tokens by their names, which are no text for the client; and it
        admits bytes that look like the beginning of a character and can't be one.
        """
        piece = self._model.piece(token)
        if piece is None:
            return True
        if isinstance(piece, str):
            return bool(piece) and not self._character.getstate()[0]
        before = self._character.getstate()
        try:
            self._character.decode(piece)
            begun = self._character.getstate()[0]
        except UnicodeDecodeError:
            return False
        finally:
            self._character.setstate(before)
        return not _HALF_SURROGATE.match(begun)
