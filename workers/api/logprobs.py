"""Log-probabilities of an answer's tokens and their likeliest alternatives."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from workers.llama.model import Model

Alternatives = list[tuple[int, float]]
"""Tokens and the natural logarithms of their probabilities, the likeliest first."""


@dataclass(frozen=True)
class TokenLogprobs:
    """A token with its log-probability and alternatives."""

    token: int
    spelled: bytes
    logprob: float | None
    """Natural logarithm of its probability; None for the first token of a text."""
    top: list[tuple[int, bytes, float]]
    """The likeliest tokens at its position; it need not be among them."""
    offset: int
    """Characters before the token."""


class TokenLog:
    """The tokens of one answer, released with their text.

    Tokens that a stop string removes are never released.
    """

    def __init__(self, model: Model, drawn: deque[tuple[int, float, Alternatives]]) -> None:
        """Read from `drawn`, which the engine's thread fills in the order of the tokens."""
        self._model = model
        self._drawn = drawn
        self._waiting: deque[TokenLogprobs] = deque()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        """Characters of all tokens so far."""
        self._delivered = 0

    def take(self, text: str) -> list[TokenLogprobs]:
        """Return the tokens of `text`, which has just been delivered."""
        self._delivered += len(text)
        while self._drawn:
            token, logprob, top = self._drawn.popleft()
            if self._model.piece(token) is not None:
                self._waiting.append(self._describe(token, logprob, top))
        ready = []
        while self._waiting and self._waiting[0].offset < self._delivered:
            ready.append(self._waiting.popleft())
        return ready

    def _describe(self, token: int, logprob: float, top: Alternatives) -> TokenLogprobs:
        spelled = self._model.spelled(token)
        piece = self._model.piece(token) or ""
        described = TokenLogprobs(token, spelled, logprob, spell(self._model, top), self._length)
        data = piece.encode() if isinstance(piece, str) else piece
        self._length += len(self._decoder.decode(data))
        return described


def spell(model: Model, top: Sequence[tuple[int, float]]) -> list[tuple[int, bytes, float]]:
    """Return the alternatives with the bytes of each token."""
    return [(token, model.spelled(token), logprob) for token, logprob in top]


def text_of(spelled: bytes) -> str:
    """Return a token's text; for a part of a character, its bytes in OpenAI's notation."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, object]:
    """Return `logprobs` of a chat completion's choice."""
    content = [
        {
            **_chat_token(one.spelled, one.logprob or 0.0),
            "top_logprobs": [_chat_token(spelled, logprob) for _, spelled, logprob in one.top],
        }
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(spelled: bytes, logprob: float) -> dict[str, object]:
    text = spelled.decode("utf-8", "replace")
    return {"token": text, "logprob": logprob, "bytes": list(spelled)}


def text_logprobs(tokens: Sequence[TokenLogprobs], start: int = 0) -> dict[str, object]:
    """Return `logprobs` of a text completion's choice; the first token is at character `start`."""
    return {
        "tokens": [text_of(one.spelled) for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [
            None
            if one.logprob is None
            else {text_of(spelled): logprob for _, spelled, logprob in one.top}
            for one in tokens
        ],
        "text_offset": [one.offset + start for one in tokens],
    }


def llama_probabilities(tokens: Sequence[TokenLogprobs]) -> list[dict[str, object]]:
    """Return `completion_probabilities` of llama-server's /completion."""
    return [
        {
            **_llama_token(one.token, one.spelled, one.logprob or 0.0),
            "top_logprobs": [_llama_token(*alternative) for alternative in one.top],
        }
        for one in tokens
    ]


def _llama_token(token: int, spelled: bytes, logprob: float) -> dict[str, object]:
    return {"id": token, **_chat_token(spelled, logprob)}
