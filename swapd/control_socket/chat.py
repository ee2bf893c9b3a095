"""A chat over the socket: a stream of the worker's, told token by token."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import aiohttp
import msgspec

from swapd.control_socket.protocol import Fields, Line, OperationError, Say, SocketRequest
from swapd.domain.models import ModelSpec
from swapd.http.context import AppContext
from swapd.leases import RequestOptions
from swapd.process.liveness import Liveness
from swapd.proxy.forward import (
    CLOSED_WITHIN,
    FAILURES,
    ExitReason,
    WorkerFailedError,
    told,
)
from swapd.proxy.retry import ProxyRequest, forward_with_retry
from swapd.proxy.sse import EventIds
from swapd.system.aio import now
from workers.protocol import RESUMABLE_HEADER, RESUME_PREFIX

EVENT_BYTES = 2**22
"""Longest event that a worker may send."""
JSON = MappingProxyType({"Content-Type": "application/json"})
PATH = "/v1/chat/completions"


async def chat(
    house: AppContext, spec: ModelSpec, request: SocketRequest, fields: Fields, say: Say
) -> Line:
    """Have a worker answer; `say` tells its tokens, and the last line is returned.

    Raises TroubleError, RefusedError, and whatever `say` raises.
    """
    body = msgspec.json.encode(_body(request, fields, spec))
    talk = _Talk(house.session, request, body, say)
    try:
        await forward_with_retry(
            house.forwarding, ProxyRequest(spec, PATH, body, RequestOptions(), asks_ids=True), talk
        )
    except WorkerFailedError as error:
        raise OperationError("worker_failed", str(error)) from error
    if talk.refused:
        raise OperationError("worker_refused", talk.refused)
    return talk.last


def _body(request: SocketRequest, fields: Fields, spec: ModelSpec) -> dict[str, object]:
    """The request as the worker wants it: the client's own fields, streamed, with a count."""
    ours = {"id", "op", "prompt", *spec.serving.drop_params}
    body: dict[str, object] = {k: v for k, v in fields.items() if k not in ours}
    if (request.prompt is None) == ("messages" not in body):
        raise OperationError("bad_request", "a chat has either 'messages' or a 'prompt'")
    if request.prompt is not None:
        body["messages"] = [{"role": "user", "content": request.prompt}]
    body["model"] = spec.serving.upstream_name or request.model
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


class _Talk:
    """The request on its way, and what has been told of its answer (see `tries.Passage`)."""

    def __init__(
        self, session: aiohttp.ClientSession, request: SocketRequest, body: bytes, say: Say
    ) -> None:
        self.last: Line = {"finish_reason": None}
        """What the last line says of the whole."""
        self.refused = ""
        """Why the worker does not answer, if it does not."""
        self._session = session
        self._request = request
        self._body = body
        self._say = say
        self._ids: EventIds | None = None
        self._has_told = False

    @property
    def goes_on(self) -> bool:
        return not self._has_told or (self._ids is not None and self._ids.can_resume)

    @property
    def has_begun(self) -> bool:
        return self._ids is not None and bool(self._ids.ids)

    async def through(
        self, base_url: str, pulse: Liveness, resumable: bool, fate: ExitReason
    ) -> int:
        path, body, headers = PATH, self._body, dict(JSON)
        if resumable:
            headers[RESUMABLE_HEADER] = "1"
        if self._ids is not None and self._ids.ids:
            path, body = f"{RESUME_PREFIX}{PATH}", self._ids.resumption(body)
        else:
            self._ids = EventIds() if resumable else None
        try:
            async with self._session.post(base_url + path, data=body, headers=headers) as answer:
                if answer.status == 200:
                    await self._hear(answer, pulse, fate)
                else:
                    self.refused = _message(await answer.read())
        except FAILURES as error:
            raise WorkerFailedError(told(error)) from error
        return int((self.last.get("usage") or {}).get("total_tokens") or 0)

    async def _hear(
        self, answer: aiohttp.ClientResponse, pulse: Liveness, fate: ExitReason
    ) -> None:
        """Tell tokens as they come, to the end of the stream."""
        rest = b""
        async for chunk in answer.content.iter_any():
            pulse.flowed = now()
            passed = chunk if self._ids is None else self._ids.take(chunk)
            *lines, rest = (rest + passed).split(b"\n")
            for line in lines:
                event = line[5:].strip() if line.startswith(b"data:") else b""
                if event == b"[DONE]":
                    return
                if event:
                    pulse.held += 1
                    try:
                        await self._tell(event)
                    finally:
                        pulse.held -= 1
            if len(rest) > EVENT_BYTES:
                raise OperationError("worker_failed", "the worker sent an event without an end")
        if reason := await fate(CLOSED_WITHIN):
            raise WorkerFailedError(reason)
        raise OperationError("worker_failed", "the worker's answer broke off")

    async def _tell(self, event: bytes) -> None:
        """What the client hears of an event."""
        try:
            chunk = msgspec.json.decode(event, type=dict[str, Any])
        except msgspec.DecodeError as error:
            message = f"the worker sent an event that is no JSON object: {error}"
            raise OperationError("worker_failed", message) from error
        if "error" in chunk:
            raise OperationError("worker_failed", _message(event))
        self.last.update({key: chunk[key] for key in ("usage", "timings") if chunk.get(key)})
        for choice in chunk.get("choices", ()):
            self.last["finish_reason"] = choice.get("finish_reason") or self.last["finish_reason"]
            if line := _line(choice):
                self._has_told = True
                await self._say({"id": self._request.id, **line})


def _line(choice: dict[str, Any]) -> Line:
    """What one choice of a chunk has to say; nothing when it only opens or closes."""
    delta = choice.get("delta") or {}
    line: Line = {}
    if delta.get("content"):
        line["token"] = delta["content"]
    if more := {k: v for k, v in delta.items() if k not in ("role", "content") and v}:
        line["delta"] = more
    if line and choice.get("index"):
        line["index"] = choice["index"]
    return line


def _message(body: bytes) -> str:
    """The sentence in an error of OpenAI's shape, or what there is instead."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip() or "the worker refused the request"
