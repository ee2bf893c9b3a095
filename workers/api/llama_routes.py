"""llama-server's endpoints: /completion, /infill, /rerank, /props, /tokenize and others."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from aiohttp import web

from workers.api.answers import MAX_ANSWERS, Answers
from workers.api.chat_request import open_chat
from workers.api.json_response import json_response
from workers.api.llama_responses import LlamaResponses, parameters
from workers.api.streaming import read_call, respond
from workers.chat.infill import infill_prompt
from workers.engine.embeddings import ranking_prompt
from workers.engine.sequence import Sequence
from workers.errors import ApiError
from workers.requests.bodies import ChatRequest, Generation, decode, token_lists
from workers.requests.resume import ResumableCall
from workers.service import WorkerService, in_thread, run_with_backoff


class Tokenize(msgspec.Struct):
    """The body of /tokenize."""

    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class Detokenize(msgspec.Struct):
    """The body of /detokenize."""

    tokens: list[int]


class LlamaRoutes:
    """Handlers of /props, /slots, /tokenize, /detokenize, /apply-template and /metrics."""

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker

    async def props(self, _http: web.Request) -> web.Response:
        """Handle GET /props."""
        worker, model = self._worker, self._worker.model
        return json_response(
            {
                "default_generation_settings": {
                    "n_ctx": worker.engine.longest_sequence,
                    "params": parameters(worker.settings.sampling, worker.settings.predict),
                },
                "total_slots": len(worker.engine.slots),
                "model_alias": worker.settings.name,
                "model_path": worker.settings.model,
                "modalities": {"vision": False, "audio": False},
                "chat_template": worker.template.source,
                "bos_token": model.token_text(model.bos),
                "eos_token": model.token_text(model.eos),
            }
        )

    async def slots(self, _http: web.Request) -> web.Response:
        """Handle GET /slots: a snapshot of each slot."""
        engine = self._worker.engine
        return json_response(
            [
                _slot(number, engine.longest_sequence, sequence)
                for number, sequence in enumerate(engine.slots)
            ]
        )

    async def tokenize(self, http: web.Request) -> web.Response:
        """Handle POST /tokenize."""
        request = decode(await http.read(), Tokenize)
        return await run_with_backoff(len(request.content), lambda: self._tokens(request))

    def _tokens(self, request: Tokenize) -> web.Response:
        tokens = self._worker.model.tokenize(
            request.content, add_special=request.add_special, parse_special=request.parse_special
        )
        if not request.with_pieces:
            return json_response({"tokens": tokens})
        pieces = [{"id": token, "piece": self._piece(token)} for token in tokens]
        return json_response({"tokens": pieces})

    async def detokenize(self, http: web.Request) -> web.Response:
        """Handle POST /detokenize."""
        body = await http.read()
        tokens = decode(body, Detokenize).tokens
        return await run_with_backoff(len(body), lambda: self._text(tokens))

    def _text(self, tokens: list[int]) -> web.Response:
        model = self._worker.model
        if not all(0 <= token < model.n_vocab for token in tokens):
            raise ApiError(
                400, "`tokens` has a token id that the model does not have.", param="tokens"
            )
        return json_response({"content": model.text(tokens)})

    async def apply_template(self, http: web.Request) -> web.Response:
        """Handle POST /apply-template."""
        request = decode(await http.read(), ChatRequest)
        chat = await open_chat(self._worker, request, time.time())
        return json_response({"prompt": chat.prompt})

    async def metrics(self, _http: web.Request) -> web.Response:
        """Handle GET /metrics. The first one imports prometheus_client in another thread."""
        from workers.engine.metrics import render

        loop_seconds = time.thread_time()
        text = await in_thread(lambda: render(self._worker.engine, loop_seconds))
        return web.Response(
            body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    def _piece(self, token: int) -> str | list[int]:
        """Return the token's text, or its bytes if they are not valid UTF-8, as llama-server."""
        data = self._worker.model.spelled(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return list(data)


def _slot(number: int, context: int, sequence: Sequence | None) -> dict[str, object]:
    if sequence is None:
        return {"id": number, "id_task": -1, "n_ctx": context, "is_processing": False}
    remaining = sequence.limit - sequence.generated
    return {
        "id": number,
        "id_task": sequence.number,
        "n_ctx": context,
        "is_processing": True,
        "n_prompt_tokens": sequence.prompt_length,
        "n_cached_tokens": sequence.cached,
        "params": parameters(sequence.sampling, sequence.limit),
        "next_token": [
            {
                "has_next_token": remaining > 0,
                "n_remain": remaining,
                "n_decoded": sequence.generated,
            }
        ],
    }


class LlamaGeneration(Generation, kw_only=True):
    """Fields that /completion and /infill share."""

    n_predict: int | None = None
    n_probs: int | None = None
    return_tokens: bool = False

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most; None, or -1 in the body: to the end of the context."""
        limit = self.max_tokens if self.n_predict is None else self.n_predict
        return None if limit == -1 else limit


class Completion(LlamaGeneration, kw_only=True):
    """The body of /completion."""

    prompt: Any


class Extra(msgspec.Struct):
    """A file that is context for an infill."""

    text: str
    filename: str = "tmp"


class Infill(LlamaGeneration, kw_only=True):
    """The body of /infill."""

    input_prefix: str
    input_suffix: str
    prompt: str = ""
    input_extra: list[Extra] = msgspec.field(default_factory=list)


class Rerank(msgspec.Struct, kw_only=True):
    """The body of /rerank: Jina's, or text-embeddings-inference's with `texts`."""

    query: str
    documents: list[str | dict[str, Any]] | None = None
    texts: list[str] | None = None
    top_n: int | None = None
    return_documents: bool = False
    return_text: bool = False
    model: str | None = None


class CompletionRoutes:
    """Handlers of /completion, /infill and /rerank."""

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker

    async def complete(self, http: web.Request) -> web.StreamResponse:
        """Handle POST /completion."""
        call, request = await read_call(http, self._worker, Completion)
        model = self._worker.model
        prompts = await run_with_backoff(
            len(call.body), lambda: token_lists(model, request.prompt, "prompt", MAX_ANSWERS)
        )
        return await self._answer(http, call, request, prompts)

    async def infill(self, http: web.Request) -> web.StreamResponse:
        """Handle POST /infill."""
        call, request = await read_call(http, self._worker, Infill)
        prompt = await run_with_backoff(len(call.body), lambda: self._infill_prompt(request))
        return await self._answer(http, call, request, [prompt])

    def _infill_prompt(self, request: Infill) -> list[int]:
        model = self._worker.model
        prefix, prompt = [
            model.tokenize(text, add_special=False, parse_special=False)
            for text in (request.input_prefix, request.prompt)
        ]
        files = [(extra.filename, extra.text) for extra in request.input_extra]
        return infill_prompt(model, prefix, request.input_suffix, middle=prompt, files=files)

    async def _answer(
        self,
        http: web.Request,
        call: ResumableCall,
        request: LlamaGeneration,
        prompts: list[list[int]],
    ) -> web.StreamResponse:
        worker, streaming = self._worker, bool(request.stream)
        answers = Answers(
            worker,
            request,
            prompts,
            call,
            grammar=worker.grammars.requested(request) or worker.grammars.default,
            alternatives=request.n_probs or None,
        )
        each = await run_with_backoff(len(call.body), lambda: list(map(worker.model.text, prompts)))
        texts = [text for text in each for _ in range(request.n or 1)]
        name = request.model or worker.settings.name
        shape = LlamaResponses(name, answers, texts, tokens=request.return_tokens)
        return await respond(http, call, answers, shape, streaming=streaming)

    async def rerank(self, http: web.Request) -> web.Response:
        """Handle POST /rerank."""
        body = await http.read()
        request = decode(body, Rerank)
        worker, query = self._worker, request.query
        if worker.engine.embedding_options.pooling != "rank":
            raise ApiError(400, "This model can't rank: it is not a reranker.")
        documents = [_text(one) for one in request.documents or request.texts or []]
        if not documents:
            raise ApiError(400, "`documents` must not be empty.", param="documents")
        size = len(body) + len(documents) * len(query)
        inputs = await run_with_backoff(
            size,
            lambda: [
                worker.within_batch(ranking_prompt(worker.model, query, text)) for text in documents
            ],
        )
        scores = [vector[0] for vector in await worker.embed(inputs)]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        order = order[: max(request.top_n, 0)] if request.top_n is not None else order
        if request.texts is not None and request.documents is None:
            texts = [{"text": documents[place]} if request.return_text else {} for place in order]
            return json_response(
                [
                    {"index": place, "score": scores[place], **text}
                    for place, text in zip(order, texts, strict=True)
                ]
            )
        with_text = request.return_documents
        count = sum(map(len, inputs))
        results = [
            {
                "index": place,
                "relevance_score": scores[place],
                **({"document": {"text": documents[place]}} if with_text else {}),
            }
            for place in order
        ]
        return json_response(
            {
                "model": request.model or worker.settings.name,
                "object": "list",
                "usage": {"prompt_tokens": count, "total_tokens": count},
                "results": results,
            }
        )


def _text(document: str | dict[str, Any]) -> str:
    text = document.get("text") if isinstance(document, dict) else document
    if not isinstance(text, str):
        raise ApiError(400, "A document must be text, or have a `text`.", param="documents")
    return text
