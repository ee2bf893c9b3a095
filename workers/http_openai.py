"""OpenAI's endpoints."""

from __future__ import annotations

import base64
from array import array

from aiohttp import web

from workers.errors import ApiError
from workers.http_json import json_response
from workers.openai_requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    Generation,
    Texts,
    check,
    check_messages,
    decode,
)
from workers.openai_responses import ChatShape, CompletionShape, Shape, error_event
from workers.sequence import Failed
from workers.template import TemplateError
from workers.worker import Worker

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # else nginx collects the tokens
}


class OpenAIRoutes:
    """The handlers of /v1/…"""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def chat(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        request = decode(await http.read(), ChatRequest)
        check(request)
        tokens = await self._worker.tokenize_rendered(render_chat(self._worker, request))
        return await self._answer(http, request, tokens, ChatShape)

    async def complete(self, http: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        request = decode(await http.read(), CompletionRequest)
        check(request)
        prompts = await self._tokens(request.prompt, "prompt")
        if len(prompts) != 1:
            raise ApiError(400, "This worker takes one prompt a request.", param="prompt")
        return await self._answer(http, request, prompts[0], CompletionShape)

    async def embed(self, http: web.Request) -> web.Response:
        """POST /v1/embeddings."""
        request = decode(await http.read(), EmbeddingRequest)
        if request.encoding_format not in (None, "float", "base64"):
            raise ApiError(
                400, "`encoding_format` must be float or base64.", param="encoding_format"
            )
        width = self._worker.model.n_embd
        if request.dimensions not in (None, width):
            raise ApiError(400, f"This model's vectors have {width} numbers.", param="dimensions")
        inputs = await self._tokens(request.input, "input")
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
        """GET /v1/models."""
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

    async def _tokens(self, texts: str | Texts, param: str) -> list[list[int]]:
        """The prompts or inputs that a body names in one of four ways, as tokens."""
        if isinstance(texts, str):
            return [await self._worker.tokenize(texts)]
        inputs: list[list[int]] = []
        alone: list[int] = []
        for item in texts:
            if isinstance(item, str):
                inputs.append(await self._worker.tokenize(item))
            elif isinstance(item, int):
                alone.append(item)
            else:
                inputs.append(item)
        if alone:
            inputs.append(alone)
        limit = self._worker.model.n_vocab
        for tokens in inputs:
            if not all(0 <= token < limit for token in tokens):
                raise ApiError(400, f"`{param}` has a token the model does not.", param=param)
        if not inputs:
            raise ApiError(400, f"`{param}` must not be empty.", param=param)
        return inputs

    async def _answer(
        self, http: web.Request, request: Generation, tokens: list[int], kind: type[Shape]
    ) -> web.StreamResponse:
        """Generates, and answers whole or as a stream. A client that goes ends it."""
        streaming = bool(request.stream)
        tenant = http.headers.get("X-Tenant-Id", "")
        sequence, stream = self._worker.begin(request, tokens, streaming=streaming, tenant=tenant)
        shape = kind(request.model or self._worker.settings.name)
        finished = False
        try:
            parts, end = await stream.next()
            if isinstance(end, Failed):
                finished = True
                raise ApiError(
                    end.status,
                    end.message,
                    "server_error" if end.status >= 500 else "invalid_request_error",
                )
            if not streaming:
                if end is None:
                    raise RuntimeError("what is not streamed comes in one piece")
                finished = True
                return json_response(shape.response("".join(parts), end))
            response = web.StreamResponse(headers=STREAM_HEADERS)
            await response.prepare(http)
            written = shape.opening()
            while True:
                written += b"".join(map(shape.chunk, parts))
                if isinstance(end, Failed):
                    written += error_event(end.message)
                elif end is not None:
                    written += shape.closing(end, with_usage=request.wants_usage)
                finished = end is not None
                await response.write(written)
                if finished:
                    await response.write_eof()
                    return response
                written = b""
                parts, end = await stream.next()
        finally:
            if not finished:
                self._worker.engine.cancel(sequence)


def render_chat(worker: Worker, request: ChatRequest) -> str:
    """The prompt that the model's template makes of the messages. Raises ApiError 400."""
    messages = check_messages(request.messages)
    try:
        return worker.template.render(messages, request.chat_template_kwargs or {})
    except TemplateError as error:
        raise ApiError(400, str(error), param="messages") from error


def _base64(vector: list[float]) -> str:
    """32-bit floats, little-endian, as OpenAI's clients read them."""
    return base64.b64encode(array("f", vector).tobytes()).decode("ascii")
