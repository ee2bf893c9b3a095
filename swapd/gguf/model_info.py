"""What is kept of a GGUF file's head: enough to list the model, to name it and to reserve for it.

A head can hold a vocabulary of a quarter of a million words; a card is a dozen short values.

Cards of files, each head read once and kept by path, size and time of change.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import msgspec

from swapd.gguf.memory_estimate import NOTHING, MemoryFactors, memory_factors
from swapd.gguf.reader import DamagedModelError, GgufHeader, read_header
from swapd.system.state_files import read_state, write_state

_POOLING = MappingProxyType({0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"})
"""llama.cpp's pooling types, by the number in `ARCH.pooling_type`."""
_LONGEST = 200
_MOST = 2**50
"""Numbers or bytes of anything; far above any model."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One file's account of itself. 0 and empty text: it does not say."""

    kind: str = ""
    """`general.type`: model, adapter, mmproj, imatrix …"""
    architecture: str = ""
    title: str = ""
    """`general.name`, as its maker wrote it."""
    parameters: int = 0
    """Numbers in the tensors of this file."""
    tensors: int = 0
    quantisation: str = ""
    """Such as `Q4_K_M`; by `general.file_type`, else by the type that most numbers have."""
    context: int = 0
    """Tokens that it was trained for."""
    vocabulary: int = 0
    needs: MemoryFactors = NOTHING
    """What its need depends on, but for the size of its files."""
    tokenizer: str = ""
    template: bool = False
    """Whether it brings a chat template."""
    pooling: str = ""
    """How an embedding model makes one vector of many: none, mean, cls, last or rank."""

    def facts(self, size: int) -> MemoryFactors:
        """What the need of a model of `size` bytes depends on."""
        return replace(self.needs, size=size)

    @property
    def is_projector(self) -> bool:
        """Whether it turns images or sound into a model's tokens, and is no model itself."""
        return self.kind == "mmproj" or self.architecture == "clip"


def read_model_info(head: GgufHeader) -> ModelInfo:
    """Sum a head up. Raises DamagedModelError where it makes no sense."""
    facts = memory_factors(head, 0)
    parameters = sum(head.elements.values())
    if max(parameters, *astuple(facts)) > _MOST:
        raise DamagedModelError("is damaged: no machine could hold what its metadata claims")
    pooling = head.fields.get(f"{head.architecture}.pooling_type")
    return ModelInfo(
        kind=_word(head.text("general.type")),
        architecture=_word(head.architecture),
        title=_word(head.text("general.name")),
        parameters=parameters,
        tensors=head.tensors,
        quantisation=_quantisation(head),
        context=facts.trained_context,
        vocabulary=facts.vocabulary,
        needs=facts,
        tokenizer=_word(head.text("tokenizer.ggml.model")),
        template="tokenizer.chat_template" in head.fields,
        pooling=_POOLING.get(pooling, "") if isinstance(pooling, int) else "",
    )


def _word(text: str) -> str:
    """A text for people, on one line and not too long, whatever the file's maker wrote."""
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return "".join(c if c.isprintable() else "�" for c in text)


def _quantisation(head: GgufHeader) -> str:
    from gguf.constants import GGMLQuantizationType, LlamaFileType

    said = head.fields.get("general.file_type")
    names: dict[int, str] = {kind.value: kind.name for kind in LlamaFileType}
    if isinstance(said, int) and said in names and said != LlamaFileType.GUESSED:
        return names[said].removeprefix("MOSTLY_").removeprefix("ALL_")
    types: dict[int, str] = {kind.value: kind.name for kind in GGMLQuantizationType}
    most = max(head.elements.items(), key=lambda item: item[1], default=(-1, 0))[0]
    return types.get(most, "")


FILE = "cards.json"
_VERSION = 3
"""Another number whenever a card holds other things, or a head is read in another way."""


@dataclass(frozen=True, slots=True)
class _Kept:
    size: int
    changed: int
    """Time of the last change, in nanoseconds since the epoch."""
    card: ModelInfo | None
    damage: str = ""
    """Why the file has no card."""


class _File(msgspec.Struct):
    version: int
    cards: dict[str, _Kept]


class ModelInfoCache:
    """The cards that were read before, and those that are read now."""

    def __init__(self, path: Path | None = None) -> None:
        """Take up what `path` holds; without one, nothing is kept from one run to the next."""
        kept = read_state(path, _File) if path is not None else None
        self._path = path
        self._old = kept.cards if kept is not None and kept.version == _VERSION else {}
        self._now: dict[str, _Kept] = {}

    def card(self, path: Path, status: os.stat_result) -> ModelInfo:
        """The card of a file whose `stat` is given.

        Raises DamagedModelError for a file that is no whole GGUF file, OSError for one that cannot
        be read.
        """
        key = str(path)
        kept = self._old.get(key)
        if kept is None or (kept.size, kept.changed) != (status.st_size, status.st_mtime_ns):
            kept = _look(path, status)
        self._now[key] = kept
        if kept.card is None:
            raise DamagedModelError(kept.damage)
        return kept.card

    def keep(self) -> bool:
        """Keep the cards of the files that were asked for; whether that made a difference.

        Raises OSError when they cannot be kept.
        """
        if self._path is None or self._now == self._old:
            return False
        write_state(self._path, _File(_VERSION, self._now))
        self._old = dict(self._now)
        return True


def _look(path: Path, status: os.stat_result) -> _Kept:
    try:
        card = read_model_info(read_header(path))
    except DamagedModelError as error:
        return _Kept(status.st_size, status.st_mtime_ns, None, str(error))
    return _Kept(status.st_size, status.st_mtime_ns, card)
