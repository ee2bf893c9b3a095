"""What a command line says of the memory that its worker will take. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from types import MappingProxyType

from swapd.domain.models import ModelSpec


def flag_value(argv: tuple[str, ...], *names: str) -> str | None:
    """The value of a flag, written `--flag value` or `--flag=value`; the last one counts."""
    found = None
    for i, word in enumerate(argv):
        if word in names and i + 1 < len(argv):
            found = argv[i + 1]
        for name in names:
            if name.startswith("--") and word.startswith(name + "="):
                found = word[len(name) + 1 :]
    return found


def speaks_llama_flags(argv: tuple[str, ...], own: bool) -> bool:
    """Whether short flags in the command mean what they mean to llama-server."""
    return own or any(PurePath(word).stem == "llama-server" for word in argv)


def model_file(spec: ModelSpec) -> str | None:
    """The file that the command names as its model, if it names one."""
    short = ("-m",) if speaks_llama_flags(spec.launch.argv, spec.launch.builtin) else ()
    return flag_value(spec.launch.argv, "--model", *short)


KV_BYTES = MappingProxyType(
    {
        "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32,
        "q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32,
    }
)  # fmt: skip
"""Bytes of a number in a KV cache, by llama.cpp's name of the type."""


@dataclass(frozen=True, slots=True)
class LlamaFlags:
    """How a worker of ours, or llama-server, is to run a model."""

    context: int | None = None
    """Tokens of all slots together; 0: what the model was trained for; None: it does not say."""
    slots: int = 1
    key_bytes: float = 2.0
    value_bytes: float = 2.0
    batch: int = 512
    """Tokens computed at once."""
    flash: bool = True
    whole_windows: bool = False
    """Whether layers with a sliding window keep all the same."""
    own: bool = True
    besides: tuple[str, ...] = ()
    """Files that are loaded beside the model: adapters and a projector."""
    draft: str = ""
    """The file of a model that guesses ahead, with a cache of its own."""


def parse_llama_flags(argv: tuple[str, ...], own: bool) -> LlamaFlags:
    """Read the flags that count; one that makes no sense is the worker's to complain of."""
    flags = _Flags(argv)
    parallel = flags.number("-np", "--parallel")
    return LlamaFlags(
        context=flags.number("-c", "--ctx-size"),
        slots=max(1, parallel if parallel is not None else 4 if own else 1),
        key_bytes=KV_BYTES.get(flags.text("-ctk", "--cache-type-k"), 2.0),
        value_bytes=KV_BYTES.get(flags.text("-ctv", "--cache-type-v"), 2.0),
        batch=flags.number("-ub", "--ubatch-size") or 512,
        flash=flags.text("-fa", "--flash-attn") not in ("off", "0", "false"),
        whole_windows="--swa-full" in argv,
        own=own,
        besides=tuple(flags.files()),
        draft=flags.text("-md", "--model-draft"),
    )


def adapter_files(argv: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The files of adapters, by flag; of one with commas, the pieces between them."""
    flags = _Flags(argv)
    found = [tuple(text.split(",")) for text in flags.all("--lora")]
    found += [
        tuple(one.rpartition(":")[0] or one for one in text.split(","))
        for text in flags.all("--lora-scaled")
    ]
    found += [(text.partition("=")[2],) for text in flags.all("--adapter")]
    return list(dict.fromkeys(found))


class _Flags:
    """The flags of a command, each with the word after it, or after its `=`."""

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
        """Adapters, each once though its flag may stand there twice, and the projector."""
        # Between commas; but a comma may also belong to a name.
        found = [path for text in self.all("--lora") for path in (text, *text.split(","))]
        for text in self.all("--lora-scaled"):
            found += [one.rpartition(":")[0] or one for one in text.split(",")]
        found += [text.partition("=")[2] for text in self.all("--adapter")]
        found += self.all("--mmproj", "-mm")
        return list(dict.fromkeys(path for path in found if path))
