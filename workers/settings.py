"""What a worker was started with, and what a request may wish otherwise.

Imported before anything else, so it imports next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """Sampler settings, named and defaulted as llama-server has them."""

    temperature: float = 0.8
    top_k: int = 40
    """0 or below: off."""
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    """0 or below: off."""
    repeat_last_n: int = 64
    """Tokens looked back on by the penalties; 0: none, -1: the whole context."""
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1
    """-1: drawn."""
    logit_bias: dict[int, float] = field(default_factory=dict)

    @property
    def penalizes(self) -> bool:
        """Whether past tokens matter."""
        wanted = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return self.repeat_last_n != 0 and wanted != (1.0, 0.0, 0.0)

    @property
    def greedy(self) -> bool:
        """Whether simply the likeliest token is taken: no state, so one chain serves all."""
        return self.temperature <= 0 and not self.penalizes and not self.logit_bias


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
    """0: one for each physical core; a very small model gets one."""
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
