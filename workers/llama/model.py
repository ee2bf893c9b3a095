"""llama.cpp's models, log and progress. The only file that imports llama_cpp.

A thin, typed binding: a method is one call of llama.cpp's C API, or a few that belong together.
llama.cpp's `include/llama.h` documents the calls.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from typing import Any

from workers.lazy_imports import skip_package_init

# llama.cpp's threads meet at barriers some hundred times a step. Sleeping there, they cost a model
# of 60 MB half of its tokens per second on an idle machine; spinning without end, they stall as
# soon as another process needs a core. So they spin for some 50 µs and then sleep, and the thread
# tuner uses fewer of them beside other load. (GNU's OpenMP counts spins, LLVM's milliseconds.) The
# runtime reads these variables once, when it is loaded; values set by the user are not changed.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")
skip_package_init("llama_cpp")
from llama_cpp import llama_cpp  # noqa: E402  after the package is registered

api = llama_cpp

_WARNING, _ERROR, _CONTINUED = 3, 4, 5  # enum ggml_log_level


def has_gpu() -> bool:
    """Return True if there is a device other than the CPU to compute on.

    By ggml's list of devices, because `llama_supports_gpu_offload` returns true wherever the RPC
    backend is built in.
    """
    find = api._lib.ggml_backend_dev_by_type
    find.argtypes, find.restype = [ctypes.c_int], ctypes.c_void_p
    return any(find(kind) for kind in (1, 2))  # GGML_BACKEND_DEVICE_TYPE_GPU, _IGPU


def build() -> str:
    """Return the version of llama.cpp and the commit of its ggml."""
    commit = api._lib.ggml_commit
    commit.restype = ctypes.c_char_p
    return f"{api.llama_version().decode()} {commit().decode()}"


class LoadError(Exception):
    """A model or context that llama.cpp can't load; the message is llama.cpp's own reason."""


class Progress:
    """The progress of llama.cpp's computation, for another thread.

    Before each operation on the CPU, some hundred times a step, llama.cpp calls a function that
    may abort the computation. A Python function would have to wait for the interpreter every time;
    the C library's `sigemptyset` clears the memory it is passed, and returns 0, which means no.
    """

    def __init__(self) -> None:
        self._flags = (ctypes.c_uint32 * 32)()  # no smaller than any sigset_t
        self._empty = ctypes.cast(ctypes.CDLL(None).sigemptyset, api.ggml_abort_callback)

    def watch(self, context: Any) -> None:
        """Watch a llama_context from now on."""
        api.llama_set_abort_callback(context, self._empty, ctypes.addressof(self._flags))

    def seen(self) -> bool:
        """Return True if an operation has begun since the last call."""
        begun = self._flags[0] == 0
        self._flags[0] = 1
        return begun


class LlamaLog:
    """The receiver of llama.cpp's log lines: warnings go to standard error, errors are stored too.

    It must live as long as llama.cpp may log. With `verbose` every line goes to standard error,
    with `silent` none.
    """

    def __init__(self, *, verbose: bool = False, silent: bool = False) -> None:
        self._threshold = 0 if verbose else _ERROR + 2 if silent else _WARNING
        self._errors: list[str] = []
        self._level = 0
        self._callback = api.llama_log_callback(self._take)
        api.llama_log_set(self._callback, None)

    def reason(self, otherwise: str) -> str:
        """Return the errors logged since the last call as one sentence, or `otherwise`."""
        errors = [line for line in self._errors if not line.endswith("failed to load model")]
        self._errors.clear()
        return "; ".join(errors) or otherwise

    def _take(self, level: int, text: bytes, _user: object) -> None:
        if level != _CONTINUED:
            self._level = level
        if self._level >= _ERROR:
            line = text.decode("utf-8", "replace").strip()
            function, _, message = line.partition(": ")  # "function_name: what happened"
            line = message if message and " " not in function else line
            self._errors.append(line.removeprefix("error loading model: "))
        if self._level >= self._threshold:
            sys.stderr.write(text.decode("utf-8", "replace"))


class Model:
    """A loaded GGUF file: its weights, metadata and vocabulary.

    Any thread may tokenize and detokenize.
    """

    def __init__(self, path: str, *, gpu_layers: int, mmap: bool, mlock: bool, log: LlamaLog):
        """Load `path`. Raises LoadError with llama.cpp's reason."""
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
        self.can_truncate: bool = not (
            api.llama_model_is_recurrent(self.handle)
            or api.llama_model_is_hybrid(self.handle)
            or api.llama_model_n_swa(self.handle)
        )
        """True if a sequence can be truncated in the cache. A recurrent state holds the whole past
        in one, and a sliding window has lost the tokens that a shorter sequence would see."""
        self.progress = Progress()
        """Progress of all computation with this model."""
        self._pieces: dict[int, str | bytes | None] = {
            -1: None
        }  # -1 is no token of the model, and ends a text

    def meta(self, key: str) -> str | None:
        """Return a metadata value as text, or None if the file does not have it."""
        length = api.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        api.llama_model_meta_val_str(self.handle, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8", "replace")

    def chat_template(self) -> str | None:
        """Return the Jinja source of the model's own chat template, or None."""
        source: bytes | None = api.llama_model_chat_template(self.handle, None)
        return source.decode("utf-8", "replace") if source else None

    def token_text(self, token: int) -> str:
        """Return a token as the vocabulary spells it; empty for no token (-1)."""
        text: bytes | None = api.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    def ending_tokens(self) -> list[int]:
        """Return every token that ends a generation (end of text, of turn, of message)."""
        is_end = api.llama_vocab_is_eog
        return [token for token in range(self.n_vocab) if is_end(self.vocab, token)]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the tokens of a text. Raises OverflowError beyond 2³¹ tokens."""
        data = text.encode("utf-8", "replace")  # a lone surrogate from JSON has no UTF-8
        capacity = len(data) + 4
        tokens = (ctypes.c_int32 * capacity)()
        count: int = api.llama_tokenize(
            self.vocab, data, len(data), tokens, capacity, add_special, parse_special
        )
        if count < 0:
            raise OverflowError("the text has too many tokens")
        return tokens[:count]

    def piece(self, token: int) -> str | bytes | None:
        """Return the text that `token` adds: str if it is whole characters, else its bytes.

        None if it ends the generation; other control tokens add no text. Cached after the first
        call, which makes this cheap enough for every token of every step.
        """
        try:
            return self._pieces[token]
        except KeyError:
            piece = self._pieces[token] = self._find_piece(token)
            return piece

    def reveal(self, text: str) -> None:
        """Make the control token spelled `text`, if there is one, add that text from now on."""
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
        """Return the bytes of `token`; of a control token, its name."""
        return self._piece_bytes(token, special=True)

    def text(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, with the names of control tokens."""
        return b"".join(map(self.spelled, tokens)).decode("utf-8", "replace")

    def _piece_bytes(self, token: int, *, special: bool) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            length: int = api.llama_token_to_piece(self.vocab, token, buffer, capacity, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            capacity = -length
