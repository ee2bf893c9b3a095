"""llama.cpp's samplers, as this worker uses them: the other half of `binding`.

A request's tokens are drawn by a `Sampler`; one whose answer must follow a grammar, by a
`ConstrainedSampler`.
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
"""What is drawn when nothing may follow and the model has no token to say so."""


SLOWEST = 2.0
"""Seconds that a grammar may take for one token, which is so long that everybody waits for it."""
REMEMBERING = frozenset({"penalties", "dry", "mirostat", "mirostat_v2", "adaptive_p"})
"""Samplers to which past tokens matter."""


class Sampler:
    """A chain of llama.cpp samplers and the state of each. Belongs to one request."""

    def __init__(self) -> None:
        self.failure = ""
        """Why it has given up, in a sentence; then it draws NO_TOKEN."""
        params = api.llama_sampler_chain_default_params()
        params.no_perf = True
        self._chain = api.llama_sampler_chain_init(params)
        self._remembers = False
        """Whether it makes a difference which tokens it is told of."""

    def add(self, kind: str, *arguments: Any) -> None:
        """Appends `llama_sampler_init_<kind>(*arguments)`."""
        self._remembers = self._remembers or kind in REMEMBERING
        api.llama_sampler_chain_add(
            self._chain, getattr(api, f"llama_sampler_init_{kind}")(*arguments)
        )

    def add_logit_bias(self, n_vocab: int, bias: dict[int, float]) -> None:
        """Adds `bias[token]` to the logits of these tokens."""
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
        """Appends the one that punishes going on as before; texts in `breakers` interrupt it."""
        texts = [text.encode("utf-8", "replace") for text in breakers if text]
        array_of_texts = (ctypes.c_char_p * len(texts))(*texts)
        about = (multiplier, base, allowed_length, last_n)
        self.add("dry", model.vocab, *about, array_of_texts, len(texts))

    def accept(self, token: int) -> None:
        """Tells the samplers of a token that was not sampled by them (the prompt's)."""
        api.llama_sampler_accept(self._chain, token)

    def apply(self, candidates: Candidates) -> None:
        """Lets all of them work on `candidates`, and remembers nothing."""
        api.llama_sampler_apply(self._chain, candidates.reference)

    def sample(self, context: Context, row: int) -> int:
        """Draws from the logits of the last step's `row`, and remembers the token."""
        token: int = api.llama_sampler_sample(self._chain, context.handle, row)
        return token

    def replay(self, context: Context, row: int, token: int, candidates: Candidates) -> None:
        """As `sample`, where `token` is what was drawn; `candidates` is for it to work on."""
        if not self._remembers:
            api.llama_sampler_sample(self._chain, context.handle, row)
            return
        candidates.fill(context, row)
        self.apply(candidates)
        self.accept(token)

    def free(self) -> None:
        """Frees the chain; it must not be used afterwards."""
        api.llama_sampler_free(self._chain)


class Grammar:
    """A GBNF grammar and the place in it that a text has reached.

    llama.cpp ends the process when it is told of a token that does not fit; so nobody may
    `accept` one that was not `admitted`.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    @classmethod
    def compile(cls, text: str, model: Model, log: LlamaLog) -> Grammar:
        """Compiles `text`, which `gbnf.check` must have found sound. ValueError: llama.cpp's
        reason for not having it."""
        handle = api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
        if not handle:
            raise ValueError(log.reason("llama.cpp can't use the grammar"))
        return cls(handle)

    def clone(self) -> Grammar:
        """A copy that goes on from here by itself."""
        return Grammar(api.llama_sampler_clone(self._handle))

    def admits(self, token: int) -> bool:
        """Whether `token` may come next."""
        one = api.llama_token_data(token, 0.0, 0.0)
        alone = api.llama_token_data_array(ctypes.pointer(one), 1, -1, False)
        api.llama_sampler_apply(self._handle, ctypes.byref(alone))
        return bool(one.logit == 0.0)

    def narrow(self, candidates: Candidates) -> None:
        """Makes every token that may not come next impossible. Costs a look at each of them."""
        api.llama_sampler_apply(self._handle, candidates.reference)

    def accept(self, token: int) -> None:
        """`token` came next."""
        api.llama_sampler_accept(self._handle, token)

    def __del__(self) -> None:
        api.llama_sampler_free(self._handle)


class Candidates:
    """The vocabulary with its logits, as samplers take it; they reorder it and cut it short."""

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
        """Takes the logits of the last step's `row`, all tokens in the vocabulary's order."""
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
        """Makes `token` impossible; only right after `fill`."""
        self._logits[token] = -math.inf

    def logit(self, token: int) -> float:
        """The logit of `token`; only right after `fill`."""
        return self._logits[token]

    def at(self, place: int) -> Any:
        """The id, logit and p in a place."""
        return self._array.data[place]

    def chosen(self) -> int | None:
        """The token a sampler has chosen; None if it is an impossible one."""
        at = self._array.selected
        if at < 0 or self._array.data[at].logit == -math.inf:
            return None
        token: int = self._array.data[at].id
        return token


class Probabilities:
    """How likely tokens are, before any sampler."""

    def __init__(self, n_vocab: int, alternatives: int) -> None:
        self._candidates = Candidates(n_vocab)
        self._count = min(alternatives, n_vocab)
        self._chain = Sampler()
        self._chain.add("dist", 0)  # of the ways to a softmax, the one that keeps the order
        self._chain.add("top_k", max(self._count, 1))

    def of(self, context: Context, row: int, token: int) -> tuple[float, list[tuple[int, float]]]:
        """The logarithmic probability of `token` by the last step's `row`, and the likeliest
        tokens with theirs."""
        self._candidates.fill(context, row)
        logit = self._candidates.logit(token)
        self._chain.apply(self._candidates)
        first = self._candidates.at(0)
        zero = first.logit - math.log(first.p)
        likeliest = [self._candidates.at(place) for place in range(self._count)]
        return logit - zero, [(one.id, one.logit - zero) for one in likeliest]

    def free(self) -> None:
        """Frees what llama.cpp holds of it."""
        self._chain.free()


class CallTrigger(Protocol):
    """A watch over an answer's text for the beginning of a tool call."""

    def see(self, text: str) -> str | None:
        """Take more of the answer; return what follows the beginning, as soon as it is there."""


@dataclass(frozen=True)
class GrammarConstraint:
    """What one answer must follow, and what is to be told of its tokens."""

    grammar: Grammar | None = None
    """Where it begins; cloned, so one may serve many answers."""
    alternatives: int | None = None
    """How many likely tokens to tell beside each that was drawn; None: nothing is told."""
    start: CallTrigger | None = None
    """Finds where `call` begins to bind; one answer's own."""
    call: Grammar | None = None
    """What the answer must follow from there on."""
    told: deque[tuple[int, float, list[tuple[int, float]]]] = field(default_factory=deque)
    """Each token drawn: its logarithmic probability before any sampler, and the alternatives'."""


_HALF_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")
"""What Python's decoder goes on from, and nothing can follow."""


class ConstrainedSampler(Sampler):
    """Draws what a grammar admits, and only text that is UTF-8; tells how likely it was.

    Each token is drawn freely first. Only if the grammar rejects it, it is drawn again from what
    the grammar admits, because finding that out costs a look at the whole vocabulary.
    """

    def __init__(self, model: Model, guide: GrammarConstraint) -> None:
        super().__init__()
        self._model = model
        self._told = guide.told
        self._grammar = None if guide.grammar is None else guide.grammar.clone()
        self._start, self._call = guide.start, guide.call
        self._character = codecs.getincrementaldecoder("utf-8")()
        wanted = guide.alternatives
        self._probabilities = None if wanted is None else Probabilities(model.n_vocab, wanted)

    def sample(self, context: Context, row: int) -> int:
        """As promised by Sampler; where nothing can follow, the model's end of text."""
        if self._grammar is None:
            token = super().sample(context, row)
            self._watch(token)
        else:
            token = self._sample_guided(context, row, self._grammar)
        if self._probabilities is not None and token != NO_TOKEN:
            self._told.append((token, *self._probabilities.of(context, row, token)))
        return token

    @cached_property
    def _candidates(self) -> Candidates:
        """Made when it is needed: for a large vocabulary that takes some milliseconds."""
        return Candidates(self._model.n_vocab)

    def free(self) -> None:
        """As promised by Sampler."""
        super().free()
        if self._probabilities is not None:
            self._probabilities.free()

    def replay(self, context: Context, row: int, token: int, candidates: Candidates) -> None:
        """As promised by Sampler; the grammar, if any, must admit `token`."""
        if self._grammar is None:
            super().replay(context, row, token, candidates)
            self._watch(token)
        else:
            self._choose(context, row, self._grammar)
            if self._model.piece(token) is not None and self._grammar.admits(token):
                self._note(token, self._grammar)
        if self._probabilities is not None and token != NO_TOKEN:
            self._told.append((token, *self._probabilities.of(context, row, token)))

    def _watch(self, token: int) -> None:
        """Whether a call has begun with `token`: then it is bound from here on.

        What the token has behind the mark must fit, or the call is as the model likes it.
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

    def _sample_guided(self, context: Context, row: int, grammar: Grammar) -> int:
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
        """What follows; None: nothing can."""
        token = self._draw(context, row)
        if token is None or not (grammar.admits(token) and self._is_text(token)):
            token = self._draw_again(context, row, grammar)
        return token

    def _note(self, token: int, grammar: Grammar) -> None:
        """`token` is what follows."""
        if self._remembers:
            self.accept(token)
        grammar.accept(token)
        piece = self._model.piece(token)
        if isinstance(piece, bytes):
            self._character.decode(piece)
        elif piece:
            self._character.reset()

    def _draw(self, context: Context, row: int) -> int | None:
        """Without the grammar. Of all ways to lay out the candidates llama.cpp's own is by far
        the fastest, but it tells the chain of the token, whether it fits or not."""
        if not self._remembers:
            return super().sample(context, row)
        self._candidates.fill(context, row)
        self.apply(self._candidates)
        return self._candidates.chosen()

    def _draw_again(self, context: Context, row: int, grammar: Grammar) -> int | None:
        """From what the grammar admits; None if that is nothing."""
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
        """Whether `token` ends the text or adds to it, and leaves it UTF-8.

        The grammar sees the name of a control token and the client does not; and it lets bytes
        through that look like the beginning of a character and can't be one.
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
