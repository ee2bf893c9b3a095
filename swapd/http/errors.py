"""Errors in the shape that OpenAI's clients expect, one clear sentence each."""

from __future__ import annotations

import math

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from swapd.domain.commands import HTTP_STATUS, Reject, RejectReason
from swapd.domain.model_names import ModelNotFoundError
from swapd.domain.settings import BodyTimeoutError
from swapd.http.api_keys import PermissionDeniedError
from swapd.http.content_encoding import KNOWN, ContentEncodingError, UnsupportedEncodingError

EMPTY = "The body is empty; a JSON object is expected."


class BadRequestError(Exception):
    """A request can't be understood: one sentence, and the field that it speaks of."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`, encoded."""
    # What came in a request's head need not be UTF-8.
    message = message.encode(errors="backslashreplace").decode()
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def error_response(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    retry_after: float = 0.0,
) -> web.Response:
    """An error as a whole response; `retry_after` in seconds, 0 for none."""
    headers = {"Retry-After": str(math.ceil(retry_after))} if retry_after > 0 else None
    return web.Response(
        status=status,
        body=error_body(message, kind, code, param),
        content_type="application/json",
        headers=headers,
    )


def rejection_response(refusal: Reject) -> web.Response:
    """What a refused request is answered."""
    status, kind, code = HTTP_STATUS[refusal.reason]
    param = "model" if refusal.reason is RejectReason.UNKNOWN_MODEL else None
    return error_response(status, refusal.message, kind, code, param, refusal.retry_after)


def too_large(limit: int) -> web.Response:
    """A body over the limit."""
    message = f"the body is larger than the limit of {limit:,} bytes"
    return error_response(413, message, code="too_large")


def error_event(error: web.Response) -> bytes:
    """The event that ends a stream of server-sent events which broke off."""
    assert isinstance(error.body, bytes)
    return b"data: " + error.body + b"\n\n"


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gives what is refused on the way, aiohttp's own refusals too, the same shape."""
    try:
        return await handler(request)
    except (
        BadRequestError,
        ModelNotFoundError,
        PermissionDeniedError,
        BodyTimeoutError,
        ContentEncodingError,
        UnsupportedEncodingError,
        web.RequestPayloadError,
        web.HTTPClientError,
        web.HTTPServerError,
    ) as error:
        return _told(request, error)


def _told(request: web.Request, error: Exception) -> web.Response:
    match error:
        case BadRequestError():
            told = error_response(400, str(error), param=error.param)
        case ModelNotFoundError():
            told = error_response(404, str(error), code="model_not_found", param="model")
        case PermissionDeniedError():
            told = error_response(403, str(error), "permission_error", "scope")
        case BodyTimeoutError():
            told = error_response(408, str(error), code="timeout")
            told.force_close()
        case ContentEncodingError():
            told = error_response(400, str(error))
        case UnsupportedEncodingError():
            told = error_response(415, str(error))
            told.headers["Accept-Encoding"] = KNOWN
        case web.HTTPRequestEntityTooLarge():
            told = too_large(request.app[BODY_LIMIT])
        case web.HTTPNotFound():
            message = f"there is nothing at {request.method} {request.path}"
            told = error_response(404, message, code="not_found")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            told = error_response(405, f"{request.path} takes {allowed}, not {request.method}")
            told.headers["Allow"] = allowed
        case web.HTTPException():
            told = error_response(error.status, error.reason.lower())
        case _:
            told = error_response(400, "the body is not as its headers say")
    return told


BODY_LIMIT: web.AppKey[int] = web.AppKey("body_limit", int)
