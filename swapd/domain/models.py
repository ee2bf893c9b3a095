"""Models and limits: the catalog that a configuration describes, and measured model profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Kernel limits of a worker's process. 0: the limit of swapd itself applies."""

    memory: int = 0
    """Bytes of private writable memory; a memory-mapped model file is not counted."""
    files: int = 0
    """Open files and connections."""
    nice: int = 0
    """Nice value, 1 to 19."""


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
    """A model: its worker's process, the policy for serving it, and its presentation to clients."""

    name: str
    launch: LaunchSpec
    serving: ServingPolicy = ServingPolicy()
    presentation: Presentation = Presentation()

    def same_process(self, other: ModelSpec) -> bool:
        """Return True if a worker started for `self` may go on serving as `other`."""
        return self.name == other.name and self.launch.same_process(other.launch)


@dataclass(frozen=True, slots=True)
class Group:
    """A group of models with rules for which models may be loaded at the same time."""

    name: str
    members: frozenset[str]
    swap: bool = True
    """At most one of the members is loaded at a time."""
    exclusive: bool = True
    """A member is loaded only after all models outside the group have been unloaded."""
    persistent: bool = False
    """A member is never evicted for a model outside the group."""
    together: bool = False
    """Loading one member loads the others too."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits over all workers together. 0 means no limit, except in `interval` and `max_turn`."""

    max_resident: int = 0
    """Workers alive at once."""
    budget_bytes: int = 0
    """Sum of the workers' memory, in bytes."""
    require_free_memory: bool = False
    """True if a worker is started only when the memory that it needs is actually free."""
    threshold_percent: float = 0.0
    """Percent of the machine's memory in use above which idle workers are evicted."""
    psi_threshold_percent: float = 0.0
    """Percent of time stalled on memory (PSI) above which they are evicted too, if
    `threshold_percent` is set."""
    critical_percent: float = 0.0
    """Percent of the machine's memory in use above which busy workers are evicted once no idle one
    is left."""
    interval: float = 30.0
    """Seconds between two memory samples."""
    max_queued: int = 512
    """Requests that may be queued, over all models."""
    max_per_tenant: int = 0
    """Requests of one tenant that may be queued, over all models."""
    max_turn: float = 60.0
    """Time slice, in seconds, for which a resident model goes on being served while another model
    waits for its capacity, so that not every request costs a swap. 0: strictly by arrival."""
    policy: str = "cost"
    """Eviction policy: cost, lru, lru-ttl, lfu, ttl or no-evict."""
    groups: tuple[Group, ...] = ()
    """Groups; a model is in at most one of them."""


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
        """Return the model with this exact name, else the one with this alias, else None."""
        return self.models.get(name) or self.models.get(self._by_alias.get(name, ""))


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """Measurements of one command together with the files that it names. 0: unknown."""

    bytes: int = 0
    """Peak memory of a worker, in bytes."""
    load_seconds: float = 0.0
    """Mean time from start to readiness, in seconds."""
