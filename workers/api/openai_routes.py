"""OpenAI's endpoints: /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from array import array

from aiohttp import web

from workers.api.answers import MAX_ANSWERS, Answers
from workers.api.chat_request import open_chat
from workers.api.echo import echoes
from workers.api.json_response import json_response
from workers.api.openai_responses import ChatResponses, CompletionResponses
from workers.api.streaming import read_call, respond
from workers.chat.infill import infill_prompt
from workers.errors import ApiError
from workers.requests.bodies import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Generation,
    decode,
    token_lists,
)
from workers.service import WorkerService, run_with_backoff


class OpenAIRoutes:
    """Handlers of /v1/…"""

    def __init__(self, worker: WorkerService) -> None:
        self._worker = worker

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """Handle POST /v1/chat/completions."""
        call, request = await read_call(http, self._worker, ChatRequest)
        chat = await open_chat(self._worker, request, call.response_identity.created)
        answers = Answers(
            self._worker,
            request,
            [await self._worker.tokenize_rendered(chat.prompt)],
            call,
            grammar=chat.grammar,
            calls=chat,
            alternatives=request.alternatives,
        )
        parsers = [chat.parser() for _ in range(answers.count)]
        name = self._name(request)
        shape = ChatResponses(name, parsers, call.response_identity, with_usage=request.wants_usage)
        return await respond(http, call, answers, shape, streaming=bool(request.stream))

    async def complete(self, http: web.Request) -> web.StreamResponse:
        """Handle POST /v1/completions."""
        call, request = await read_call(http, self._worker, CompletionRequest)
        worker, suffix = self._worker, request.suffix
        texts = prompts = await run_with_backoff(
            len(call.body),
            lambda: token_lists(worker.model, request.prompt, "prompt", MAX_ANSWERS),
        )
        if suffix:
            prompts = await run_with_backoff(
                len(call.body) + len(texts) * len(suffix),
                lambda: [
                    worker.within_context(infill_prompt(worker.model, tokens, suffix))
                    for tokens in texts
                ],
            )
        answers = Answers(
            worker,
            request,
            prompts,
            call,
            grammar=worker.grammars.requested(request) or worker.grammars.default,
            alternatives=request.logprobs,
        )
        echo = None
        if request.echo:
            if answers.adapted and request.logprobs is not None:
                raise ApiError(400, "A prompt can't be scored with an adapter.", param="echo")
            echo = await echoes(worker, texts, request.logprobs, request.n or 1)
        shape = CompletionResponses(
            self._name(request),
            answers.count,
            call.response_identity,
            with_usage=request.wants_usage,
            echo=echo,
        )
        return await respond(http, call, answers, shape, streaming=bool(request.stream))

    def _name(self, request: Generation) -> str:
        return request.model or self._worker.settings.name

    async def embed(self, http: web.Request) -> web.Response:
        """Handle POST /v1/embeddings."""
        body = await http.read()
        request = decode(body, EmbeddingRequest)
        if request.encoding_format not in (None, "float", "base64"):
            raise ApiError(
                400, "`encoding_format` must be float or base64.", param="encoding_format"
            )
        if self._worker.engine.embedding_options.pooling == "rank":
            raise ApiError(400, "This model is a reranker and computes no embeddings.")
        model = self._worker.model
        width = model.n_embd
        if request.dimensions not in (None, width):
            raise ApiError(400, f"This model's vectors have {width} numbers.", param="dimensions")
        inputs = await run_with_backoff(
            len(body), lambda: token_lists(model, request.input, "input")
        )
        vectors = await self._worker.embed(inputs)
        count = sum(map(len, inputs))
        as_text = request.encoding_format == "base64"
        return json_response(
            {
                "object": "list",
                "model": request.model or self._worker.settings.name,
                "data": [
                    {
                        "object": "embedding",
                        "index": index,
                        "embedding": _base64(vector) if as_text else vector,
                    }
                    for index, vector in enumerate(vectors)
                ],
                "usage": {"prompt_tokens": count, "total_tokens": count},
            }
        )

    async def models(self, _http: web.Request) -> web.Response:
        """Handle GET /v1/models."""
        worker, model = self._worker, self._worker.model
        meta = {
            "vocab_type": model.vocab_type,
            "n_vocab": model.n_vocab,
            "n_ctx": worker.engine.longest_sequence,
            "n_ctx_train": model.n_ctx_train,
            "n_embd": model.n_embd,
            "n_params": model.n_params,
            "size": model.size,
        }
        entry = {
            "id": worker.settings.name,
            "object": "model",
            "created": worker.created,
            "owned_by": "llamacpp",
            "meta": meta,
        }
        adapters = [
            {
                **entry,
                "id": f"{entry['id']}:{one.name}",
                "parent": entry["id"],
                "root": str(one.path),
            }
            for one in worker.adapters.all()
        ]
        return json_response({"object": "list", "data": [entry, *adapters]})


def _base64(vector: list[float]) -> str:
    """Encode as little-endian 32-bit floats, as OpenAI's clients decode them."""
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
