"""Error responses in OpenAI's format, and the middleware that turns exceptions into them."""

from __future__ import annotations

import math

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from swapd.domain.commands import HTTP_STATUS, Reject, RejectReason
from swapd.domain.model_names import ModelNotFoundError
from swapd.domain.settings import BodyTimeoutError
from swapd.http.api_keys import PermissionDeniedError
from swapd.http.content_encoding import SUPPORTED, ContentEncodingError, UnsupportedEncodingError

EMPTY_BODY = "The body is empty; a JSON object is expected."


class BadRequestError(Exception):
    """A malformed request: a message for the client, and the field that it concerns."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


def error_body(message: str, kind: str, code: str | None = None, param: str | None = None) -> bytes:
    """Return `{"error": {"message", "type", "param", "code"}}`, encoded."""
    # Text from a request's head need not be valid UTF-8.
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
    """Return an error as a complete response; `retry_after` is in seconds, 0 for none."""
    headers = {"Retry-After": str(math.ceil(retry_after))} if retry_after > 0 else None
    return web.Response(
        status=status,
        body=error_body(message, kind, code, param),
        content_type="application/json",
        headers=headers,
    )


def rejection_response(rejection: Reject) -> web.Response:
    """Return the response to a request that the scheduler rejected."""
    status, kind, code = HTTP_STATUS[rejection.reason]
    param = "model" if rejection.reason is RejectReason.UNKNOWN_MODEL else None
    return error_response(status, rejection.message, kind, code, param, rejection.retry_after)


def too_large(limit: int) -> web.Response:
    """Return the response to a body over the limit."""
    message = f"the body is larger than the limit of {limit:,} bytes"
    return error_response(413, message, code="too_large")


def error_event(error: web.Response) -> bytes:
    """Return the server-sent event that ends an interrupted stream with this error."""
    assert isinstance(error.body, bytes)
    return b"data: " + error.body + b"\n\n"


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Convert the exceptions of handlers and of aiohttp into error responses."""
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
        return _response_to(request, error)


def _response_to(request: web.Request, error: Exception) -> web.Response:
    match error:
        case BadRequestError():
            response = error_response(400, str(error), param=error.param)
        case ModelNotFoundError():
            response = error_response(404, str(error), code="model_not_found", param="model")
        case PermissionDeniedError():
            response = error_response(403, str(error), "permission_error", "scope")
        case BodyTimeoutError():
            response = error_response(408, str(error), code="timeout")
            response.force_close()
        case ContentEncodingError():
            response = error_response(400, str(error))
        case UnsupportedEncodingError():
            response = error_response(415, str(error))
            response.headers["Accept-Encoding"] = SUPPORTED
        case web.HTTPRequestEntityTooLarge():
            response = too_large(request.app[BODY_LIMIT])
        case web.HTTPNotFound():
            message = f"there is nothing at {request.method} {request.path}"
            response = error_response(404, message, code="not_found")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} takes {allowed}, not {request.method}"
            response = error_response(405, message)
            response.headers["Allow"] = allowed
        case web.HTTPException():
            response = error_response(error.status, error.reason.lower())
        case _:
            response = error_response(400, "the body does not match its headers")
    return response


BODY_LIMIT: web.AppKey[int] = web.AppKey("body_limit", int)
