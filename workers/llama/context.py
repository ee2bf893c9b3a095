"""llama.cpp's contexts: computation, the KV cache, and saved sequences.

A thin binding: a method is one call of llama.cpp's C API, or a few that belong together.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from workers.llama.model import LlamaLog, LoadError, Model, api

KV_TYPES = {  # enum ggml_type in ggml.h
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7,
    "q8_0": 8, "iq4_nl": 20, "bf16": 30,
}  # fmt: skip
HEADER = Struct("=III")
"""Header of a saved sequence: llama.cpp's magic number, its version, the number of tokens."""
STATE_HEADER = 8
"""Bytes of the header of a sequence's state in memory: another magic number, and its id."""
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
POOLING = {"mean": 1, "cls": 2, "last": 3, "rank": 4}  # enum llama_pooling_type


class LoraAdapter:
    """A loaded LoRA adapter. It belongs to its model, and serves every context of it."""

    def __init__(self, model: Model, path: Path, log: LlamaLog) -> None:
        """Load `path`. Raises LoadError with llama.cpp's reason."""
        self.handle = api.llama_adapter_lora_init(model.handle, os.fsencode(path))
        if not self.handle:
            reason = log.reason("llama.cpp could not load the adapter")
            raise LoadError(reason.removeprefix("failed to apply lora adapter: "))
        if api.llama_adapter_get_alora_n_invocation_tokens(self.handle):
            self.free()
            raise LoadError("it is switched on by a token sequence (aLoRA), which is not supported")

    def free(self) -> None:
        """Free its memory; no context may be using it."""
        api.llama_adapter_lora_free(self.handle)


@dataclass(frozen=True)
class ContextOptions:
    """Parameters of a Context; names and units as in `llama_context_params`."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    threads: int
    threads_batch: int
    flash_attention: str = "auto"
    type_k: str = "f16"
    type_v: str = "f16"
    n_draft_rows: int = 0
    """Rows of a step with logits, beyond one for each sequence: for draft tokens."""
    pooling: str | None = None
    """Kind of pooling, which makes the context one for embeddings; None generates."""


class Context:
    """A KV cache shared by `n_seq_max` sequences, and computation on it. Used by one thread."""

    def __init__(self, model: Model, options: ContextOptions, log: LlamaLog) -> None:
        params = api.llama_context_default_params()
        params.n_ctx = options.n_ctx
        params.n_batch = options.n_batch
        params.n_ubatch = min(options.n_ubatch, options.n_batch)
        params.n_seq_max = options.n_seq_max
        params.n_threads = options.threads
        params.n_threads_batch = options.threads_batch
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
        params.type_k = KV_TYPES[options.type_k]
        params.type_v = KV_TYPES[options.type_v]
        params.kv_unified = True  # else n_ctx is divided by n_seq_max
        params.swa_full = False  # as llama-server: a sliding window keeps only what it sees
        if options.pooling is None:
            # else memory for n_batch × vocabulary
            params.n_outputs_max = options.n_seq_max + options.n_draft_rows
        else:
            params.embeddings = True
            params.pooling_type = POOLING[options.pooling]
        self._log = log
        self._threads = -1
        self.handle = api.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise LoadError(log.reason("llama.cpp could not make a context"))
        model.progress.watch(self.handle)
        self.n_ctx: int = api.llama_n_ctx(self.handle)
        self._memory = api.llama_get_memory(self.handle)
        ranks = options.pooling == "rank"
        self._n_embd: int = api.llama_model_n_cls_out(model.handle) if ranks else model.n_embd
        self._n_vocab = model.n_vocab
        self.can_truncate = model.can_truncate and self._memory is not None
        """True if sequences can be truncated and share prefixes."""
        self.adapters: tuple[tuple[str, float], ...] = ()
        """Adapters in use, by the names passed to `use_adapters`."""

    @property
    def generates(self) -> bool:
        """True if there is a KV cache to generate with; an encoder has none."""
        return self._memory is not None

    def decode(self, batch: Batch) -> int:
        """Compute a batch; return 0, or 1 if the cache has no cells for it, or an error below 0.

        After 1, nothing has changed.
        """
        code: int = api.llama_decode(self.handle, batch.raw)
        return code

    def encode(self, batch: Batch) -> int:
        """Compute a batch as `decode` does, with a model without a KV cache."""
        code: int = api.llama_encode(self.handle, batch.raw)
        return code

    def use_adapters(
        self, names: tuple[tuple[str, float], ...], adapters: list[tuple[LoraAdapter, float]]
    ) -> None:
        """Compute with these adapters and scales from the next step on."""
        count = len(adapters)
        handles = (api.llama_adapter_lora_p_ctypes * count)(*[one.handle for one, _ in adapters])
        scales = (ctypes.c_float * count)(*[scale for _, scale in adapters])
        if api.llama_set_adapters_lora(self.handle, handles, count, scales) != 0:
            raise RuntimeError(self._log.reason("llama.cpp does not accept the adapters"))
        self.adapters = names

    def use_threads(self, count: int) -> None:
        """Compute with `count` threads from the next step on."""
        if count != self._threads:
            self._threads = count
            api.llama_set_n_threads(self.handle, count, count)

    def forget(self, seq_id: int) -> None:
        """Free every cell of `seq_id`."""
        if self._memory is not None:
            api.llama_memory_seq_rm(self._memory, seq_id, -1, -1)

    def cut(self, seq_id: int, length: int) -> bool:
        """Truncate `seq_id` to `length` positions; return False if its memory can't."""
        done: bool = api.llama_memory_seq_rm(self._memory, seq_id, length, -1)
        return done

    def share(self, source: int, target: int, length: int) -> None:
        """Share the cells of the first `length` positions of `source` with `target`."""
        api.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def last_position(self, seq_id: int) -> int:
        """Return the largest position of `seq_id`; -1 if it is empty."""
        position: int = api.llama_memory_seq_pos_max(self._memory, seq_id)
        return position

    def sequence_size(self, seq_id: int) -> int:
        """Return the approximate size of `seq_id` on disk, in bytes."""
        size: int = api.llama_state_seq_get_size(self.handle, seq_id)
        return size

    def save_sequence(self, path: Path, seq_id: int, tokens: list[int]) -> int:
        """Write the state of `seq_id`, whose tokens are `tokens`; return the size of the file.

        Raises OSError with llama.cpp's reason.
        """
        count = len(tokens)
        written: int = api.llama_state_seq_save_file(
            self.handle, os.fsencode(path), seq_id, (ctypes.c_int32 * count)(*tokens), count
        )
        if written == 0:
            raise OSError(self._log.reason("llama.cpp could not write the sequence"))
        return written

    def load_sequence(self, path: Path, seq_id: int, most: int) -> list[int] | None:
        """Read a file of `save_sequence` into the empty `seq_id` and return its tokens.

        None if it has more than `most` tokens or llama.cpp rejects it. The file is read from
        memory and not with `llama_state_seq_load_file`, which ends the process when the file is
        shorter than its header says. A state in memory begins with another header of llama.cpp's:
        that of the empty sequence is written over the last tokens, right before the state.
        """
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
            magic, version, count = HEADER.unpack_from(data)
            end = HEADER.size + count * ctypes.sizeof(ctypes.c_int32)
            known = (magic, version) == (api.LLAMA_STATE_SEQ_MAGIC, api.LLAMA_STATE_SEQ_VERSION)
            if not known or count > most or end >= len(data):
                return None
            tokens: list[int] = (ctypes.c_int32 * count).from_buffer_copy(data, HEADER.size)[:]
            empty = (ctypes.c_uint8 * api.llama_state_seq_get_size(self.handle, seq_id))()
            api.llama_state_seq_get_data(self.handle, empty, len(empty), seq_id)
            data[end - STATE_HEADER : end] = bytes(empty[:STATE_HEADER])
            size = len(data) - end + STATE_HEADER
            state = (ctypes.c_uint8 * size).from_buffer(data, end - STATE_HEADER)
            read: int = api.llama_state_seq_set_data(self.handle, state, size, seq_id)
            del state  # else the file could not be unmapped
        if read == 0:
            self._log.reason("")  # drop the expected error: it is no reason for a later failure
            return None
        return tokens

    def logits(self, row: int) -> list[float]:
        """Return the logits of the last step's `row`, one for each token of the vocabulary."""
        values: list[float] = api.llama_get_logits_ith(self.handle, row)[: self._n_vocab]
        return values

    def embedding(self, slot: int) -> list[float]:
        """Return the pooled embedding of `slot` after a step, not normalized.

        Of a ranking model, its scores.
        """
        vector = api.llama_get_embeddings_seq(self.handle, slot)
        if not vector:
            raise RuntimeError("llama.cpp computed no embedding for the sequence")
        values: list[float] = vector[: self._n_embd]
        return values

    def free(self) -> None:
        """Free the context."""
        api.llama_free(self.handle)


