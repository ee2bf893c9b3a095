"""What a client is told when its request can't be served."""

from __future__ import annotations

LONGEST = 500
"""Characters of a sentence. What a client sent may be in it, and be of any length."""


class ApiError(Exception):
    """An answer with an error status, shaped as OpenAI's."""

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
        """`message` is one sentence; `facts` are further members of the error object."""
        message = message if len(message) <= LONGEST else message[: LONGEST - 1] + "…"
        super().__init__(message)
        self.status = status
        self.body: dict[str, object] = {
            "error": {"message": message, "type": kind, "param": param, "code": code, **facts}
        }


def exceeds_context(prompt: int, context: int) -> ApiError:
    """The prompt leaves no room for an answer; llama-server's type, with both numbers."""
    return ApiError(
        400,
        f"The request has {prompt} tokens and the context holds {context}, answer included.",
        "exceed_context_size_error",
        code="context_length_exceeded",
        n_prompt_tokens=prompt,
        n_ctx=context,
    )


def too_long_at_once(count: int, most: int) -> ApiError:
    """An input that has to be computed in one piece, and is too long for that."""
    return ApiError(
        400,
        f"The input has {count} tokens, and at most {most} are computed at once (--ubatch-size).",
        "exceed_context_size_error",
        code="context_length_exceeded",
        n_prompt_tokens=count,
        n_ctx=most,
    )
