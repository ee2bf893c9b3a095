"""llama.cpp, as this worker uses it. The only file that imports llama_cpp.

Thin and typed: a method is one call of llama.cpp's C API, or a few that belong together. The
meaning of each call is told in llama.cpp's `include/llama.h`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from typing import Any

from workers.lazy_imports import skip_package_init

# llama.cpp's threads meet at barriers some hundred times a step. Asleep there, they cost a model of
# 60 MB half of its tokens a second on a machine of its own; spinning without end, they come to a
# stand as soon as another process wants a core. So they spin for some 50 µs and then sleep, and
# `thread_pace` uses fewer of them where others compute. (GNU's OpenMP counts turns, LLVM's
# milliseconds.) Read by the runtime once, when it is loaded; whoever has set it keeps it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")
skip_package_init("llama_cpp")
from llama_cpp import llama_cpp  # noqa: E402  after the package was put in place

api = llama_cpp

_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level


def has_gpu() -> bool:
    """Whether there is a device other than the CPU to compute on.

    Asked of ggml, which llama.cpp is linked with: `llama_supports_gpu_offload` says yes wherever
    the RPC backend was built in.
    """
    find = api._lib.ggml_backend_dev_by_type
    find.argtypes, find.restype = [ctypes.c_int], ctypes.c_void_p
    return any(find(kind) for kind in (1, 2))  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU


def build() -> str:
    """Which llama.cpp this is: its version, and the commit of its ggml."""
    commit = api._lib.ggml_commit
    commit.restype = ctypes.c_char_p
    return f"{api.llama_version().decode()} {commit().decode()}"


class LoadError(Exception):
    """A model or context that llama.cpp refuses; its message is llama.cpp's own reason."""


class Progress:
    """Whether llama.cpp gets on with what it computes, as another thread can see it.

    Before each operation on the CPU, some hundred times a step, llama.cpp asks a function whether
    to abort. One of Python's would have to wait for the interpreter every time; the C library's
    `sigemptyset` empties what it is given, and returns 0, which means no.
    """

    def __init__(self) -> None:
        self._mark = (ctypes.c_uint32 * 32)()  # no smaller than any sigset_t
        self._empty = ctypes.cast(ctypes.CDLL(None).sigemptyset, api.ggml_abort_callback)

    def watch(self, context: Any) -> None:
        """From now on it is told of this llama_context."""
        api.llama_set_abort_callback(context, self._empty, ctypes.addressof(self._mark))

    def seen(self) -> bool:
        """Whether an operation has begun since it was last asked."""
        begun = self._mark[0] == 0
        self._mark[0] = 1
        return begun


class LlamaLog:
    """Takes llama.cpp's log lines: errors are kept as reasons, warnings go to standard error.

    It must live as long as llama.cpp may log. `verbose` lets everything through; `silent`
    nothing, though reasons are still kept.
    """

    def __init__(self, *, verbose: bool = False, silent: bool = False) -> None:
        self._threshold = 0 if verbose else _ERROR + 2 if silent else _WARNING
        self._errors: list[str] = []
        self._level = 0
        self._callback = api.llama_log_callback(self._take)
        api.llama_log_set(self._callback, None)

    def reason(self, otherwise: str) -> str:
        """The errors logged since the last call as one sentence, or `otherwise`."""
        told = [line for line in self._errors if not line.endswith("failed to load model")]
        self._errors.clear()
        return "; ".join(told) or otherwise

    def _take(self, level: int, text: bytes, _user: object) -> None:
        if level != _CONTINUED:
            self._level = level
        if self._level >= _ERROR:
            line = text.decode("utf-8", "replace").strip()
            where, _, what = line.partition(": ")  # "function_name: what happened"
            line = what if what and " " not in where else line
            self._errors.append(line.removeprefix("error loading model: "))
        if self._level >= self._threshold:
            sys.stderr.write(text.decode("utf-8", "replace"))