class Batch:
    """The input of one step: rows of token, position, sequence id and a flag for logits.

    The arrays are made once; a step only writes the rows that it uses.
    """

    def __init__(self, capacity: int) -> None:
        self._tokens = (ctypes.c_int32 * capacity)()
        self._positions = (ctypes.c_int32 * capacity)()
        self._counts = (ctypes.c_int32 * capacity)(
            *[1] * capacity
        )  # each row belongs to one sequence
        self._slots = (ctypes.c_int32 * capacity)()
        cell, start = ctypes.sizeof(ctypes.c_int32), ctypes.addressof(self._slots)
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._pointers = (pointer * capacity)(
            *[ctypes.cast(start + row * cell, pointer) for row in range(capacity)]
        )
        self._wanted = (ctypes.c_int8 * capacity)()
        self.raw = api.llama_batch(
            0, self._tokens, None, self._positions, self._counts, self._pointers, self._wanted
        )
        self.size = 0

    def clear(self) -> None:
        """Start a new step."""
        self.size = self.raw.n_tokens = 0

    def add(self, token: int, position: int, slot: int) -> int:
        """Add a row with logits and return its index."""
        row = self.size
        self._tokens[row] = token
        self._positions[row] = position
        self._slots[row] = slot
        self._wanted[row] = 1
        self.size = self.raw.n_tokens = row + 1
        return row

    def add_run(
        self, tokens: Sequence[int], position: int, slot: int, *, wanted: str = "none"
    ) -> int:
        """Add rows for `tokens` from `position` on and return the index of the last one.

        `wanted` selects the rows with logits: "none", "last" or "all".
        """
        first, count = self.size, len(tokens)
        end = first + count
        self._tokens[first:end] = list(tokens)
        self._positions[first:end] = list(range(position, position + count))
        self._slots[first:end] = [slot] * count
        self._wanted[first:end] = [1 if wanted == "all" else 0] * count
        if wanted == "last":
            self._wanted[end - 1] = 1
        self.size = self.raw.n_tokens = end
        return end - 1
