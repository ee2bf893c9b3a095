"""What may run, and within which limits.

What was learned of a model by running it, and is worth knowing when it is to be run again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What the kernel holds a worker's process to. 0: to nothing but what swapd itself is."""

    memory: int = 0
    """Bytes of memory of its own that it may write to; a model's mapped file is not counted."""
    files: int = 0
    """Files and connections that it may have open."""
    nice: int = 0
    """How much it lets other processes go first: 1 to 19."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: the command that serves it and the terms on which it runs.

    `argv` is the command, split and with every macro filled in except `${PORT}` and `${PID}`,
    which are known only at the spawn. Bytes are bytes, durations are seconds, 0 in `ttl` means
    that idleness never ends the worker.
    """

    name: str
    argv: tuple[str, ...]
    stop_argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    limits: WorkerLimits = WorkerLimits()
    own: bool = True
    """Speaks our worker's contract: reports its address on `SWAPD_READY_FD`."""
    proxy: str = ""
    """Where a foreign worker answers, `${PORT}` allowed."""
    check_endpoint: str = "/health"
    """Path that answers 200 once a foreign worker is ready; empty: ready at once."""
    start_timeout: float = 120.0
    stop_grace: float = 5.0
    """From SIGTERM to SIGKILL."""
    hang_timeout: float = 0.0
    """Without progress for so long while it has requests, a worker is taken for hung; 0: never."""
    must_answer: bool = False
    """Whether a foreign worker that is busy and silent must answer at its check endpoint."""
    need_bytes: int = 0
    """Memory to reserve before a first run has been measured; 0: unknown."""
    slots: int = 1
    """Requests that the worker serves at once."""
    max_queue: int = 64
    """Requests that may wait for this model."""
    ttl: float = 0.0
    weight: float = 1.0
    """How many times its cost of coming back counts when room is needed."""
    priority: int = 0
    """Added to that of each request for it."""
    pinned: bool = False
    """Never asked to go for want of room, idleness or memory pressure; only by hand."""
    min_stay: float = 0.0
    """Seconds after it came up in which it is not asked to go for want of room."""
    preload: bool = False
    """Loaded when swapd starts, without a request."""
    aliases: tuple[str, ...] = ()
    upstream_name: str = ""
    """The `model` a foreign worker wants to read in the body; empty: as the client wrote it."""
    drop_params: tuple[str, ...] = ()
    """Body fields that are taken out before a request is passed on."""
    send_loading_state: bool = False
    """Whether clients of streamed chats are told while they wait, as thoughts of the model."""
    unlisted: bool = False
    title: str = ""
    description: str = ""
    context: int = 0
    """Tokens of context; 0: unknown."""
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    stamp: str = ""
    """A mark of the files that the worker reads; empty: not known."""

    def same_process(self, other: ModelSpec) -> bool:
        """Whether a worker started for `self` may go on serving as `other`.

        True when they differ at most in what swapd itself does with the worker (time to live,
        names, slots it grants), not in what the process was started with, files that were replaced
        since among it.
        """
        return (
            replace(
                self,
                stop_argv=other.stop_argv,
                start_timeout=other.start_timeout,
                stop_grace=other.stop_grace,
                hang_timeout=other.hang_timeout,
                must_answer=other.must_answer,
                need_bytes=other.need_bytes,
                slots=other.slots,
                max_queue=other.max_queue,
                ttl=other.ttl,
                weight=other.weight,
                priority=other.priority,
                pinned=other.pinned,
                min_stay=other.min_stay,
                preload=other.preload,
                aliases=other.aliases,
                upstream_name=other.upstream_name,
                drop_params=other.drop_params,
                send_loading_state=other.send_loading_state,
                unlisted=other.unlisted,
                title=other.title,
                description=other.description,
                metadata=other.metadata,
                # A file that is gone for the moment is no other file.
                stamp=self.stamp if self.stamp and other.stamp else other.stamp,
            )
            == other
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Models of which it is said who may be loaded beside whom."""

    name: str
    members: frozenset[str]
    swap: bool = True
    """At most one of the members is loaded at a time."""
    exclusive: bool = True
    """A member is loaded only when all that are not in the group have gone."""
    persistent: bool = False
    """A member never goes to make room for one that is not in the group."""
    together: bool = False
    """With one member the others are loaded too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What all workers together may take. 0 means no limit, but in `interval`
    and `max_wait`."""

    max_resident: int = 0
    """Workers alive at once."""
    budget_bytes: int = 0
    """Sum of the workers' memory."""
    heed_free: bool = False
    """Whether a worker is started only when as much memory as it needs is free in fact."""
    threshold_percent: float = 0.0
    """Share of the machine's memory in use above which idle workers go."""
    stall_percent: float = 0.0
    """Share of time lost waiting for memory above which they go too, if there is a threshold."""
    critical_percent: float = 0.0
    """Share of the machine's memory in use above which busy workers go when no idle one is left."""
    interval: float = 30.0
    """Seconds from one look at the memory to the next."""
    max_waiting: int = 512
    """Requests that may wait, all models together."""
    max_per_tenant: int = 0
    """Requests that may wait for one tenant, all models together."""
    max_wait: float = 60.0
    """Seconds for which a resident model may go on being served while another one waits for its
    room, so that not every request costs a swap. 0: strictly by arrival."""
    policy: str = "cost"
    """Who goes when room is needed: cost, lru, lru-ttl, lfu, ttl or no-evict."""
    groups: tuple[Group, ...] = ()
    """A model is in one of them or in none."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All models by name, and the limits over them."""

    models: Mapping[str, ModelSpec] = field(default_factory=lambda: MappingProxyType({}))
    limits: Limits = Limits()
    _by_alias: Mapping[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_alias = {alias: m.name for m in self.models.values() for alias in m.aliases}
        object.__setattr__(self, "_by_alias", MappingProxyType(by_alias))

    def resolve(self, name: str) -> ModelSpec | None:
        """The model that `name` means: a model's name first, then an alias; else None."""
        return self.models.get(name) or self.models.get(self._by_alias.get(name, ""))


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Of one command with the files that it names. 0: not known."""

    bytes: int = 0
    """Most that a worker of it was seen to hold."""
    load_seconds: float = 0.0
    """From its start to its being ready, in the mean."""
