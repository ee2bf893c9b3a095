"""Chats over the control socket: a worker's stream of events, forwarded token by token."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import aiohttp
import msgspec

from swapd.control_socket.protocol import Fields, Line, OperationError, Send, SocketRequest
from swapd.domain.models import ModelSpec
from swapd.http.context import AppContext
from swapd.leases import RequestOptions
from swapd.process.liveness import Liveness
from swapd.proxy.forward import (
    CLOSED_WITHIN,
    FAILURES,
    ExitReason,
    WorkerFailedError,
    failure_message,
)
from swapd.proxy.retry import ProxyRequest, forward_with_retry
from swapd.proxy.sse import EventIds
from swapd.system.aio import now
from workers.protocol import RESUMABLE_HEADER, RESUME_PREFIX

MAX_EVENT_BYTES = 2**22
"""Size of the longest event that a worker may send."""
JSON = MappingProxyType({"Content-Type": "application/json"})
PATH = "/v1/chat/completions"


async def chat(
    context: AppContext, spec: ModelSpec, request: SocketRequest, fields: Fields, send: Send
) -> Line:
    """Forward a chat to a worker, send its tokens, and return the last line.

    Raises OperationError, RejectedError, and the exceptions of `send`.
    """
    body = msgspec.json.encode(_body(request, fields, spec))
    exchange = _ChatExchange(context.session, request, body, send)
    proxy_request = ProxyRequest(spec, PATH, body, RequestOptions(), resumable=True)
    try:
        await forward_with_retry(context.forwarding, proxy_request, exchange)
    except WorkerFailedError as error:
        raise OperationError("worker_failed", str(error)) from error
    if exchange.refused:
        raise OperationError("worker_refused", exchange.refused)
    return exchange.last


def _body(request: SocketRequest, fields: Fields, spec: ModelSpec) -> dict[str, object]:
    """Return the request for the worker: the client's fields, streamed, with token counts."""
    dropped = {"id", "op", "prompt", *spec.serving.drop_params}
    body: dict[str, object] = {k: v for k, v in fields.items() if k not in dropped}
    if (request.prompt is None) == ("messages" not in body):
        raise OperationError("bad_request", "a chat has either 'messages' or a 'prompt'")
    if request.prompt is not None:
        body["messages"] = [{"role": "user", "content": request.prompt}]
    body["model"] = spec.serving.upstream_name or request.model
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


class _ChatExchange:
    """A chat that is forwarded, and the part of its response that the client has.

    Implements `swapd.proxy.retry.RetryableExchange`.
    """

    def __init__(
        self, session: aiohttp.ClientSession, request: SocketRequest, body: bytes, send: Send
    ) -> None:
        self.last: Line = {"finish_reason": None}
        """Content of the last line: totals of the response."""
        self.refused = ""
        """Error message of the worker; empty unless it refused the request."""
        self._session = session
        self._request = request
        self._body = body
        self._send = send
        self._ids: EventIds | None = None
        self._has_sent = False

    @property
    def is_retryable(self) -> bool:
        return not self._has_sent or (self._ids is not None and self._ids.can_resume)

    @property
    def has_started(self) -> bool:
        return self._ids is not None and bool(self._ids.ids)

    async def send(
        self, base_url: str, liveness: Liveness, resumable: bool, exit_reason: ExitReason
    ) -> int:
        path, body, headers = PATH, self._body, dict(JSON)
        if resumable:
            headers[RESUMABLE_HEADER] = "1"
        if self._ids is not None and self._ids.ids:
            path, body = f"{RESUME_PREFIX}{PATH}", self._ids.resumption(body)
        else:
            self._ids = EventIds() if resumable else None
        try:
            async with self._session.post(base_url + path, data=body, headers=headers) as response:
                if response.status == 200:
                    await self._forward_stream(response, liveness, exit_reason)
                else:
                    self.refused = _message(await response.read())
        except FAILURES as error:
            raise WorkerFailedError(failure_message(error)) from error
        return int((self.last.get("usage") or {}).get("total_tokens") or 0)

    async def _forward_stream(
        self, response: aiohttp.ClientResponse, liveness: Liveness, exit_reason: ExitReason
    ) -> None:
        """Send the tokens of a stream as they arrive, up to its end."""
        rest = b""
        async for chunk in response.content.iter_any():
            liveness.last_activity = now()
            events = chunk if self._ids is None else self._ids.take(chunk)
            *lines, rest = (rest + events).split(b"\n")
            for line in lines:
                data = line[5:].strip() if line.startswith(b"data:") else b""
                if data == b"[DONE]":
                    return
                if data:
                    # While the client does not read, the worker counts as alive.
                    liveness.held += 1
                    try:
                        await self._forward_event(data)
                    finally:
                        liveness.held -= 1
            if len(rest) > MAX_EVENT_BYTES:
                raise OperationError("worker_failed", "the worker sent an event without an end")
        # The stream ended without its last event: because the worker exited, or by an error of it.
        if reason := await exit_reason(CLOSED_WITHIN):
            raise WorkerFailedError(reason)
        raise OperationError("worker_failed", "the worker's response broke off")

    async def _forward_event(self, data: bytes) -> None:
        """Send the lines of one event, and collect totals for the last line."""
        try:
            chunk = msgspec.json.decode(data, type=dict[str, Any])
        except msgspec.DecodeError as error:
            message = f"the worker sent an event that is not a JSON object: {error}"
            raise OperationError("worker_failed", message) from error
        if "error" in chunk:
            raise OperationError("worker_failed", _message(data))
        self.last.update({key: chunk[key] for key in ("usage", "timings") if chunk.get(key)})
        for choice in chunk.get("choices", ()):
            self.last["finish_reason"] = choice.get("finish_reason") or self.last["finish_reason"]
            if line := _line(choice):
                self._has_sent = True
                await self._send({"id": self._request.id, **line})


def _line(choice: dict[str, Any]) -> Line:
    """Return the line for one choice of a chunk; empty if the choice holds no part of the text."""
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
    """Return the message of an error in OpenAI's format, else the text of the body."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip() or "the worker refused the request"
