"""Filling in the middle: the prompt that a model trained for it expects.

What comes before the gap and what comes after it are marked with tokens of their own, and the
model goes on with what is between; files that belong to it come first. The arrangement is that
of llama-server's /infill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.errors import ApiError
from workers.llama.model import Model, api

REPOSITORY = "myproject\n"
FILE = "filename\n"
SNIPPET = "\n\n--- snippet ---\n\n"
"""What llama-server writes where nobody gave a name."""


@dataclass(frozen=True)
class Markers:
    """A model's tokens for filling in; -1: it has none for this."""

    prefix: int
    suffix: int
    middle: int
    repository: int
    file: int

    @classmethod
    def of(cls, model: Model) -> Markers:
        """Those that the GGUF names, or that llama.cpp knows by their text."""
        return cls(
            prefix=api.llama_vocab_fim_pre(model.vocab),
            suffix=api.llama_vocab_fim_suf(model.vocab),
            middle=api.llama_vocab_fim_mid(model.vocab),
            repository=api.llama_vocab_fim_rep(model.vocab),
            file=api.llama_vocab_fim_sep(model.vocab),
        )

    @property
    def complete(self) -> bool:
        """Whether the model can fill in at all."""
        return min(self.prefix, self.suffix, self.middle) >= 0


def infill_prompt(
    model: Model,
    prefix: Sequence[int],
    suffix: str,
    *,
    begun: Sequence[int] = (),
    files: Sequence[tuple[str, str]] = (),
) -> list[int]:
    """The prompt for what is between `prefix` and `suffix` and begins with `begun`; `files` are
    names and texts. Raises ApiError 400 for a model that was not trained to fill in."""
    markers = Markers.of(model)
    if not markers.complete:
        raise ApiError(400, "This model can't fill in: it has no tokens for it.", param="suffix")
    if model.adds_bos and prefix and prefix[0] == model.bos:
        prefix = prefix[1:]

    def plain(text: str) -> list[int]:
        return model.tokenize(text, add_special=False, parse_special=False)

    prompt = [model.bos] if model.adds_bos else []
    if markers.repository >= 0:
        prompt += [markers.repository, *plain(REPOSITORY)]
    for name, text in files:
        if markers.file >= 0:
            prompt += [markers.file, *plain(f"{name}\n{text}")]
        else:
            prompt += plain(SNIPPET + text)
    if markers.repository >= 0 and markers.file >= 0:
        prompt += [markers.file, *plain(FILE)]
    prompt += [markers.prefix, *prefix, *begun]
    return [*prompt, markers.suffix, *plain(suffix), markers.middle]
