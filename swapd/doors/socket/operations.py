"""What can be asked for over the socket. Each takes a request and returns its last line."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import aiohttp
import msgspec

from swapd.doors.house import House
from swapd.doors.naming import NoModelError
from swapd.effects.upstream import FAILURES
from swapd.words.catalog import ModelSpec

EVENT_BYTES = 2**22
"""Longest event that a worker may send."""
JSON = MappingProxyType({"Content-Type": "application/json"})

Fields: TypeAlias = Mapping[str, msgspec.Raw]
Line: TypeAlias = dict[str, Any]
Say: TypeAlias = Callable[[Line], Awaitable[None]]


class Request(msgspec.Struct, frozen=True):
    """What a line says to us; what else is in it is the model's."""

    id: str | int
    op: str = "chat"
    model: str | None = None
    prompt: str | None = None


class TroubleError(Exception):
    """Why a request is not answered: what its error line says."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


async def operate(house: House, request: Request, fields: Fields, say: Say) -> Line:
    """Do what is asked; `say` writes the lines before the last one, which is returned.

    Raises TroubleError, RefusedError, and whatever `say` raises.
    """
    if request.op == "chat":
        return await _chat(house, request, fields, say)
    if request.op in _OPERATIONS:
        return await _OPERATIONS[request.op](house, request)
    known = ", ".join(["chat", *_OPERATIONS, "cancel"])
    raise TroubleError("bad_request", f"there is no op {request.op!r}; there are: {known}")


def _spec(house: House, request: Request) -> ModelSpec:
    if request.model is None:
        raise TroubleError("bad_request", "the request names no 'model'")
    try:
        return house.find(request.model)
    except NoModelError as error:
        raise TroubleError("model_not_found", str(error)) from error


# -- chat ----------------------------------------------------------------------------------------


async def _chat(house: House, request: Request, fields: Fields, say: Say) -> Line:
    spec = _spec(house, request)
    body = msgspec.json.encode(_body(request, fields, spec))
    lease = await house.supervisor.admit(spec.name)
    answered = False
    try:
        url = f"{lease.base_url}/v1/chat/completions"
        async with house.session.post(url, data=body, headers=JSON) as answer:
            if answer.status != 200:
                answered = True
                raise TroubleError("worker_refused", _message(await answer.read()))
            last = await _tokens(answer, request, say)
        answered = True
        return last
    except FAILURES as error:
        told = str(error) or type(error).__name__
        house.logs.own.warning("%s: a request failed: %s", spec.name, told)
        message = f"the worker of {spec.name!r} failed: {told}"
        raise TroubleError("worker_failed", message) from error
    finally:
        house.supervisor.release(lease, answered)


def _body(request: Request, fields: Fields, spec: ModelSpec) -> dict[str, object]:
    """The request as the worker wants it: the client's own fields, streamed, with a count."""
    ours = {"id", "op", "prompt", *spec.drop_params}
    body: dict[str, object] = {k: v for k, v in fields.items() if k not in ours}
    if (request.prompt is None) == ("messages" not in body):
        raise TroubleError("bad_request", "a chat has either 'messages' or a 'prompt'")
    if request.prompt is not None:
        body["messages"] = [{"role": "user", "content": request.prompt}]
    body["model"] = spec.upstream_name or request.model
    return {**body, "stream": True, "stream_options": {"include_usage": True}}


async def _tokens(answer: aiohttp.ClientResponse, request: Request, say: Say) -> Line:
    """Pass tokens on as they come; what the last line says of the whole."""
    last: Line = {"finish_reason": None}
    async for event in _events(answer):
        if event == b"[DONE]":
            return last
        try:
            chunk = msgspec.json.decode(event, type=dict[str, Any])
        except msgspec.DecodeError as error:
            message = f"the worker sent an event that is no JSON object: {error}"
            raise TroubleError("worker_failed", message) from error
        if "error" in chunk:
            raise TroubleError("worker_failed", _message(event))
        last.update({key: chunk[key] for key in ("usage", "timings") if chunk.get(key)})
        for choice in chunk.get("choices", ()):
            last["finish_reason"] = choice.get("finish_reason") or last["finish_reason"]
            if line := _line(choice):
                await say({"id": request.id, **line})
    raise TroubleError("worker_failed", "the worker's answer broke off")


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


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
        if len(rest) > EVENT_BYTES:
            raise TroubleError("worker_failed", "the worker sent an event without an end")


def _message(body: bytes) -> str:
    """The sentence in an error of OpenAI's shape, or what there is instead."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode("utf-8", "replace").strip() or "the worker refused the request"


# -- the rest ------------------------------------------------------------------------------------


async def _list(house: House, _: Request) -> Line:
    states = {s.status.model: s.status.state for s in house.supervisor.sights()}
    models = [{"name": m.name, "state": states.get(m.name, "unloaded")} for m in house.listed()]
    return {"models": models}


async def _status(house: House, _: Request) -> Line:
    workers = [
        {
            "model": sight.status.model,
            "state": sight.status.state,
            "pid": sight.pid,
            "busy": sight.status.busy,
            "slots": sight.status.slots,
            "waiting": house.supervisor.waiting(sight.status.model),
            "bytes": sight.status.bytes,
        }
        for sight in house.supervisor.sights()
    ]
    return {"pid": os.getpid(), "closing": house.supervisor.closing, "workers": workers}


async def _load(house: House, request: Request) -> Line:
    spec = _spec(house, request)
    await house.supervisor.load(spec.name)
    return {"model": spec.name}


async def _unload(house: House, request: Request) -> Line:
    name = None if request.model is None else _spec(house, request).name
    return {"unloaded": await house.supervisor.unload(name)}


_OPERATIONS: Mapping[str, Callable[[House, Request], Awaitable[Line]]] = MappingProxyType(
    {"list": _list, "status": _status, "load": _load, "unload": _unload}
)