class Model:
    """A loaded GGUF file: its weights, what its metadata says, and its vocabulary.

    Tokenising and detokenising may be done from any thread.
    """

    def __init__(self, path: str, *, gpu_layers: int, mmap: bool, mlock: bool, log: LlamaLog):
        """Loads `path`; LoadError with llama.cpp's reason if it can't."""
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        if mlock:
            params.load_mode = api.LLAMA_LOAD_MODE_MMAP_MLOCK if mmap else api.LLAMA_LOAD_MODE_MLOCK
        elif not mmap:
            params.load_mode = api.LLAMA_LOAD_MODE_NONE
        self.handle = api.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise LoadError(log.reason(f"llama.cpp could not load {path}"))
        self.vocab = api.llama_model_get_vocab(self.handle)
        self.n_vocab: int = api.llama_vocab_n_tokens(self.vocab)
        self.n_ctx_train: int = api.llama_model_n_ctx_train(self.handle)
        self.n_embd: int = api.llama_model_n_embd_out(self.handle)
        self.n_params: int = api.llama_model_n_params(self.handle)
        self.size: int = api.llama_model_size(self.handle)
        self.vocab_type: int = api.llama_vocab_type(self.vocab)
        self.bos: int = api.llama_vocab_bos(self.vocab)
        self.eos: int = api.llama_vocab_eos(self.vocab)
        self.adds_bos: bool = api.llama_vocab_get_add_bos(self.vocab)
        self.cuts: bool = not (
            api.llama_model_is_recurrent(self.handle)
            or api.llama_model_is_hybrid(self.handle)
            or api.llama_model_n_swa(self.handle)
        )
        """Whether a sequence's end can be taken off its cache. A recurrent state holds the whole
        past in one, and a sliding window has forgotten what a shorter sequence would see."""
        self.progress = Progress()
        """Of all that is computed with it."""
        self._pieces: dict[int, str | bytes | None] = {-1: None}  # none of the model's: an end

    def meta(self, key: str) -> str | None:
        """A metadata value as text; None if the file does not have it."""
        length = api.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        api.llama_model_meta_val_str(self.handle, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """The Jinja source of the model's own chat template."""
        source: bytes | None = api.llama_model_chat_template(self.handle, None)
        return source.decode("utf-8", "replace") if source else None

    def token_text(self, token: int) -> str:
        """A token as the vocabulary writes it; empty for "there is none" (-1)."""
        text: bytes | None = api.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    def ending_tokens(self) -> list[int]:
        """Every token that ends a generation (end of text, of turn, of message)."""
        is_end = api.llama_vocab_is_eog
        return [token for token in range(self.n_vocab) if is_end(self.vocab, token)]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Text to token ids. Raises OverflowError beyond 2³¹ tokens."""
        data = text.encode("utf-8", "replace")  # a lone surrogate from JSON has no UTF-8
        room = len(data) + 4
        tokens = (ctypes.c_int32 * room)()
        count: int = api.llama_tokenize(
            self.vocab, data, len(data), tokens, room, add_special, parse_special
        )
        if count < 0:
            raise OverflowError("the text has too many tokens")
        return tokens[:count]

    def piece(self, token: int) -> str | bytes | None:
        """What `token` adds to a text: str if it is whole characters, else its bytes.

        None if it ends the generation; other control tokens add nothing. Kept after the first
        call, which makes this cheap enough for every token of every step.
        """
        try:
            return self._pieces[token]
        except KeyError:
            piece = self._pieces[token] = self._find_piece(token)
            return piece

    def reveal(self, text: str) -> None:
        """From now on the control token spelled `text`, if there is one, adds it to a text."""
        tokens = self.tokenize(text, add_special=False, parse_special=True)
        if len(tokens) == 1 and self.piece(tokens[0]) == "":
            self._pieces[tokens[0]] = text

    def _find_piece(self, token: int) -> str | bytes | None:
        if api.llama_vocab_is_eog(self.vocab, token):
            return None
        data = self._piece_bytes(token, special=False)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    def spelled(self, token: int) -> bytes:
        """What `token` stands for, control tokens included."""
        return self._piece_bytes(token, special=True)

    def text(self, tokens: Iterable[int]) -> str:
        """What they stand for together, control tokens included."""
        return b"".join(map(self.spelled, tokens)).decode("utf-8", "replace")

    def _piece_bytes(self, token: int, *, special: bool) -> bytes:
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length: int = api.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            room = -length
