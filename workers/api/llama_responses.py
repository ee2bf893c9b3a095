"""Responses of llama-server's own /completion and /infill."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from workers.api.answers import AnswerDelta, Answers
from workers.api.logprobs import llama_probabilities
from workers.api.openai_responses import llama_timings
from workers.engine.metrics import Timings
from workers.engine.sequence import Finished
from workers.settings import Sampling

_encode = msgspec.json.encode


def parameters(sampling: Sampling, predict: int) -> dict[str, object]:
    """Sampler settings and the limit, as llama-server shows them."""
    settings = asdict(sampling)
    bias = [{"token": token, "bias": value} for token, value in settings["logit_bias"].items()]
    return {**settings, "logit_bias": bias, "n_predict": predict, "max_tokens": predict}


class LlamaResponses:
    """The responses to one request. A stream of theirs has no end mark."""

    def __init__(self, model: str, answers: Answers, prompts: list[str], *, tokens: bool) -> None:
        """`prompts`: their texts, one for each answer; `tokens`: whether ids are told of an
        answer that is not streamed, as they are of a stream."""
        self._model = model
        self._answers = answers
        self._prompts = prompts
        self._tokens = tokens
        self._told = [0] * len(prompts)

    def response(self, parts: list[AnswerDelta], _timings: Timings) -> object:
        """One object, or a list of them if there are several answers."""
        found = [self._final(part, part.text, streamed=False) for part in parts]
        return found[0] if len(found) == 1 else found

    def opening(self) -> bytes:
        """Nothing."""
        return b""

    def news(self, part: AnswerDelta) -> bytes:
        """Text, and with the end all the facts."""
        written = b""
        if part.text:
            sequence = self._answers.sequence(part.index)
            body: dict[str, object] = {
                "index": part.index,
                "content": part.text,
                "tokens": self._new_tokens(part),
                "stop": False,
                "id_slot": sequence.slot,
                "tokens_predicted": part.generated,
                "tokens_evaluated": sequence.prompt_length,
            }
            written = _event({**body, **_probabilities(part)})
        if part.end is not None:
            written += _event(self._final(part, "", streamed=True))
        return written

    def closing(self, _timings: Timings) -> bytes:
        """Nothing."""
        return b""

    def _final(self, part: AnswerDelta, text: str, *, streamed: bool) -> dict[str, Any]:
        sequence, end = self._answers.sequence(part.index), part.end
        if end is None:
            raise RuntimeError("an answer that was waited for has no end")
        tokens = self._new_tokens(part) if streamed or self._tokens else []
        word = sequence.output.stop_word
        final = {
            "index": part.index,
            "content": text,
            "tokens": tokens,
            "id_slot": sequence.slot,
            "stop": True,
            "model": self._model,
            "tokens_predicted": sequence.generated,
            "tokens_evaluated": sequence.prompt_length,
            "generation_settings": parameters(sequence.sampling, sequence.limit),
            "prompt": self._prompts[part.index],
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": _stop_type(end, word),
            "stopping_word": word,
            "tokens_cached": sequence.length - 1,
            "timings": llama_timings(end.timings),
        }
        return final if streamed else {**final, **_probabilities(part)}

    def _new_tokens(self, part: AnswerDelta) -> list[int]:
        """Those that have not been told yet; not the one that ended the text."""
        drawn = self._answers.drawn(part.index, self._told[part.index], part.generated)
        tokens = self._answers.without_end(drawn)
        self._told[part.index] += len(tokens)
        return tokens


def _probabilities(part: AnswerDelta) -> dict[str, object]:
    return {"completion_probabilities": llama_probabilities(part.told)} if part.told else {}


def _stop_type(end: Finished, word: str) -> str:
    if end.reason == "length":
        return "limit"
    return "word" if word else "eos"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
