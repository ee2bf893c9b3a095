"""What can be asked for over the socket. Each takes a request and returns its last line."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from swapd.domain.model_names import NoModelError
from swapd.domain.models import ModelSpec
from swapd.doors.socket.chat import chat
from swapd.doors.socket.said import Fields, Line, Request, Say, TroubleError
from swapd.http.context import House


async def operate(house: House, request: Request, fields: Fields, say: Say) -> Line:
    """Do what is asked; `say` writes the lines before the last one, which is returned.

    Raises TroubleError, RefusedError, and whatever `say` raises.
    """
    if request.op == "chat":
        return await chat(house, _spec(house, request), request, fields, say)
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


# -- the rest ------------------------------------------------------------------------------------


async def _list(house: House, _: Request) -> Line:
    states = house.states()
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


async def _reload(house: House, _: Request) -> Line:
    if reason := house.reread():
        raise TroubleError("bad_configuration", f"the configuration is not used: {reason}")
    return {}


_OPERATIONS: Mapping[str, Callable[[House, Request], Awaitable[Line]]] = MappingProxyType(
    {"list": _list, "status": _status, "load": _load, "unload": _unload, "reload": _reload}
)
