"""JSON over aiohttp, and the one place where errors become answers."""

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
    """A response with `body` as JSON."""
    data = msgspec.json.encode(body)
    return web.Response(body=data, status=status, headers=headers, content_type="application/json")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers every error in OpenAI's shape: one sentence, never a traceback."""
    try:
        return await handler(request)
    except ApiError as raised:
        error = raised
    except web.HTTPRequestEntityTooLarge:
        error = ApiError(413, f"The body has more than {request.client_max_size} bytes.")
    except web.HTTPMethodNotAllowed as wrong:
        allowed = " or ".join(sorted(wrong.allowed_methods))
        error = ApiError(405, f"{request.path} takes {allowed}, not {request.method}.")
    except web.HTTPNotFound:
        error = ApiError(404, f"There is no {request.path} here.", "not_found_error")
    except ConnectionError:
        return web.Response()  # the client has gone: raised, it would be 30 lines in the log
    except Exception:  # noqa: BLE001  the log gets it whole, the client a sentence
        traceback.print_exc(file=sys.stderr)
        error = ApiError(500, "The worker failed at this; its log says how.", "server_error")
    return json_response(error.body, error.status)
