"""What is told of an answer's tokens: which they were, and how likely, beside what else."""

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
    """One token of an answer."""

    token: int
    spelled: bytes
    logprob: float | None
    """None: there is none, for the first token of a text."""
    top: list[tuple[int, bytes, float]]
    """The likeliest tokens in its place, whether it is among them or not."""
    offset: int
    """Characters before it."""


class TokenLog:
    """The tokens of one answer, told when their text is: not those that a stop string swallows."""

    def __init__(self, model: Model, told: deque[tuple[int, float, Alternatives]]) -> None:
        """`told` is filled by the engine's thread, in the order of the tokens."""
        self._model = model
        self._told = told
        self._waiting: deque[TokenLogprobs] = deque()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        """Characters of all tokens that came."""
        self._delivered = 0

    def take(self, text: str) -> list[TokenLogprobs]:
        """The tokens of `text`, which has just been delivered."""
        self._delivered += len(text)
        while self._told:
            token, logprob, top = self._told.popleft()
            if self._model.piece(token) is not None:
                self._waiting.append(self._describe(token, logprob, top))
        ready = []
        while self._waiting and self._waiting[0].offset < self._delivered:
            ready.append(self._waiting.popleft())
        return ready

    def _describe(self, token: int, logprob: float, top: Alternatives) -> TokenLogprobs:
        spelled = self._model.spelled(token)
        piece = self._model.piece(token) or ""
        told = TokenLogprobs(token, spelled, logprob, spell(self._model, top), self._length)
        data = piece.encode() if isinstance(piece, str) else piece
        self._length += len(self._decoder.decode(data))
        return told


def spell(model: Model, top: Sequence[tuple[int, float]]) -> list[tuple[int, bytes, float]]:
    """Alternatives with what each stands for."""
    return [(token, model.spelled(token), logprob) for token, logprob in top]


def text_of(spelled: bytes) -> str:
    """A token's text; of parts of a character, what each byte is, as OpenAI writes it."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, object]:
    """`logprobs` of a chat completion's choice."""
    content = [
        {
            **_chat_token(told.spelled, told.logprob or 0.0),
            "top_logprobs": [_chat_token(spelled, logprob) for _, spelled, logprob in told.top],
        }
        for told in tokens
    ]
    return {"content": content, "refusal": None}


def _chat_token(spelled: bytes, logprob: float) -> dict[str, object]:
    text = spelled.decode("utf-8", "replace")
    return {"token": text, "logprob": logprob, "bytes": list(spelled)}


def text_logprobs(tokens: Sequence[TokenLogprobs], start: int = 0) -> dict[str, object]:
    """`logprobs` of a text completion's choice; `start`: characters before the first token."""
    return {
        "tokens": [text_of(told.spelled) for told in tokens],
        "token_logprobs": [told.logprob for told in tokens],
        "top_logprobs": [
            None
            if told.logprob is None
            else {text_of(spelled): logprob for _, spelled, logprob in told.top}
            for told in tokens
        ],
        "text_offset": [told.offset + start for told in tokens],
    }


def llama_probabilities(tokens: Sequence[TokenLogprobs]) -> list[dict[str, object]]:
    """`completion_probabilities` of llama-server's /completion."""
    return [
        {
            **_llama_token(told.token, told.spelled, told.logprob or 0.0),
            "top_logprobs": [_llama_token(*alternative) for alternative in told.top],
        }
        for told in tokens
    ]


def _llama_token(token: int, spelled: bytes, logprob: float) -> dict[str, object]:
    return {"id": token, **_chat_token(spelled, logprob)}
