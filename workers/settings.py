"""What a worker was started with, and what a request may wish otherwise.

Imported before anything else, so it imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ORDER = (
    "penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip
"""llama-server's order of samplers."""
SAMPLER_LETTERS: Mapping[str, str] = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typ_p", "p": "top_p",
    "m": "min_p", "x": "xtc", "t": "temperature", "i": "infill", "a": "adaptive_p",
}  # fmt: skip
_ALSO: Mapping[str, str] = {
    "nucleus": "top_p", "typical": "typ_p", "typical_p": "typ_p", "typ": "typ_p",
    "temp": "temperature",
}  # fmt: skip


ANY_SEED = 0xFFFFFFFF
"""LLAMA_DEFAULT_SEED: llama.cpp draws one."""


class SamplerNameError(ValueError):
    """There is no such sampler; the message is one sentence that names the nearest."""


def sampler_order(names: str | Sequence[str]) -> tuple[str, ...]:
    """Samplers by name, or in a string by llama-server's letters. Raises SamplerNameError."""
    found = []
    for given in names:
        name = SAMPLER_LETTERS.get(given, given) if isinstance(names, str) else given
        name = name.replace("-", "_")
        name = _ALSO.get(name, name)
        if name not in SAMPLER_LETTERS.values():
            import difflib

            known = list(SAMPLER_LETTERS if isinstance(names, str) else SAMPLER_LETTERS.values())
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}" if near else f"there are {', '.join(known)}"
            raise SamplerNameError(f"There is no sampler {given!r}; {hint}{'?' if near else '.'}")
        found.append(name)
    return tuple(dict.fromkeys(found))


def within(last: int, context: int) -> int:
    """How many past tokens `last` means, of which there are never more than `context`: llama.cpp
    would make room for as many as it is told, 8 GB for the largest number there is."""
    return context if last < 0 else min(last, context)


@dataclass(frozen=True)
class Sampling:
    """Sampler settings, named and defaulted as llama-server has them."""

    samplers: tuple[str, ...] = ORDER
    """Which, and in what order; one that is set to do nothing is left out."""
    temperature: float = 0.8
    """0: simply the likeliest."""
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    """0 or below: off."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    """0 or below: off."""
    min_keep: int = 0
    """Tokens that top_p, min_p, typ_p and xtc leave at least."""
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    """Above 0.5: off."""
    repeat_last_n: int = 64
    """Tokens looked back on by the penalties; 0: none, -1: the whole context."""
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    """0: off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    """As `repeat_last_n`."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    """Version 1 or 2 instead of all other samplers but the temperature; 0: off."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    """Below 0: off; else `adaptive_p` must be among the `samplers`."""
    adaptive_decay: float = 0.9
    seed: int = -1
    """-1: drawn."""
    logit_bias: dict[int, float] = field(default_factory=dict)

    def uses(self, name: str) -> bool:
        """Whether sampler `name` would do anything. At temperature 0 those that always leave the
        likeliest token would not."""
        draws = self.temperature > 0
        penalties = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return {
            "penalties": self.repeat_last_n != 0 and penalties != (1.0, 0.0, 0.0),
            "dry": self.dry_multiplier > 0 and self.dry_base >= 1 and self.dry_penalty_last_n != 0,
            "top_n_sigma": draws and self.top_n_sigma > 0,
            "top_k": draws and self.top_k > 0,
            "typ_p": self.typical_p < 1,
            "top_p": draws and self.top_p < 1,
            "min_p": draws and self.min_p > 0,
            "xtc": self.xtc_probability > 0 and self.xtc_threshold <= 0.5,
            "temperature": draws and (self.temperature != 1 or self.dynatemp_range > 0),
            "infill": True,
            "adaptive_p": False,  # it draws, and so comes last
        }[name]

    @property
    def seeded(self) -> bool:
        """Whether the seed is one: -1 and what looks like it to llama.cpp are not."""
        return self.seed >= 0 and self.seed & ANY_SEED != ANY_SEED

    def looks_back(self, context: int) -> int:
        """How many past tokens matter; `context` is what -1 means."""
        lengths = [0]
        if "penalties" in self.samplers and self.uses("penalties"):
            lengths.append(within(self.repeat_last_n, context))
        if "dry" in self.samplers and self.uses("dry"):
            lengths.append(within(self.dry_penalty_last_n, context))
        return max(lengths)

    @property
    def greedy(self) -> bool:
        """Whether simply the likeliest token is taken: no state, so one chain serves all."""
        idle = not self.logit_bias and not any(map(self.uses, self.samplers))
        return self.temperature <= 0 and idle


@dataclass(frozen=True)
class Settings:
    """A worker's flags, checked and completed. Names as llama-server's."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8080
    alias: str = ""
    ctx_size: int | None = None
    """Cells of all slots together; None: 4,096 or what the model was trained on, if less;
    0: what it was trained on."""
    parallel: int = 4
    threads: int = 0
    """At most so many; 0: one for each physical core; a very small model gets one."""
    threads_batch: int = 0
    """0: as `threads`."""
    batch_size: int = 2048
    ubatch_size: int = 512
    n_gpu_layers: int = -1
    """-1: all of them."""
    mmap: bool = True
    mlock: bool = False
    flash_attn: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    pooling: str | None = None
    """None: the model's own, or the mean."""
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    predict: int = -1
    """Default for `max_tokens`; -1: to the end of the context."""
    sampling: Sampling = field(default_factory=Sampling)
    ignore_eos: bool = False
    """Whether answers go on past what would end them, unless a request says otherwise."""
    grammar: str | None = None
    """GBNF that answers follow which nobody wants otherwise."""
    json_schema: str | None = None
    """The same as a JSON schema, in JSON."""
    adapter_paths: tuple[tuple[str, str], ...] = ()
    """Adapters by name."""
    adapters: str | None = None
    """A folder of them, each named by its file; None: there is none."""
    loras: tuple[tuple[str, float], ...] = ()
    """Adapters that every request gets, and their scales; 0: only on request."""
    max_loras: int = 8
    """Adapters loaded at a time."""
    spec_lookup: bool = False
    """Whether what followed the last tokens before is guessed to follow them again."""
    model_draft: str | None = None
    """A small model of the same vocabulary, which guesses ahead."""
    draft_max: int = 8
    """Tokens guessed ahead for one request."""
    deterministic: bool = False
    """Whether every answer is greedy and computed alone."""
    slot_save_path: str | None = None
    """Folder in which what the cache holds outlives the process; None: it does not."""
    slot_save_bytes: int = 2 * 1024**3
    """Bytes that this folder may grow to, of whatever worker."""
    verbose: bool = False
    log: bool = True

    @property
    def name(self) -> str:
        """What the model is called in responses."""
        return self.alias or Path(self.model).stem
