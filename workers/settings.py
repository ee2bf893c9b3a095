"""A worker's settings, and the sampling parameters that requests can override.

Imported first by every worker, so it imports nothing that takes time.
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
"""LLAMA_DEFAULT_SEED: llama.cpp draws a seed."""


class SamplerNameError(ValueError):
    """An unknown sampler; the message is one sentence with the nearest name."""


def sampler_order(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the samplers of a list of names or a string of llama-server's letters.

    Raises SamplerNameError.
    """
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


def lookback_length(last: int, context: int) -> int:
    """Return the number of past tokens that `last` stands for, at most `context`.

    Unbounded, llama.cpp would allocate 8 GB for the largest number.
    """
    return context if last < 0 else min(last, context)


@dataclass(frozen=True)
class Sampling:
    """Sampler settings, named and defaulted as llama-server has them."""

    samplers: tuple[str, ...] = ORDER
    """The samplers in their order; those without effect are skipped."""
    temperature: float = 0.8
    """0: greedy."""
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
    """Tokens that top_p, min_p, typ_p and xtc always leave."""
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    """Above 0.5: off."""
    repeat_last_n: int = 64
    """Past tokens that the penalties consider; 0: none, -1: the whole context."""
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    """0: off."""
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    """Past tokens that DRY considers; 0: none, -1: the whole context."""
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    """Version 1 or 2, which replaces all other samplers except the temperature; 0: off."""
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    """Below 0: off; else `adaptive_p` must be among the `samplers`."""
    adaptive_decay: float = 0.9
    seed: int = -1
    """-1: random."""
    logit_bias: dict[int, float] = field(default_factory=dict)

    def uses(self, name: str) -> bool:
        """Return True if sampler `name` has an effect.

        At temperature 0, samplers that always leave the likeliest token have none.
        """
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
            "adaptive_p": False,  # it draws the token, and is added last
        }[name]

    @property
    def seeded(self) -> bool:
        """True if the seed is fixed: not -1, and not equal to it in llama.cpp's 32 bits."""
        return self.seed >= 0 and self.seed & ANY_SEED != ANY_SEED

    def lookback(self, context: int) -> int:
        """Return the number of past tokens that samplers consider; -1 stands for `context`."""
        lengths = [0]
        if "penalties" in self.samplers and self.uses("penalties"):
            lengths.append(lookback_length(self.repeat_last_n, context))
        if "dry" in self.samplers and self.uses("dry"):
            lengths.append(lookback_length(self.dry_penalty_last_n, context))
        return max(lengths)

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is always drawn. Such a chain has no state."""
        idle = not self.logit_bias and not any(map(self.uses, self.samplers))
        return self.temperature <= 0 and idle


@dataclass(frozen=True)
class Settings:
    """A worker's settings, with llama-server's names."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8080
    alias: str = ""
    ctx_size: int | None = None
    """Cells of all slots together; None: 4,096 or the trained context, if less; 0: the trained
    context."""
    parallel: int = 4
    threads: int = 0
    """Threads at most; 0: one for each physical core, and one for a very small model."""
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
    """None: the model's, or the mean."""
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    predict: int = -1
    """Default for `max_tokens`; -1: to the end of the context."""
    sampling: Sampling = field(default_factory=Sampling)
    ignore_eos: bool = False
    """True: end-of-generation tokens do not end answers, unless the request sets it."""
    grammar: str | None = None
    """GBNF of answers to requests without a grammar or format."""
    json_schema: str | None = None
    """The same as a JSON schema, in JSON."""
    adapter_paths: tuple[tuple[str, str], ...] = ()
    """Adapters by name."""
    adapters: str | None = None
    """Folder of adapters, named by their files; None: no folder."""
    loras: tuple[tuple[str, float], ...] = ()
    """Adapters of every request, with their scales; 0: only on request."""
    max_loras: int = 8
    """Adapters loaded at a time."""
    spec_lookup: bool = False
    """True: draft tokens from earlier occurrences of the last tokens (prompt lookup)."""
    model_draft: str | None = None
    """A small model of the same vocabulary that drafts tokens."""
    draft_max: int = 8
    """Draft tokens for one request and step."""
    deterministic: bool = False
    """True: every answer is greedy and computed in isolation."""
    slot_save_path: str | None = None
    """Folder of the persistent KV cache; None: the cache ends with the process."""
    slot_save_bytes: int = 2 * 1024**3
    """Bytes of this folder at most, over all workers that use it."""
    verbose: bool = False
    log: bool = True

    @property
    def name(self) -> str:
        """The model's name in responses."""
        return self.alias or Path(self.model).stem
