"""A worker's parts, and what the HTTP handlers share."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from workers.chat.output_parser import SPELLED
from workers.chat.template import CHATML, ChatTemplate
from workers.engine.adapter_names import AdapterNames
from workers.engine.embeddings import EmbeddingJob
from workers.engine.engine import Engine, Task
from workers.engine.kv_store import fingerprint, identity_of
from workers.engine.sequence import Sequence, Sink
from workers.errors import ApiError, exceeds_context, too_long_at_once
from workers.grammar.cache import Grammars
from workers.llama.detokenizer import TextOutput
from workers.llama.model import LlamaLog, LoadError
from workers.llama.sampler import GrammarConstraint
from workers.protocol import DeviceReport
from workers.requests.bodies import Generation
from workers.requests.resume import ResumedCall, check_resumed
from workers.requests.sampling import sampling_of
from workers.settings import Settings

T = TypeVar("T")
LONG_TEXT = 20_000
"""Characters from which tokenising moves off the event loop: about 5 ms."""


class WorkerService:
    """One loaded model and what may be asked of it. Lives on the event loop's thread."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        log: LlamaLog,
        *,
        load_seconds: float,
        devices: tuple[DeviceReport, ...],
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.model = engine.model
        self.log = log
        self.load_seconds = load_seconds
        self.devices = devices
        """The devices beside the CPU, with what loading took of their memory."""
        self.created = int(time.time())
        self.identity = _identity(settings, engine)
        """By which a worker that would have answered as this one does is known."""
        self.template = ChatTemplate(
            settings.chat_template or self.model.chat_template() or CHATML,
            bos=self.model.token_text(self.model.bos),
            eos=self.model.token_text(self.model.eos),
            defaults=settings.chat_template_kwargs,
        )
        for mark in SPELLED:
            if mark in self.template.source:
                self.model.reveal(mark)
        self.grammars = Grammars(self.model, log)
        self._check_flags()
        self.adapters = AdapterNames(settings)
        self._numbers = itertools.count()
        self._endings: dict[int, float] | None = None
        """The bias of `ignore_eos`, once somebody has asked for it."""

    def _check_flags(self) -> None:
        """Of those that only a loaded model can judge. Raises LoadError."""
        grammar, schema = self.settings.grammar, self.settings.json_schema
        try:
            if grammar is not None:
                self.grammars.default = self.grammars.compile(grammar, "grammar")
            elif schema is not None:
                self.grammars.default = self.grammars.of_schema(json.loads(schema), "json_schema")
        except ApiError as error:
            raise LoadError(
                f"--{'json-schema' if grammar is None else 'grammar'}: {error}"
            ) from error
        for token in self.settings.sampling.logit_bias:
            if token >= self.model.n_vocab:
                raise LoadError(f"--logit-bias: the model has no token {token}")

    async def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Text to tokens; a long one does not hold up the streams."""
        return await run_with_backoff(
            len(text),
            lambda: self.model.tokenize(text, add_special=add_special, parse_special=parse_special),
        )

    async def tokenize_rendered(self, prompt: str) -> list[int]:
        """A rendered chat to tokens: with one beginning-of-text, whoever writes it."""
        bos = self.model.token_text(self.model.bos)
        if self.model.adds_bos and bos:
            prompt = prompt.removeprefix(bos)
        return await self.tokenize(prompt)

    async def prepare(self, request: Generation) -> None:
        """To be called before `begin`: finds out what takes too long for the loop's thread.

        Looking through a vocabulary for all that ends an answer takes 10 ms for 32,000 tokens.
        """
        if self._goes_on(request) and self._endings is None:
            found = await in_thread(self.model.ending_tokens)
            self._endings = dict.fromkeys(found, float("-inf"))

    def _goes_on(self, request: Generation) -> bool:
        """Whether nothing that the model says is to end the answer."""
        wish = request.ignore_eos
        return self.settings.ignore_eos if wish is None else wish

    def begin(
        self,
        request: Generation,
        tokens: list[int],
        *,
        streaming: bool,
        sink: Sink,
        guide: GrammarConstraint | None,
        call: ResumedCall,
        resumed: list[int],
    ) -> Sequence:
        """An answer to a checked request, for the engine. Raises ApiError if there can be none.

        Without a tenant in the headers, the request's `user` is taken for one. `resumed` is what
        another worker has drawn of it.
        """
        engine = self.engine
        if not engine.lane.context.generates:
            raise ApiError(400, "This model computes embeddings and generates no text.")
        if not tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        room = engine.longest_sequence - len(self.within_context(tokens))
        limit = request.token_limit
        if limit is None and self.settings.predict >= 0:
            limit = self.settings.predict
        sampling = sampling_of(request, self.settings.sampling, self.model)
        if self._goes_on(request):
            sampling.logit_bias.update(self._endings or {})
        lonely = self.settings.deterministic or bool(request.deterministic)
        if lonely:
            sampling = replace(sampling, temperature=0.0)
        if call.seed is not None and not sampling.seeded:
            sampling = replace(sampling, seed=call.seed)
        limit = room if limit is None else min(limit, room)
        check_resumed(resumed, limit, self.model, None if guide is None else guide.grammar)
        lora = None if request.lora is None else [(a.id, float(a.scale)) for a in request.lora]
        wanted = self.adapters.wanted(request.model, lora)
        if len(wanted) > self.settings.max_loras:
            raise ApiError(
                400, f"At most {self.settings.max_loras} adapters can be used.", param="lora"
            )
        return Sequence(
            number=next(self._numbers),
            tokens=tokens,
            limit=limit,
            sampling=sampling,
            output=TextOutput(request.stops),
            sink=sink,
            streaming=streaming,
            arrived=time.monotonic(),
            tenant=call.tenant or request.user or "",
            wanted=wanted,
            reuses=request.cache_prompt is not False and not lonely,
            isolated=lonely,
            guide=guide,
            resumed=resumed,
        )

    def within_context(self, prompt: list[int]) -> list[int]:
        """`prompt`, if there is room for it and for an answer. Else raises ApiError 400."""
        if len(prompt) >= self.engine.longest_sequence:
            raise exceeds_context(len(prompt), self.engine.longest_sequence)
        return prompt

    def at_once(self, tokens: list[int]) -> list[int]:
        """`tokens`, if one computation has room for them. Else raises ApiError 400."""
        room = self.engine.embedding_options.n_ubatch
        if len(tokens) > room:
            raise too_long_at_once(len(tokens), room)
        return tokens

    async def on_engine(self, work: Callable[[], T]) -> T:
        """Does `work` on the engine's thread, between two steps; its result, or its exception."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def settle(outcome: T | Exception) -> None:
            if result.done():
                return  # nobody waits for it any more
            if isinstance(outcome, Exception):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)

        def attempt() -> None:
            outcome: T | Exception
            try:
                outcome = work()
            except Exception as error:  # noqa: BLE001  it is raised where it is waited for
                outcome = error
            self.engine.post(settle, outcome)

        def lost() -> None:
            self.engine.post(settle, RuntimeError("the engine broke"))

        self.engine.run_between_steps(Task(attempt, lost))
        return await result

    async def load_adapter(self, path: Path) -> None:
        """Loads it before it is asked for, if there is room. Raises LoadError."""
        shelf = self.engine.shelf
        await self.on_engine(lambda: shelf.prepare(((path, 1.0),)))

    async def discard_adapter(self, path: Path) -> None:
        """Frees its memory, unless a request needs it."""
        shelf = self.engine.shelf
        await self.on_engine(lambda: shelf.discard(path))

    async def save_kept(self, seconds: float) -> None:
        """Writes what the cache holds to disk, if there is a place for it. At the end of all."""
        conversations = self.engine.lane.conversations
        if conversations is not None:
            await self.on_engine(lambda: conversations.save_all(seconds))

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """A vector of length 1 for each input. Raises ApiError for one that is too long."""
        for tokens in inputs:
            if not self.at_once(tokens):
                raise ApiError(400, "An input must not be empty.", param="input")
        result: asyncio.Future[list[list[float]]] = asyncio.get_running_loop().create_future()

        def done(outcome: list[list[float]] | Exception) -> None:
            if result.done():
                return  # the client has gone
            if isinstance(outcome, Exception):
                result.set_exception(ApiError(500, f"{outcome}.", "server_error"))
            else:
                result.set_result(outcome)

        job = EmbeddingJob(inputs, done)
        self.engine.embed(job)
        try:
            return await result
        except asyncio.CancelledError:
            self.engine.cancel(job)
            raise


async def run_with_backoff(size: int, work: Callable[[], T]) -> T:
    """Does `work`, whose time grows with `size` characters of a request, where it holds up
    nobody: beside the event loop if they are many."""
    return work() if size < LONG_TEXT else await in_thread(work)


async def in_thread(work: Callable[[], T]) -> T:
    """Runs `work` beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _identity(settings: Settings, engine: Engine) -> str:
    """Of all that shapes an answer and is not in its request."""
    facts = {
        "model": fingerprint(Path(settings.model)),
        "context": (engine.options.n_ctx, settings.cache_type_k, settings.cache_type_v),
        "adapters": (settings.loras, settings.adapter_paths, settings.adapters),
        "template": (settings.chat_template, settings.chat_template_kwargs),
        "sampling": (settings.sampling, settings.predict, settings.deterministic),
        "form": (settings.grammar, settings.json_schema, settings.ignore_eos),
    }
    return identity_of(facts)[:16]
