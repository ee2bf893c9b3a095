"""Infill (fill in the middle): prompts for models that are trained for it.

Special tokens mark the prefix and the suffix, and the model generates the text between them. Files
for context come first. The layout is that of llama-server's /infill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.errors import ApiError
from workers.llama.model import Model, api

REPOSITORY = "myproject\n"
FILE = "filename\n"
SNIPPET = "\n\n--- snippet ---\n\n"
"""llama-server's defaults for missing names."""


@dataclass(frozen=True)
class Markers:
    """A model's infill tokens; -1: the model has no such token."""

    prefix: int
    suffix: int
    middle: int
    repository: int
    file: int

    @classmethod
    def of(cls, model: Model) -> Markers:
        """Return the tokens that the GGUF names or llama.cpp recognizes by their text."""
        return cls(
            prefix=api.llama_vocab_fim_pre(model.vocab),
            suffix=api.llama_vocab_fim_suf(model.vocab),
            middle=api.llama_vocab_fim_mid(model.vocab),
            repository=api.llama_vocab_fim_rep(model.vocab),
            file=api.llama_vocab_fim_sep(model.vocab),
        )

    @property
    def complete(self) -> bool:
        """True if the model supports infill."""
        return min(self.prefix, self.suffix, self.middle) >= 0


def infill_prompt(
    model: Model,
    prefix: Sequence[int],
    suffix: str,
    *,
    middle: Sequence[int] = (),
    files: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """Return the prompt for the text between `prefix` and `suffix`, which starts with `middle`.

    `files` are names and texts. Raises ApiError 400 if the model does not support infill.
    """
    markers = Markers.of(model)
    if not markers.complete:
        raise ApiError(400, "This model can't infill: it has no infill tokens.", param="suffix")
    if model.adds_bos and prefix and prefix[0] == model.bos:
        prefix = prefix[1:]

    def tokenize(text: str) -> list[int]:
        return model.tokenize(text, add_special=False, parse_special=False)

    prompt = [model.bos] if model.adds_bos else []
    if markers.repository >= 0:
        prompt += [markers.repository, *tokenize(REPOSITORY)]
    for name, text in files:
        if markers.file >= 0:
            prompt += [markers.file, *tokenize(f"{name}\n{text}")]
        else:
            prompt += tokenize(SNIPPET + text)
    if markers.repository >= 0 and markers.file >= 0:
        prompt += [markers.file, *tokenize(FILE)]
    prompt += [markers.prefix, *prefix, *middle]
    return [*prompt, markers.suffix, *tokenize(suffix), markers.middle]
