"""llama-server's own ways to generate and to rank: /completion, /infill, /rerank."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from workers.answers import MOST_ANSWERS, Answers
from workers.errors import ApiError
from workers.http_json import json_response
from workers.http_stream import read_call, respond
from workers.infill import infill_prompt
from workers.llama_responses import LlamaShape
from workers.openai_requests import Generation, decode
from workers.prompts import token_lists
from workers.ranking import ranking_prompt
from workers.resuming import Call
from workers.worker import Worker, unhurried


class LlamaGeneration(Generation, kw_only=True):
    """What /completion and /infill have in common."""

    n_predict: int | None = None
    n_probs: int | None = None
    return_tokens: bool = False

    @property
    def token_limit(self) -> int | None:
        """-1 is no limit."""
        limit = self.max_tokens if self.n_predict is None else self.n_predict
        return None if limit == -1 else limit


class Completion(LlamaGeneration, kw_only=True):
    """The body of /completion."""

    prompt: Any


class Extra(msgspec.Struct):
    """A file that belongs to what is filled in."""

    text: str
    filename: str = "tmp"


class Infill(LlamaGeneration, kw_only=True):
    """The body of /infill."""

    input_prefix: str
    input_suffix: str
    prompt: str = ""
    input_extra: list[Extra] = msgspec.field(default_factory=list)


class Rerank(msgspec.Struct, kw_only=True):
    """The body of /rerank: as Jina has it, or, with `texts`, as text-embeddings-inference."""

    query: str
    documents: list[str | dict[str, Any]] | None = None
    texts: list[str] | None = None
    top_n: int | None = None
    return_documents: bool = False
    return_text: bool = False
    model: str | None = None


class CompletionRoutes:
    """The handlers."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def complete(self, http: web.Request) -> web.StreamResponse:
        """POST /completion."""
        call, request = await read_call(http, self._worker, Completion)
        model = self._worker.model
        prompts = await unhurried(
            len(call.body), lambda: token_lists(model, request.prompt, "prompt", MOST_ANSWERS)
        )
        return await self._answer(http, call, request, prompts)

    async def infill(self, http: web.Request) -> web.StreamResponse:
        """POST /infill."""
        call, request = await read_call(http, self._worker, Infill)
        prompt = await unhurried(len(call.body), lambda: self._infill_prompt(request))
        return await self._answer(http, call, request, [prompt])

    def _infill_prompt(self, request: Infill) -> list[int]:
        model = self._worker.model
        prefix, begun = [
            model.tokenize(text, add_special=False, parse_special=False)
            for text in (request.input_prefix, request.prompt)
        ]
        files = [(extra.filename, extra.text) for extra in request.input_extra]
        return infill_prompt(model, prefix, request.input_suffix, begun=begun, files=files)

    async def _answer(
        self, http: web.Request, call: Call, request: LlamaGeneration, prompts: list[list[int]]
    ) -> web.StreamResponse:
        worker, streaming = self._worker, bool(request.stream)
        answers = Answers(
            worker,
            request,
            prompts,
            call,
            grammar=worker.grammars.wished(request) or worker.grammars.default,
            tell=request.n_probs or None,
        )
        told = await unhurried(len(call.body), lambda: list(map(worker.model.text, prompts)))
        texts = [text for text in told for _ in range(request.n or 1)]
        name = request.model or worker.settings.name
        shape = LlamaShape(name, answers, texts, tokens=request.return_tokens)
        return await respond(http, call, answers, shape, streaming=streaming)

    async def rerank(self, http: web.Request) -> web.Response:
        """POST /rerank."""
        body = await http.read()
        request = decode(body, Rerank)
        worker, query = self._worker, request.query
        if worker.engine.embedding_options.pooling != "rank":
            raise ApiError(400, "This model can't rank: it was not trained to.")
        documents = [_text(one) for one in request.documents or request.texts or []]
        if not documents:
            raise ApiError(400, "`documents` must not be empty.", param="documents")
        size = len(body) + len(documents) * len(query)
        inputs = await unhurried(
            size,
            lambda: [
                worker.at_once(ranking_prompt(worker.model, query, text)) for text in documents
            ],
        )
        scores = [vector[0] for vector in await worker.embed(inputs)]
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        order = order[: max(request.top_n, 0)] if request.top_n is not None else order
        if request.texts is not None and request.documents is None:
            told = [{"text": documents[place]} if request.return_text else {} for place in order]
            return json_response(
                [
                    {"index": place, "score": scores[place], **more}
                    for place, more in zip(order, told, strict=True)
                ]
            )
        wanted = request.return_documents
        count = sum(map(len, inputs))
        results = [
            {
                "index": place,
                "relevance_score": scores[place],
                **({"document": {"text": documents[place]}} if wanted else {}),
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
