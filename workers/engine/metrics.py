"""The engine's counters, and their text for /metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prometheus_client import Metric

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
BATCH_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0)
FILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass(frozen=True)
class Timings:
    """The times and token counts of one generation. Seconds, from the start of its prefill."""

    prompt_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were in the cache already, and not computed."""
    prompt_seconds: float
    """From the slot to the first token."""
    predicted_tokens: int
    predicted_seconds: float
    """From the first token to the last."""
    draft_tokens: int = 0
    """Draft tokens."""
    accepted_tokens: int = 0
    """Those of them that were accepted."""


class Histogram:
    """Counts of observations up to each bound; times are seconds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, observations up to it), the last bound being "+Inf"."""
        sums, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            sums.append((bound, float(so_far)))
        return sums


@dataclass
class Counters:
    """Totals since the start. Written by the engine's thread only; times are seconds."""

    steps: int = 0
    """Calls of llama_decode and llama_encode; reported by the heartbeat."""
    step_seconds: float = 0.0
    """Time in steps."""
    llama_seconds: float = 0.0
    """The part of it in calls of llama.cpp, decoding and sampling. Includes the wait for the
    interpreter's lock at the end of each call, while the event loop holds it."""
    busy_slots: int = 0
    """Sequences in a step, summed over steps."""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens found in the cache."""
    restored_tokens: int = 0
    """Tokens restored from disk."""
    prompt_seconds: float = 0.0
    predicted_tokens: int = 0
    predicted_seconds: float = 0.0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    """Draft tokens that were accepted."""
    longest: int = 0
    """Tokens of the longest sequence."""
    preempted: int = 0
    """Preemptions: sequences that lost their cells to an older one."""
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BUCKETS))
    adapter_changes: int = 0
    """Steps before which the adapters were changed."""
    adapter_load: Histogram = field(default_factory=lambda: Histogram(FILE_BUCKETS))
    restore: Histogram = field(default_factory=lambda: Histogram(FILE_BUCKETS))
    save: Histogram = field(default_factory=lambda: Histogram(FILE_BUCKETS))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(TOKEN_BUCKETS))
    queue_wait: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BUCKETS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(BATCH_BUCKETS))
    requests: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("stop", "length", "failed", "cancelled"), 0)
    )
    """Ended requests, by the kind of their end."""

    def finished(self, timings: Timings, arrived: float, first_token: float) -> None:
        """Count the end of a generation."""
        self.prompt_seconds += timings.prompt_seconds
        self.predicted_seconds += timings.predicted_seconds
        self.first_token.observe(first_token - arrived)

    def python_share(self, loop_seconds: float) -> float:
        """Return an upper bound of Python's share of the step time.

        That is the engine's time outside of llama.cpp plus all of the event loop's, though most of
        the latter runs beside a step.
        """
        python = self.step_seconds - self.llama_seconds + loop_seconds
        return python / self.step_seconds if self.step_seconds else 0.0


class EngineState(Protocol):
    """The part of an engine that is measured."""

    counters: Counters
    loop_began: float
    """CPU seconds that the event loop's thread had used before the first request."""

    @property
    def processing(self) -> int:
        """Requests in a slot."""

    @property
    def deferred(self) -> int:
        """Requests waiting for a slot."""

    @property
    def longest_adapter_wait(self) -> int:
        """The most steps that a set of adapters has waited for its own."""


class EngineCollector:
    """A collector of prometheus_client: llama-server's metrics and further ones."""

    def __init__(self, engine: EngineState, loop_seconds: float) -> None:
        """`loop_seconds` is the CPU time of the event loop's thread so far."""
        self._engine = engine
        self._loop_seconds = loop_seconds - engine.loop_began

    def collect(self) -> Iterator[Metric]:
        """Yield one family per metric, as prometheus_client's registries require."""
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        engine, count = self._engine, self._engine.counters
        share = count.python_share(self._loop_seconds)
        for name, text, value in (
            ("prompt_tokens", "Prompt tokens processed.", count.prompt_tokens),
            ("prompt_tokens_reused", "Prompt tokens found in the cache.", count.reused_tokens),
            ("kv_tokens_restored", "Tokens read back from disk.", count.restored_tokens),
            ("prompt_seconds", "Seconds until the first token.", count.prompt_seconds),
            ("tokens_predicted", "Generated tokens.", count.predicted_tokens),
            ("tokens_predicted_seconds", "Seconds generating.", count.predicted_seconds),
            ("draft_tokens", "Draft tokens.", count.draft_tokens),
            ("draft_tokens_accepted", "Accepted draft tokens.", count.accepted_tokens),
            ("n_decode", "Steps: calls of llama_decode.", count.steps),
            ("step_seconds", "Seconds in steps.", count.step_seconds),
            ("llama_seconds", "Seconds of them inside llama.cpp.", count.llama_seconds),
            ("loop_seconds", "CPU seconds of the event loop.", self._loop_seconds),
            ("adapter_changes", "Changes of adapters between steps.", count.adapter_changes),
            ("sequences_sent_back", "Sequences preempted for want of cells.", count.preempted),
        ):
            yield CounterMetricFamily(f"llamacpp:{name}", text, value)
        for name, text, gauge in (
            ("prompt_tokens_seconds", "Prompt tokens a second, on average.",
             _rate(count.prompt_tokens, count.prompt_seconds)),
            ("predicted_tokens_seconds", "Generated tokens a second, on average.",
             _rate(count.predicted_tokens, count.predicted_seconds)),
            ("requests_processing", "Requests in a slot.", engine.processing),
            ("requests_deferred", "Requests waiting for a slot.", engine.deferred),
            ("n_tokens_max", "Tokens of the longest sequence so far.", count.longest),
            ("n_busy_slots_per_decode", "Sequences in a step, on average.",
             _rate(count.busy_slots, count.steps)),
            ("adapter_wait_steps_max", "Most steps of others before one with its adapters.",
             engine.longest_adapter_wait),
            ("python_share", "Python's share of the step time, at most.", share),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"llamacpp:{name}", text, gauge)
        ended = CounterMetricFamily(
            "llamacpp:requests", "Requests that have ended.", labels=["end"]
        )
        for end, number in count.requests.items():
            ended.add_metric([end], number)
        yield ended
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From arrival to the first token.", count.first_token),
            ("adapter_load_seconds", "Loading one adapter.", count.adapter_load),
            ("kv_restore_seconds", "Restoring one cached sequence.", count.restore),
            ("kv_save_seconds", "Saving one cached sequence.", count.save),
            ("time_between_tokens_seconds", "From one token to the next.", count.between_tokens),
            ("queue_wait_seconds", "From arrival to a slot.", count.queue_wait),
            ("batch_tokens", "Tokens in a step.", count.batch_tokens),
        ):
            family = HistogramMetricFamily(f"llamacpp:{name}", text)
            family.add_metric([], buckets=histogram.cumulative(), sum_value=histogram.total)
            yield family


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def render(engine: EngineState, loop_seconds: float) -> bytes:
    """Return the metrics in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(EngineCollector(engine, loop_seconds))
    return generate_latest(registry)
