"""JSON responses, and the middleware that turns errors into responses."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping

import msgspec
from aiohttp import web

from workers.errors import ApiError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(
    body: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response with `body` as JSON."""
    data = msgspec.json.encode(body)
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in OpenAI's format: one sentence, never a traceback."""
    try:
        return await handler(request)
    except ApiError as raised:
        error = raised
    except web.HTTPRequestEntityTooLarge:
        error = ApiError(413, f"The body has more than {request.client_max_size} bytes.")
    except web.HTTPMethodNotAllowed as raised_405:
        allowed = " or ".join(sorted(raised_405.allowed_methods))
        error = ApiError(405, f"{request.path} takes {allowed}, not {request.method}.")
    except web.HTTPNotFound:
        error = ApiError(404, f"There is no {request.path} here.", "not_found_error")
    except ConnectionError:
        return web.Response()  # the client disconnected; raising would log a traceback of 30 lines
    except Exception:  # noqa: BLE001  the log gets the traceback, the client a sentence
        traceback.print_exc(file=sys.stderr)
        error = ApiError(500, "The request failed in the worker; see its log.", "server_error")
    return json_response(error.body, error.status)
