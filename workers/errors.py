"""Errors of the worker's API, in OpenAI's format."""

from __future__ import annotations

MAX_MESSAGE = 500
"""Characters of a message. It may quote the request, which may be of any length."""


class ApiError(Exception):
    """An error response in OpenAI's format."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        **facts: int,
    ) -> None:
        """Take one sentence as the message; `facts` are further members of the error object."""
        message = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
        super().__init__(message)
        self.status = status
        self.body: dict[str, object] = {
            "error": {"message": message, "type": kind, "param": param, "code": code, **facts}
        }


def exceeds_context(prompt: int, context: int) -> ApiError:
    """Return the error for a prompt that fills the context, with llama-server's type."""
    return ApiError(
        400,
        f"The request has {prompt} tokens and the context holds {context}, answer included.",
        "exceed_context_size_error",
        code="context_length_exceeded",
        n_prompt_tokens=prompt,
        n_ctx=context,
    )


def exceeds_batch(count: int, most: int) -> ApiError:
    """Return the error for an embedding input longer than a batch."""
    return ApiError(
        400,
        f"The input has {count} tokens, and at most {most} are computed at once (--ubatch-size).",
        "exceed_context_size_error",
        code="context_length_exceeded",
        n_prompt_tokens=count,
        n_ctx=most,
    )
