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
class LaunchSpec:
    """The command of a worker and everything else that makes it another process.

    Two models with equal launch specs can be served by the same process. `argv` is split, with
    every macro filled in except `${PORT}` and `${PID}`, which are known only at the spawn.
    """

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    limits: WorkerLimits = WorkerLimits()
    builtin: bool = True
    """Follows the contract of `workers.protocol`: reports its address on `SWAPD_READY_FD`."""
    proxy: str = ""
    """Base URL of an external worker, `${PORT}` allowed."""
    check_endpoint: str = "/health"
    """Path that answers 200 once an external worker is ready; empty: ready at once."""
    context: int = 0
    """Tokens of context; 0: unknown."""
    stamp: str = ""
    """Stamp of the files that the worker reads (`swapd.gguf.file_stamp`); empty: unknown."""

    def same_process(self, other: LaunchSpec) -> bool:
        """Return True if a process started for `self` is also the one that `other` describes.

        An empty stamp differs from none: a file that is gone for the moment is no other file.
        """
        if self.stamp and other.stamp:
            return self == other
        return replace(self, stamp=other.stamp) == other


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """The terms on which the scheduler and the supervisor run a model's worker.

    Bytes are bytes, durations are seconds. A change takes effect without a new process.
    """

    stop_argv: tuple[str, ...] = ()
    """Command that stops the worker; empty: SIGTERM."""
    start_timeout: float = 120.0
    stop_grace: float = 5.0
    """Seconds from SIGTERM to SIGKILL."""
    hang_timeout: float = 0.0
    """Seconds without progress after which a busy worker counts as hung; 0: never."""
    liveness_probe: bool = False
    """True if a busy and silent external worker must answer at its check endpoint."""
    need_bytes: int = 0
    """Memory to reserve before a first run has been measured; 0: unknown."""
    slots: int = 1
    """Requests served at once."""
    max_queue: int = 64
    """Requests that may be queued for this model."""
    ttl: float = 0.0
    """Seconds of idleness after which the worker is stopped; 0: never."""
    weight: float = 1.0
    """Factor on the cost of loading the model again, when victims are chosen."""
    priority: int = 0
    """Added to the priority of each request."""
    pinned: bool = False
    """Never evicted for capacity, idleness or memory pressure; only stopped by hand."""
    min_residency: float = 0.0
    """Seconds after readiness in which the worker is not evicted for capacity."""
    preload: bool = False
    """Loaded when swapd starts, without a request."""
    upstream_name: str = ""
    """`model` field that an external worker expects; empty: as the client wrote it."""
    drop_params: tuple[str, ...] = ()
    """Body fields removed before a request is forwarded."""
    send_loading_state: bool = False
    """True if clients of streamed chats get loading progress as `reasoning_content`."""


@dataclass(frozen=True, slots=True)
class Presentation:
    """The names and texts under which clients see a model."""

    aliases: tuple[str, ...] = ()
    unlisted: bool = False
    title: str = ""
    description: str = ""
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: its worker's process, the policy for serving it, and how clients see it."""

    name: str
    launch: LaunchSpec
    serving: ServingPolicy = ServingPolicy()
    presentation: Presentation = Presentation()

    def same_process(self, other: ModelSpec) -> bool:
        """Return True if a worker started for `self` may go on serving as `other`."""
        return self.name == other.name and self.launch.same_process(other.launch)


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
    require_free_memory: bool = False
    """Whether a worker is started only when as much memory as it needs is free in fact."""
    threshold_percent: float = 0.0
    """Share of the machine's memory in use above which idle workers go."""
    psi_threshold_percent: float = 0.0
    """Share of time lost waiting for memory above which they go too, if there is a threshold."""
    critical_percent: float = 0.0
    """Share of the machine's memory in use above which busy workers go when no idle one is left."""
    interval: float = 30.0
    """Seconds from one look at the memory to the next."""
    max_queued: int = 512
    """Requests that may wait, all models together."""
    max_per_tenant: int = 0
    """Requests that may wait for one tenant, all models together."""
    max_turn: float = 60.0
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
        by_alias = {alias: m.name for m in self.models.values() for alias in m.presentation.aliases}
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
