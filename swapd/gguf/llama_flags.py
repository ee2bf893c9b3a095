"""Flags of a worker's command line that determine its memory use. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from types import MappingProxyType

from swapd.domain.models import ModelSpec


def flag_value(argv: tuple[str, ...], *names: str) -> str | None:
    """Return the value of a flag, as `--flag value` or `--flag=value`; the last one counts."""
    found = None
    for i, word in enumerate(argv):
        if word in names and i + 1 < len(argv):
            found = argv[i + 1]
        for name in names:
            if name.startswith("--") and word.startswith(name + "="):
                found = word[len(name) + 1 :]
    return found


def speaks_llama_flags(argv: tuple[str, ...], builtin: bool) -> bool:
    """Return True if short flags in the command have the meaning that llama-server gives them."""
    return builtin or any(PurePath(word).stem == "llama-server" for word in argv)


def model_file(spec: ModelSpec) -> str | None:
    """Return the model file that the command names, or None."""
    short = ("-m",) if speaks_llama_flags(spec.launch.argv, spec.launch.builtin) else ()
    return flag_value(spec.launch.argv, "--model", *short)


KV_BYTES = MappingProxyType(
    {
        "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
        "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
    }
)  # fmt: skip
"""Bytes per number in a KV cache, by llama.cpp's name of the type."""


@dataclass(frozen=True, slots=True)
class LlamaFlags:
    """Flags of the built-in worker, or of llama-server, that affect its memory."""

    context: int | None = None
    """Tokens of all slots together; 0: the trained context; None: no flag was given."""
    slots: int = 1
    """Requests served at once."""
    key_bytes: float = 2.0
    """Bytes per number of a key in the KV cache."""
    value_bytes: float = 2.0
    """Bytes per number of a value in the KV cache."""
    batch: int = 512
    """Tokens computed in one batch."""
    flash_attention: bool = True
    full_window_cache: bool = False
    """True if layers with a sliding window store the whole context nevertheless."""
    builtin: bool = True
    """True for the built-in worker, False for an external llama-server."""
    extra_files: tuple[str, ...] = ()
    """Files that are loaded in addition to the model: adapters and a projector."""
    draft: str = ""
    """File of the draft model for speculative decoding, which has a separate KV cache."""


@functools.lru_cache(maxsize=1024)
def parse_llama_flags(argv: tuple[str, ...], builtin: bool) -> LlamaFlags:
    """Parse the flags that affect memory; invalid values are left for the worker to report."""
    flags = _Flags(argv)
    parallel = flags.number("-np", "--parallel")
    return LlamaFlags(
        context=flags.number("-c", "--ctx-size"),
        slots=max(1, parallel if parallel is not None else 4 if builtin else 1),
        key_bytes=KV_BYTES.get(flags.text("-ctk", "--cache-type-k"), 2.0),
        value_bytes=KV_BYTES.get(flags.text("-ctv", "--cache-type-v"), 2.0),
        batch=flags.number("-ub", "--ubatch-size") or 512,
        flash_attention=flags.text("-fa", "--flash-attn") not in ("off", "0", "false"),
        full_window_cache="--swa-full" in argv,
        builtin=builtin,
        extra_files=tuple(flags.files()),
        draft=flags.text("-md", "--model-draft"),
    )


def adapter_files(argv: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the adapter files of each flag; a value with commas is split at them."""
    flags = _Flags(argv)
    found = [tuple(text.split(",")) for text in flags.all("--lora")]
    found += [
        tuple(item.rpartition(":")[0] or item for item in text.split(","))
        for text in flags.all("--lora-scaled")
    ]
    found += [(text.partition("=")[2],) for text in flags.all("--adapter")]
    return list(dict.fromkeys(found))


class _Flags:
    """Flags of a command, each paired with the following word or with the text after its `=`."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self._pairs = list(pairwise((*argv, "")))
        self._pairs += [(flag, value) for flag, _, value in (w.partition("=") for w in argv)]

    def all(self, *names: str) -> list[str]:
        return [value for flag, value in self._pairs if flag in names and value]

    def text(self, *names: str) -> str:
        return next(reversed(self.all(*names)), "")

    def number(self, *names: str) -> int | None:
        text = self.text(*names)
        return int(text) if text.isdigit() and len(text) < 10 else None

    def files(self) -> list[str]:
        """Return the adapters and the projector, without duplicates."""
        # Commas separate adapters, but a comma may also be part of a file name, so the unsplit
        # text is a candidate too.
        found = [path for text in self.all("--lora") for path in (text, *text.split(","))]
        for text in self.all("--lora-scaled"):
            found += [item.rpartition(":")[0] or item for item in text.split(",")]
        found += [text.partition("=")[2] for text in self.all("--adapter")]
        found += self.all("--mmproj", "-mm")
        return list(dict.fromkeys(path for path in found if path))
