"""Summary of a GGUF file's header: enough to list the model, to name it and to estimate its need.

A header can hold a vocabulary of a quarter of a million tokens; a summary is a dozen short values.
The cache reads each header once and stores its summary by path, size and modification time.
"""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import MappingProxyType

import msgspec

from swapd.gguf.memory_estimate import NO_FACTORS, MemoryFactors, memory_factors
from swapd.gguf.reader import DamagedModelError, GgufHeader, read_header
from swapd.system.state_files import read_state, write_state

_POOLING = MappingProxyType({0: "none", 1: "mean", 2: "cls", 3: "last", 4: "rank"})
"""llama.cpp's pooling types, by the number in `ARCH.pooling_type`."""
_MAX_TEXT = 200
"""Characters of a text from the header that are stored."""
_MAX_FIGURE = 2**50
"""Limit of each number and byte count; far above any model."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Description of a model from one file's header. 0 and empty text: not given."""

    kind: str = ""
    """`general.type`: model, adapter, mmproj, imatrix …"""
    architecture: str = ""
    title: str = ""
    """`general.name`, as the file's author wrote it."""
    parameters: int = 0
    """Numbers in the tensors of this file."""
    tensors: int = 0
    """Number of tensors in this file."""
    quantisation: str = ""
    """Name such as `Q4_K_M`; from `general.file_type`, else the type of most numbers."""
    context: int = 0
    """Context in tokens that the model was trained for."""
    vocabulary: int = 0
    """Tokens in the vocabulary."""
    memory: MemoryFactors = NO_FACTORS
    """Factors of the memory need, without the size of the files."""
    tokenizer: str = ""
    """`tokenizer.ggml.model`."""
    template: bool = False
    """True if the file contains a chat template."""
    pooling: str = ""
    """Pooling of an embedding model: none, mean, cls, last or rank."""

    def memory_factors(self, size: int) -> MemoryFactors:
        """Return the memory factors of the model with `size` bytes of files."""
        return replace(self.memory, size=size)

    @property
    def is_projector(self) -> bool:
        """True if the file is a projector (images or audio to tokens) and not a model."""
        return self.kind == "mmproj" or self.architecture == "clip"


def read_model_info(header: GgufHeader) -> ModelInfo:
    """Return the summary of a header. Raise DamagedModelError if its figures are impossible."""
    factors = memory_factors(header, 0)
    parameters = sum(header.elements.values())
    if max(parameters, *astuple(factors)) > _MAX_FIGURE:
        raise DamagedModelError("is damaged: its metadata claims more than any machine could hold")
    pooling = header.fields.get(f"{header.architecture}.pooling_type")
    return ModelInfo(
        kind=_printable(header.text("general.type")),
        architecture=_printable(header.architecture),
        title=_printable(header.text("general.name")),
        parameters=parameters,
        tensors=header.tensors,
        quantisation=_quantisation(header),
        context=factors.trained_context,
        vocabulary=factors.vocabulary,
        memory=factors,
        tokenizer=_printable(header.text("tokenizer.ggml.model")),
        template="tokenizer.chat_template" in header.fields,
        pooling=_POOLING.get(pooling, "") if isinstance(pooling, int) else "",
    )


def _printable(text: str) -> str:
    """Return the text with unprintable characters replaced, shortened to the maximum length."""
    text = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
    return "".join(c if c.isprintable() else "�" for c in text)


def _quantisation(header: GgufHeader) -> str:
    from gguf.constants import GGMLQuantizationType, LlamaFileType

    file_type = header.fields.get("general.file_type")
    names: dict[int, str] = {kind.value: kind.name for kind in LlamaFileType}
    if isinstance(file_type, int) and file_type in names and file_type != LlamaFileType.GUESSED:
        return names[file_type].removeprefix("MOSTLY_").removeprefix("ALL_")
    types: dict[int, str] = {kind.value: kind.name for kind in GGMLQuantizationType}
    most = max(header.elements.items(), key=lambda item: item[1], default=(-1, 0))[0]
    return types.get(most, "")


FILE = "model-info.json"
_VERSION = 4
"""Format version; to be raised when `ModelInfo` changes or headers are read differently."""


class _CachedFile(msgspec.Struct, frozen=True):
    size: int
    """Bytes of the file."""
    changed: int
    """Modification time in nanoseconds since the epoch."""
    model_info: ModelInfo | None
    damage: str = ""
    """Reason why the file cannot be read; empty if it can."""


class _File(msgspec.Struct):
    version: int
    files: dict[str, _CachedFile]


class ModelInfoCache:
    """Persistent cache of model info by file."""

    def __init__(self, path: Path | None = None) -> None:
        """Load the cache from `path`; without a path, nothing is stored between runs."""
        stored = read_state(path, _File) if path is not None else None
        self._path = path
        self._stored = stored.files if stored is not None and stored.version == _VERSION else {}
        self._used: dict[str, _CachedFile] = {}

    def model_info(self, path: Path, status: os.stat_result) -> ModelInfo:
        """Return the model info of a file, given the result of its `stat`.

        Raise DamagedModelError if it is not a complete GGUF file, OSError if it cannot be read.
        """
        key = str(path)
        cached = self._stored.get(key)
        if cached is None or (cached.size, cached.changed) != (status.st_size, status.st_mtime_ns):
            cached = _read_file(path, status)
        self._used[key] = cached
        if cached.model_info is None:
            raise DamagedModelError(cached.damage)
        return cached.model_info

    def save(self) -> bool:
        """Store the model info of the files requested so far; return True if it changed.

        Raise OSError if the cache cannot be written.
        """
        if self._path is None or self._used == self._stored:
            return False
        write_state(self._path, _File(_VERSION, self._used))
        self._stored = dict(self._used)
        return True


def _read_file(path: Path, status: os.stat_result) -> _CachedFile:
    try:
        info = read_model_info(read_header(path))
    except DamagedModelError as error:
        return _CachedFile(status.st_size, status.st_mtime_ns, None, str(error))
    return _CachedFile(status.st_size, status.st_mtime_ns, info)
