"""The loaded worker: its parts, and the operations that the HTTP handlers share."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from workers.chat.output_parser import CONTROL_MARKERS
from workers.chat.template import CHATML, ChatTemplate
from workers.engine.adapter_names import AdapterNames
from workers.engine.embeddings import EmbeddingJob
from workers.engine.engine import Engine, Task
from workers.engine.kv_store import fingerprint, identity_of
from workers.engine.sequence import Sequence, Sink
from workers.errors import ApiError, exceeds_batch, exceeds_context
from workers.grammar.cache import Grammars
from workers.llama.detokenizer import TextOutput
from workers.llama.model import LlamaLog, LoadError
from workers.llama.sampler import GrammarConstraint
from workers.protocol import DeviceReport
from workers.requests.bodies import Generation
from workers.requests.resume import ResumableCall, check_resumed
from workers.requests.sampling import sampling_of
from workers.settings import Settings

T = TypeVar("T")
LONG_TEXT = 20_000
"""Characters from which tokenization moves off the event loop: about 5 ms."""


class WorkerService:
    """A loaded model with its engine, templates and grammars. Used on the event loop's thread."""

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
        """The devices other than the CPU, with the bytes that loading took on each."""
        self.created = int(time.time())
        self.identity = _identity(settings, engine)
        """A digest that is equal for workers which would give the same answers."""
        self.template = ChatTemplate(
            settings.chat_template or self.model.chat_template() or CHATML,
            bos=self.model.token_text(self.model.bos),
            eos=self.model.token_text(self.model.eos),
            defaults=settings.chat_template_kwargs,
        )
        # The parser has to see markers that the vocabulary has as control tokens.
        for marker in CONTROL_MARKERS:
            if marker in self.template.source:
                self.model.reveal(marker)
        self.grammars = Grammars(self.model, log)
        self._check_flags()
        self.adapters = AdapterNames(settings)
        self._numbers = itertools.count()
        self._endings: dict[int, float] | None = None
        """Biases for `ignore_eos`; None until the first request that uses it."""

    def _check_flags(self) -> None:
        """Check the flags that depend on the model. Raises LoadError."""
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
        """Return the tokens of `text`; a long text is tokenized off the event loop."""
        return await run_with_backoff(
            len(text),
            lambda: self.model.tokenize(text, add_special=add_special, parse_special=parse_special),
        )

    async def tokenize_rendered(self, prompt: str) -> list[int]:
        """Return the tokens of a rendered chat, with exactly one beginning-of-text token."""
        bos = self.model.token_text(self.model.bos)
        if self.model.adds_bos and bos:
            prompt = prompt.removeprefix(bos)
        return await self.tokenize(prompt)

    async def prepare(self, request: Generation) -> None:
        """Prepare `begin`: compute off the event loop the biases that the request needs.

        The scan for end-of-generation tokens takes 10 ms for 32,000 tokens.
        """
        if self._ignores_eos(request) and self._endings is None:
            found = await in_thread(self.model.ending_tokens)
            self._endings = dict.fromkeys(found, float("-inf"))

    def _ignores_eos(self, request: Generation) -> bool:
        """Return True if end-of-generation tokens must not end the answer."""
        ignores = request.ignore_eos
        return self.settings.ignore_eos if ignores is None else ignores

    def begin(
        self,
        request: Generation,
        tokens: list[int],
        *,
        streaming: bool,
        sink: Sink,
        guide: GrammarConstraint | None,
        call: ResumableCall,
        resumed: list[int],
    ) -> Sequence:
        """Return a sequence for an answer to a checked request. Raises ApiError.

        Without a tenant in the headers, the request's `user` is the tenant. `resumed` holds the
        tokens of the answer that another worker has drawn.
        """
        engine = self.engine
        if not engine.context.generates:
            raise ApiError(400, "This model computes embeddings and generates no text.")
        if not tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        # The limit: the request's, else the server's, and at most the rest of the context.
        capacity = engine.longest_sequence - len(self.within_context(tokens))
        limit = request.token_limit
        if limit is None and self.settings.predict >= 0:
            limit = self.settings.predict
        # Sampling: a deterministic answer is greedy; a resumable one needs a fixed seed.
        sampling = sampling_of(request, self.settings.sampling, self.model)
        if self._ignores_eos(request):
            sampling.logit_bias.update(self._endings or {})
        isolated = self.settings.deterministic or bool(request.deterministic)
        if isolated:
            sampling = replace(sampling, temperature=0.0)
        if call.seed is not None and not sampling.seeded:
            sampling = replace(sampling, seed=call.seed)
        limit = capacity if limit is None else min(limit, capacity)
        check_resumed(resumed, limit, self.model, None if guide is None else guide.grammar)
        # Adapters: `lora` if the request has it, else the adapter that `model` names.
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
            reuses=request.cache_prompt is not False and not isolated,
            isolated=isolated,
            constraint=guide,
            resumed=resumed,
        )

    def within_context(self, prompt: list[int]) -> list[int]:
        """Return `prompt` if the context has room for it and an answer. Raises ApiError 400."""
        if len(prompt) >= self.engine.longest_sequence:
            raise exceeds_context(len(prompt), self.engine.longest_sequence)
        return prompt

    def within_batch(self, tokens: list[int]) -> list[int]:
        """Return `tokens` if they fit into one batch. Raises ApiError 400."""
        capacity = self.engine.embedding_options.n_ubatch
        if len(tokens) > capacity:
            raise exceeds_batch(len(tokens), capacity)
        return tokens

    async def on_engine(self, work: Callable[[], T]) -> T:
        """Run `work` on the engine's thread between two steps; return its result or raise."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def settle(outcome: T | Exception) -> None:
            if result.done():
                return  # the caller was cancelled
            if isinstance(outcome, Exception):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)

        def attempt() -> None:
            outcome: T | Exception
            try:
                outcome = work()
            except Exception as error:  # noqa: BLE001  raised in the caller
                outcome = error
            self.engine.post(settle, outcome)

        def lost() -> None:
            self.engine.post(settle, RuntimeError("the engine failed"))

        self.engine.run_between_steps(Task(attempt, lost))
        return await result

    async def load_adapter(self, path: Path) -> None:
        """Load an adapter before its first request, if there is room. Raises LoadError."""
        cache = self.engine.adapter_cache
        await self.on_engine(lambda: cache.prepare(((path, 1.0),)))

    async def discard_adapter(self, path: Path) -> None:
        """Free an adapter's memory, unless a request uses it."""
        cache = self.engine.adapter_cache
        await self.on_engine(lambda: cache.discard(path))

    async def save_cache(self, seconds: float) -> None:
        """Write the cached sequences to disk at shutdown, if a folder is configured."""
        store = self.engine.scheduler.persistent_cache
        if store is not None:
            await self.on_engine(lambda: store.save_all(seconds))

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """Return a vector of length 1 for each input. Raises ApiError for a long input."""
        for tokens in inputs:
            if not self.within_batch(tokens):
                raise ApiError(400, "An input must not be empty.", param="input")
        result: asyncio.Future[list[list[float]]] = asyncio.get_running_loop().create_future()

        def done(outcome: list[list[float]] | Exception) -> None:
            if result.done():
                return  # the client disconnected
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
    """Run `work` on the event loop if `size`, in characters, is small; else in a thread."""
    return work() if size < LONG_TEXT else await in_thread(work)


async def in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread of the default pool."""
    return await asyncio.get_running_loop().run_in_executor(None, work)


def _identity(settings: Settings, engine: Engine) -> str:
    """Return a digest of everything that affects answers and is not in the request."""
    facts = {
        "model": fingerprint(Path(settings.model)),
        "context": (engine.options.n_ctx, settings.cache_type_k, settings.cache_type_v),
        "adapters": (settings.loras, settings.adapter_paths, settings.adapters),
        "template": (settings.chat_template, settings.chat_template_kwargs),
        "sampling": (settings.sampling, settings.predict, settings.deterministic),
        "form": (settings.grammar, settings.json_schema, settings.ignore_eos),
    }
    return identity_of(facts)[:16]
