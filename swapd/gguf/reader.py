"""Reader of GGUF headers, and the file names of split models.

The format is described in ggml's docs/gguf.md; versions 2 and 3, little-endian, are supported.
gguf's reader is not used here because it creates Python objects for every token of the vocabulary:
6 seconds and half a gigabyte for a model with 150,000 tokens and as many merges, where this one
takes a tenth of a second. The sizes of the tensor types come from gguf, which is imported in the
function that uses them: with the metadata cached, they are not needed, and importing gguf takes a
sixth of a second.

Models in several files have names as llama.cpp's gguf-split creates them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, TypeAlias

_SCALARS = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
_STRING, _ARRAY = 8, 9
_MAX_ARRAY = 4096
"""Length up to which arrays are stored; longer ones are counted only. Per-layer figures are shorter
than this, vocabularies longer."""
_MAX_DIMENSIONS = 8
"""Dimensions of a tensor; twice as many as ggml supports."""
_MAX_FIELDS = 100_000
"""More fields or tensors than any model has; a file that claims more is damaged."""

Value: TypeAlias = "int | float | bool | str | tuple[int | float | bool, ...] | ArrayField"


class DamagedModelError(Exception):
    """The file is not a usable GGUF file; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class ArrayField:
    """Array of which only the length was read."""

    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata fields of a GGUF file and a summary of its tensors."""

    fields: Mapping[str, Value]
    tensors: int
    """Number of tensors."""
    elements: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """Count of numbers in the tensors, by tensor type."""

    def number(self, key: str, default: int = 0) -> int:
        """Return an integer field; of a per-layer array, the largest element."""
        value = self.fields.get(key)
        if isinstance(value, tuple):
            value = max(value, default=default)
        return int(value) if isinstance(value, int) and value >= 0 else default

    def text(self, key: str) -> str:
        """Return a text field; empty if it is missing."""
        value = self.fields.get(key)
        return value if isinstance(value, str) else ""

    @property
    def architecture(self) -> str:
        """Name of the architecture, such as `llama`; the prefix of the model's fields."""
        return self.text("general.architecture")


def read_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file and check that the file contains all of its tensors.

    Raise DamagedModelError if the file is incomplete, OSError if it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb", buffering=2**20) as file:
        cursor = _Cursor(file, size)
        if cursor.take(4) != b"GGUF":
            raise DamagedModelError("is not a GGUF file")
        version = cursor.number("I")
        if version in {2 << 24, 3 << 24}:
            raise DamagedModelError("is big-endian, for machines of another kind")
        if version not in {2, 3}:
            raise DamagedModelError(f"has GGUF version {version}; 2 and 3 can be read")
        tensors, count = cursor.count(), cursor.count()
        fields: dict[str, Value] = {}
        for _ in range(count):
            key = cursor.string()
            fields[key] = cursor.value(cursor.number("I"))
        header = GgufHeader(MappingProxyType(fields), tensors)
        end, elements = _tensors(cursor, tensors)
        align = header.number("general.alignment", 32) or 32
        whole = cursor.position + -cursor.position % align + end
        if tensors and whole > size:
            raise DamagedModelError(f"is cut short: {size} of {whole} bytes are there")
        return replace(header, elements=MappingProxyType(elements))


def read_model_header(path: Path) -> GgufHeader:
    """Read the fields that describe the model's shape, without the tensors.

    These fields mostly precede the tokenizer's long arrays; reading them then takes a millisecond.
    Raise the same errors as `read_header`, but do not detect damage in the rest of the file.
    """
    with path.open("rb") as file:
        cursor = _Cursor(file, path.stat().st_size)
        if cursor.take(4) != b"GGUF":
            raise DamagedModelError("is not a GGUF file")
        cursor.number("I")
        tensors, count = cursor.count(), cursor.count()
        fields: dict[str, Value] = {}
        header = GgufHeader(fields, tensors)
        for _ in range(count):
            key, kind = cursor.string(), cursor.number("I")
            shape_known = f"{header.architecture}.attention.head_count" in fields
            if shape_known and key == "tokenizer.ggml.tokens" and kind == _ARRAY:
                cursor.number("I")
                fields[key] = ArrayField(cursor.number("Q"))
                break
            fields[key] = cursor.value(kind)
        return GgufHeader(MappingProxyType(fields), tensors)


def _tensors(cursor: _Cursor, tensors: int) -> tuple[int, dict[int, int]]:
    """Return the end of the tensor data, relative to its start, and the numbers by type."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    end, by_kind = 0, dict[int, int]()
    for _ in range(tensors):
        cursor.string()
        elements = 1
        dimensions = cursor.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise DamagedModelError(f"is damaged: it has a tensor of {dimensions} dimensions")
        for _ in range(dimensions):
            elements *= cursor.number("Q")
        kind, offset = cursor.number("I"), cursor.number("Q")
        by_kind[kind] = by_kind.get(kind, 0) + elements
        if kind in sizes:
            block, width = sizes[kind]
            end = max(end, offset + elements // block * width)
        else:
            # The type is newer than the installed gguf; its data has at least this offset.
            end = max(end, offset)
    return end, by_kind


class _Cursor:
    """Sequential reader of values; a value beyond the end of the file raises DamagedModelError."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.position = 0

    def take(self, length: int) -> bytes:
        self._advance(length)
        data = self._file.read(length)
        if len(data) != length:
            raise DamagedModelError("shrank while it was read")
        return data

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def count(self) -> int:
        count = self.number("Q")
        if count > _MAX_FIELDS:
            raise DamagedModelError(f"is damaged: it claims to have {count} fields or tensors")
        return count

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> Value:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.number("I"), self.number("Q"))
        if kind not in _SCALARS:
            raise DamagedModelError(f"is damaged: there is no field type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, kind: int, length: int) -> Value:
        if kind == _STRING:
            for _ in range(length):
                self._skip(self.number("Q"))
            return ArrayField(length)
        if kind not in _SCALARS:
            raise DamagedModelError(f"is damaged: there are no lists of field type {kind}")
        code = _SCALARS[kind]
        width = struct.calcsize("<" + code)
        if length > _MAX_ARRAY:
            self._skip(length * width)
            return ArrayField(length)
        return struct.unpack(f"<{length}{code}", self.take(length * width))

    def _skip(self, length: int) -> None:
        self._advance(length)
        self._file.seek(length, 1)

    def _advance(self, length: int) -> None:
        self.position += length
        if self.position > self._size:
            raise DamagedModelError(f"is cut short: its header continues after {self._size} bytes")


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class SplitPart:
    """Position of a file among the parts of a split model, counted from 1."""

    base: str
    number: int
    count: int


def split_part(path: str) -> SplitPart | None:
    """Return the part that a file name denotes, or None for a model in one file."""
    match = _PART.fullmatch(path)
    return SplitPart(match[1], int(match[2]), int(match[3])) if match is not None else None


def split_parts(path: str) -> tuple[str, ...]:
    """Return all files of the model that `path` belongs to, in order."""
    match = _PART.fullmatch(path)
    if match is None:
        return (path,)
    base, _, count, suffix = match.groups()
    return tuple(f"{base}-{i:05}-of-{count}{suffix}" for i in range(1, int(count) + 1))
