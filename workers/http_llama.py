"""llama-server's own endpoints."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from workers.chat import open_chat
from workers.errors import ApiError
from workers.http_json import json_response
from workers.llama_responses import parameters
from workers.openai_requests import ChatRequest, decode
from workers.sequence import Sequence
from workers.worker import Worker, in_thread, unhurried


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
    """The handlers of /props, /slots, /tokenize and their like."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def props(self, _http: web.Request) -> web.Response:
        """GET /props."""
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
        """GET /slots: a moment's view of each."""
        engine = self._worker.engine
        return json_response(
            [
                _slot(number, engine.longest_sequence, sequence)
                for number, sequence in enumerate(engine.slots)
            ]
        )

    async def tokenize(self, http: web.Request) -> web.Response:
        """POST /tokenize."""
        request = decode(await http.read(), Tokenize)
        return await unhurried(len(request.content), lambda: self._tokens(request))

    def _tokens(self, request: Tokenize) -> web.Response:
        tokens = self._worker.model.tokenize(
            request.content, add_special=request.add_special, parse_special=request.parse_special
        )
        if not request.with_pieces:
            return json_response({"tokens": tokens})
        pieces = [{"id": token, "piece": self._piece(token)} for token in tokens]
        return json_response({"tokens": pieces})

    async def detokenize(self, http: web.Request) -> web.Response:
        """POST /detokenize."""
        body = await http.read()
        tokens = decode(body, Detokenize).tokens
        return await unhurried(len(body), lambda: self._text(tokens))

    def _text(self, tokens: list[int]) -> web.Response:
        model = self._worker.model
        if not all(0 <= token < model.n_vocab for token in tokens):
            raise ApiError(400, "`tokens` has a token the model does not.", param="tokens")
        return json_response({"content": model.text(tokens)})

    async def apply_template(self, http: web.Request) -> web.Response:
        """POST /apply-template."""
        request = decode(await http.read(), ChatRequest)
        chat = await open_chat(self._worker, request, time.time())
        return json_response({"prompt": chat.prompt})

    async def metrics(self, _http: web.Request) -> web.Response:
        """GET /metrics. The first one imports prometheus_client, beside the loop."""
        from workers.metrics import render

        loop_seconds = time.thread_time()
        text = await in_thread(lambda: render(self._worker.engine, loop_seconds))
        return web.Response(
            body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    def _piece(self, token: int) -> str | list[int]:
        """As llama-server: text, or the bytes where they are no whole characters."""
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
