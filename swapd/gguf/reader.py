"""What a GGUF file says about itself, read from its head.

The format is the one of ggml's docs/gguf.md, versions 2 and 3, little-endian. gguf's own reader is
not used here because it makes Python objects of every token of the vocabulary: 6 seconds and half
a gigabyte for a model with 150,000 tokens and as many merges, where this takes a tenth of a second.
The sizes of the tensor types are gguf's, imported where they are used: with the metadata cached,
nothing needs them, and importing gguf takes a sixth of a second.

Models in several files, named as llama.cpp's gguf-split names them.
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
_KEPT = 4096
"""Longer lists are counted, not kept; per-layer figures are shorter, vocabularies longer."""
_DIMENSIONS = 8
"""Twice as many as ggml has."""
_FIELDS = 100_000
"""More fields or tensors than any model has; a file that claims more is damaged."""

Value: TypeAlias = "int | float | bool | str | tuple[int | float | bool, ...] | ArrayField"


class DamagedModelError(Exception):
    """The file is no GGUF file that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class ArrayField:
    """A list of which only the length was kept."""

    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The fields of a file, and what follows them."""

    fields: Mapping[str, Value]
    tensors: int
    """How many there are."""
    elements: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    """How many numbers the tensors hold, by tensor type."""

    def number(self, key: str, default: int = 0) -> int:
        """A field that is a whole number; of a per-layer list, the largest."""
        value = self.fields.get(key)
        if isinstance(value, tuple):
            value = max(value, default=default)
        return int(value) if isinstance(value, int) and value >= 0 else default

    def text(self, key: str) -> str:
        """A field that is text; empty when it is not there."""
        value = self.fields.get(key)
        return value if isinstance(value, str) else ""

    @property
    def architecture(self) -> str:
        """The prefix of the model's own fields, such as `llama`."""
        return self.text("general.architecture")


def read_header(path: Path) -> GgufHeader:
    """Read the head of a GGUF file and check that all of its tensors are there.

    Raises DamagedModelError for a file that is not whole, OSError for one that cannot be read.
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
        head = GgufHeader(MappingProxyType(fields), tensors)
        end, elements = _tensors(cursor, tensors)
        align = head.number("general.alignment", 32) or 32
        whole = cursor.position + -cursor.position % align + end
        if tensors and whole > size:
            raise DamagedModelError(f"is cut short: {size} of {whole} bytes are there")
        return replace(head, elements=MappingProxyType(elements))


def read_model_header(path: Path) -> GgufHeader:
    """As much of the fields as tells a model's shape, and none of the tensors.

    Its own fields mostly come before the tokenizer's long lists, and then this takes a millisecond.
    Raises as `read_head` does, but does not notice what is wrong with the rest.
    """
    with path.open("rb") as file:
        cursor = _Cursor(file, path.stat().st_size)
        if cursor.take(4) != b"GGUF":
            raise DamagedModelError("is not a GGUF file")
        cursor.number("I")
        tensors, count = cursor.count(), cursor.count()
        fields: dict[str, Value] = {}
        head = GgufHeader(fields, tensors)
        for _ in range(count):
            key, kind = cursor.string(), cursor.number("I")
            known = f"{head.architecture}.attention.head_count" in fields
            if known and key == "tokenizer.ggml.tokens" and kind == _ARRAY:
                cursor.number("I")
                fields[key] = ArrayField(cursor.number("Q"))
                break
            fields[key] = cursor.value(kind)
        return GgufHeader(MappingProxyType(fields), tensors)


def _tensors(cursor: _Cursor, tensors: int) -> tuple[int, dict[int, int]]:
    """Where the last tensor's data ends, counted from the start of the data; numbers by type."""
    from gguf.constants import GGML_QUANT_SIZES

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    end, by_kind = 0, dict[int, int]()
    for _ in range(tensors):
        cursor.string()
        elements = 1
        dimensions = cursor.number("I")
        if dimensions > _DIMENSIONS:
            raise DamagedModelError(f"is damaged: it has a tensor of {dimensions} dimensions")
        for _ in range(dimensions):
            elements *= cursor.number("Q")
        kind, offset = cursor.number("I"), cursor.number("Q")
        by_kind[kind] = by_kind.get(kind, 0) + elements
        if kind in sizes:
            block, width = sizes[kind]
            end = max(end, offset + elements // block * width)
        else:
            # A type that is newer than this gguf: its data begins at least where it says.
            end = max(end, offset)
    return end, by_kind


class _Cursor:
    """Reads values one after the other; whatever points past the end is a file cut short."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.position = 0

    def take(self, length: int) -> bytes:
        self._claim(length)
        data = self._file.read(length)
        if len(data) != length:
            raise DamagedModelError("shrank while it was read")
        return data

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]
        return value

    def count(self) -> int:
        count = self.number("Q")
        if count > _FIELDS:
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
        if length > _KEPT:
            self._skip(length * width)
            return ArrayField(length)
        return struct.unpack(f"<{length}{code}", self.take(length * width))

    def _skip(self, length: int) -> None:
        self._claim(length)
        self._file.seek(length, 1)

    def _claim(self, length: int) -> None:
        self.position += length
        if self.position > self._size:
            raise DamagedModelError(f"is cut short: its head goes on after {self._size} bytes")


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class SplitPart:
    """One file's place among the parts of its model, counted from 1."""

    base: str
    number: int
    count: int


def split_part(path: str) -> SplitPart | None:
    """Which part of which model the file is by its name; None for a model in one file."""
    match = _PART.fullmatch(path)
    return SplitPart(match[1], int(match[2]), int(match[3])) if match is not None else None


def split_parts(path: str) -> tuple[str, ...]:
    """All files of the model of which `path` is one, in order; just `path` when it is the only."""
    match = _PART.fullmatch(path)
    if match is None:
        return (path,)
    base, _, count, end = match.groups()
    return tuple(f"{base}-{i:05}-of-{count}{end}" for i in range(1, int(count) + 1))
