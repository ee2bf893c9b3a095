"""Response bodies and chunks of llama-server's /completion and /infill."""

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
    """Return sampler settings and the token limit in llama-server's format."""
    settings = asdict(sampling)
    bias = [{"token": token, "bias": value} for token, value in settings["logit_bias"].items()]
    return {**settings, "logit_bias": bias, "n_predict": predict, "max_tokens": predict}


class LlamaResponses:
    """Response bodies and chunks of one request. Its stream has no `[DONE]` event."""

    def __init__(self, model: str, answers: Answers, prompts: list[str], *, tokens: bool) -> None:
        """Take the texts of the prompts, one for each answer.

        `tokens`: token ids are in responses that are not streamed too.
        """
        self._model = model
        self._answers = answers
        self._prompts = prompts
        self._tokens = tokens
        self._reported = [0] * len(prompts)
        """Tokens of each answer that previous chunks held."""

    def response(self, parts: list[AnswerDelta], _timings: Timings) -> object:
        """Return one object, or a list of them for several answers."""
        found = [self._final(part, part.text, streamed=False) for part in parts]
        return found[0] if len(found) == 1 else found

    def opening(self) -> bytes:
        """Return no bytes: a stream has no opening event."""
        return b""

    def update(self, part: AnswerDelta) -> bytes:
        """Return a text chunk, and the final chunk if the answer has ended."""
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
        """Return no bytes: a stream has no closing event."""
        return b""

    def _final(self, part: AnswerDelta, text: str, *, streamed: bool) -> dict[str, Any]:
        sequence, end = self._answers.sequence(part.index), part.end
        if end is None:
            raise RuntimeError("the answer has not ended")
        tokens = self._new_tokens(part) if streamed or self._tokens else []
        stop_word = sequence.output.stop_word
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
            "stop_type": _stop_type(end, stop_word),
            "stopping_word": stop_word,
            "tokens_cached": sequence.length - 1,
            "timings": llama_timings(end.timings),
        }
        return final if streamed else {**final, **_probabilities(part)}

    def _new_tokens(self, part: AnswerDelta) -> list[int]:
        """Return the tokens since the last chunk, without the end-of-generation token."""
        drawn = self._answers.drawn(part.index, self._reported[part.index], part.generated)
        tokens = self._answers.without_end(drawn)
        self._reported[part.index] += len(tokens)
        return tokens


def _probabilities(part: AnswerDelta) -> dict[str, object]:
    return {"completion_probabilities": llama_probabilities(part.logprobs)} if part.logprobs else {}


def _stop_type(end: Finished, stop_word: str) -> str:
    if end.reason == "length":
        return "limit"
    return "word" if stop_word else "eos"


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + _encode(body) + b"\n\n"
