"""A GGUF file loaded by llama.cpp, with the few functions that the tests need."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import llama_cpp.llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

CONTEXT = 1024
# One thread: on a busy machine, two spend their time in barriers.
THREADS = 1


# llama.cpp's log is left out, since a failing test would drown in it. The name keeps the callback
# from being collected while llama.cpp still calls it.
NO_LOG = ll.llama_log_callback(lambda *_: None)
ll.llama_log_set(NO_LOG, ctypes.c_void_p(0))


class Loaded:
    """Model with one context of 1,024 tokens on the CPU; call `close` when done."""

    def __init__(self, path: Path) -> None:
        model_params = ll.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model: Any = ll.llama_model_load_from_file(str(path).encode(), model_params)
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {path}")
        self.vocab: Any = ll.llama_model_get_vocab(self.model)
        params = ll.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
        params.n_threads = params.n_threads_batch = THREADS
        self.context: Any = ll.llama_init_from_model(self.model, params)
        self.size: int = ll.llama_vocab_n_tokens(self.vocab)
        self.begin: int = ll.llama_vocab_bos(self.vocab)

    def close(self) -> None:
        """Free the model and the context."""
        ll.llama_free(self.context)
        ll.llama_model_free(self.model)

    def meta(self, key: str) -> str:
        """Return a metadata value of the file as text; empty if there is none."""
        space = ctypes.create_string_buffer(4096)
        written = ll.llama_model_meta_val_str(self.model, key.encode(), space, len(space))
        return space.value.decode() if written >= 0 else ""

    def tokenize(self, text: str, *, special: bool = False, begin: bool = True) -> list[int]:
        """Return the ids of the text; with `begin`, after the file's leading token."""
        raw = text.encode()
        space = (ll.llama_token * (len(raw) + 8))()
        count = ll.llama_tokenize(self.vocab, raw, len(raw), space, len(space), begin, special)
        return list(space[:count])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens."""
        piece = ctypes.create_string_buffer(256)
        raw = b""
        for token in ids:
            written = ll.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
            raw += piece.raw[:written]
        return raw.decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """Return True if generation ends at this token."""
        return bool(ll.llama_vocab_is_eog(self.vocab, token))

    def chat(self, *messages: tuple[str, str]) -> list[int]:
        """Return the ids of (role, content) messages by the file's template, up to the answer."""
        template = ll.llama_model_chat_template(self.model, None)
        assert template is not None
        rendered = (
            jinja2.Environment(autoescape=False)
            .from_string(template.decode())
            .render(
                messages=[{"role": role, "content": content} for role, content in messages],
                bos_token=self.text_of_special(self.begin),
                eos_token=self.text_of_special(ll.llama_vocab_eos(self.vocab)),
                add_generation_prompt=True,
            )
        )
        return self.tokenize(rendered, special=True, begin=False)

    def text_of_special(self, token: int) -> str:
        """Return the text of a special token."""
        return str(ll.llama_vocab_get_text(self.vocab, token).decode())

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return logits after each of up to 1,024 ids, from an empty context: (ids, vocabulary)."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        batch = ll.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i] = token, i
                batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, 1
            assert ll.llama_decode(self.context, batch) == 0
            rows = ll.llama_get_logits(self.context)
            logits: NDArray[np.float32] = np.ctypeslib.as_array(rows, (len(ids), self.size)).copy()
            return logits
        finally:
            ll.llama_batch_free(batch)

    def bits_per_byte(self, text: str) -> float:
        """Return the loss on the text per byte; each window of 1,023 ids starts with <|begin|>."""
        ids = self.tokenize(text, begin=False)
        bits = 0.0
        for start in range(0, len(ids), CONTEXT - 1):
            chunk = ids[start : start + CONTEXT - 1]
            rows = self.logits([self.begin, *chunk])[:-1]
            top = rows.max(axis=1)
            total = top + np.log(np.exp(rows - top[:, None]).sum(axis=1))
            bits += float((total - rows[np.arange(len(chunk)), chunk]).sum()) / math.log(2)
        return bits / len(text.encode())

    def sample(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        seed: int,
        temperature: float = 0.8,
        ends: bool = True,
    ) -> list[int]:
        """Up to `count` tokens by llama.cpp's sampler; temperature 0 takes the likeliest.

        With `ends`, it stops before an end token; without, that token is never drawn.
        """
        chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        if not ends:
            bar = (ll.llama_logit_bias * 1)(
                ll.llama_logit_bias(ll.llama_vocab_eos(self.vocab), -1e9)
            )
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_logit_bias(self.size, 1, bar))
        if temperature > 0:
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_temp(temperature))
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_dist(seed))
        else:
            ll.llama_sampler_chain_add(chain, ll.llama_sampler_init_greedy())
        try:
            return self._draw(chain, prompt, count)
        finally:
            ll.llama_sampler_free(chain)

    def _draw(self, chain: Any, prompt: Sequence[int], count: int) -> list[int]:
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        out: list[int] = []
        feed = list(prompt)
        while len(out) < count:
            space = (ll.llama_token * len(feed))(*feed)
            assert ll.llama_decode(self.context, ll.llama_batch_get_one(space, len(feed))) == 0
            token = ll.llama_sampler_sample(chain, self.context, -1)
            if self.is_end(token):
                break
            out.append(token)
            feed = [token]
        return out

    @contextmanager
    def adapted(self, path: Path) -> Iterator[None]:
        """Within it, the LoRA adapter of that file is applied."""
        adapter = ll.llama_adapter_lora_init(self.model, str(path).encode())
        assert adapter, f"llama.cpp does not load {path}"
        one = (ll.llama_adapter_lora_p_ctypes * 1)(adapter)
        assert ll.llama_set_adapters_lora(self.context, one, 1, (ctypes.c_float * 1)(1.0)) == 0
        try:
            yield
        finally:
            ll.llama_set_adapters_lora(self.context, None, 0, None)
            ll.llama_adapter_lora_free(adapter)
