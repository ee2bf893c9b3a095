"""The keys of config.yaml: those of llama-swap's config-schema.json and further ones.

`name=` is the key's spelling in the file. `Meta(description=…)` is the requirement on a value, in
the words of an error message. `extra={"inert": …}` marks a key of
llama-swap's that is accepted and does nothing yet, with the text of the warning; `extra={"macros":
True}` marks text in which `${…}` stands for a macro; `extra={"secret": True}` keeps a value out of
error messages; `extra={"also": …}` is another spelling of the key, from an
earlier llama-swap; `extra={"formerly": …}` is its name in the release before.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

Seconds: TypeAlias = Annotated[float, Meta(ge=0, description="seconds, 0 or more")]
Count: TypeAlias = Annotated[int, Meta(ge=0, description="a whole number, 0 or more")]
Whole: TypeAlias = Annotated[int, Meta(description="a whole number")]
Places: TypeAlias = Annotated[int, Meta(ge=1, description="a whole number, 1 or more")]
"""Length of a queue; every request passes through one, so 0 would reject them all."""
Flag: TypeAlias = Annotated[bool, Meta(description="true or false")]
Text: TypeAlias = Annotated[str, Meta(description="text")]
Names: TypeAlias = Annotated[list[str], Meta(description="a list of names")]
Aliases: TypeAlias = Annotated[
    list[str | dict[str, Any]], Meta(description="a list of names, or of sections with an id")
]
FilePath: TypeAlias = Annotated[str, Meta(description="the path of a file")]
Size: TypeAlias = Annotated[str, Meta(description="a size like 8 GiB")]
Section: TypeAlias = Annotated[dict[str, Any], Meta(description="a section")]
MacroText: TypeAlias = Annotated[str, Meta(description="text", extra={"macros": True})]
MacroSection: TypeAlias = Annotated[
    dict[str, Any], Meta(description="a section", extra={"macros": True})
]
Command: TypeAlias = Annotated[
    str | list[str], Meta(description="a command line or a list of words", extra={"macros": True})
]


class FiltersConfig(Struct, frozen=True, kw_only=True):
    """`filters` of a model: changes to a request's body."""

    strip_params: Annotated[
        str | list[str],
        Meta(
            description="names between commas, or a list of names",
            extra={"macros": True, "also": "strip_params"},
        ),
    ] = msgspec.field(name="stripParams", default="")
    set_params: Annotated[Any, Meta(extra={"inert": "requests go on as they came"})] = (
        msgspec.field(name="setParams", default=None)
    )
    set_params_by_id: Annotated[Any, Meta(extra={"inert": "requests go on as they came"})] = (
        msgspec.field(name="setParamsByID", default=None)
    )


class MemoryConfig(Struct, frozen=True, kw_only=True):
    """`memory`: limits on the workers' memory and on memory pressure."""

    budget: Size = "0"
    threshold: Annotated[float, Meta(ge=0, le=100, description="a percentage, 0 to 100")] = 0.0
    psi_threshold: Annotated[
        float,
        Meta(ge=0, le=100, description="a percentage, 0 to 100", extra={"formerly": "stall"}),
    ] = 10.0
    critical: Annotated[float, Meta(ge=0, le=100, description="a percentage, 0 to 100")] = 0.0
    interval: Annotated[float, Meta(gt=0, description="seconds, more than 0")] = 30.0


class GroupConfig(Struct, frozen=True, kw_only=True):
    """Entry of `groups`."""

    members: Names = msgspec.field(default_factory=list)
    swap: Annotated[bool | None, Meta(description="true or false")] = None
    exclusive: Flag = True
    persistent: Flag = False
    together: Flag = False


class OnStartupConfig(Struct, frozen=True, kw_only=True):
    """`hooks.on_startup`: actions after the start of swapd."""

    preload: Names = msgspec.field(default_factory=list)


class HooksConfig(Struct, frozen=True, kw_only=True):
    """`hooks`: actions on events."""

    on_startup: OnStartupConfig = msgspec.field(default_factory=OnStartupConfig)


class LimitsConfig(Struct, frozen=True, kw_only=True):
    """`limits` of a model: limits that the kernel enforces on its worker."""

    memory: Size = "0"
    files: Annotated[int, Meta(ge=0, le=2**20, description="a whole number, 0 to 1048576")] = 0
    nice: Annotated[int, Meta(ge=0, le=19, description="a whole number, 0 to 19")] = 0


class KeyConfig(Struct, frozen=True, kw_only=True):
    """Entry of `keys`: the rights of a key's holder."""

    hash: Annotated[
        str, Meta(description="sha256: and 64 hexadecimal digits", extra={"secret": True})
    ] = ""
    models: Names = msgspec.field(default_factory=lambda: ["*"])
    admin: Flag = False
    rate: Count = 0
    priority: Whole = 0


class CorsConfig(Struct, frozen=True, kw_only=True):
    """`cors`: other origins whose pages may read from swapd."""

    allowed_origins: Annotated[list[str], Meta(description="a list of origins")] = msgspec.field(
        default_factory=list
    )


class TlsConfig(Struct, frozen=True, kw_only=True):
    """`tls`: the files that HTTPS needs, both or none."""

    cert: FilePath = ""
    key: FilePath = ""


class ModelConfig(Struct, frozen=True, kw_only=True):
    """Entry of `models`."""

    cmd: Command = ""
    cmd_stop: Command = msgspec.field(name="cmdStop", default="")
    env: Annotated[list[str], Meta(description="a list of NAME=value")] = msgspec.field(
        default_factory=list
    )
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    proxy: MacroText = ""
    check_endpoint: MacroText = msgspec.field(name="checkEndpoint", default="/health")
    ttl: Annotated[
        float, Meta(ge=-1, description="seconds, 0 for never or -1 for the default")
    ] = -1.0
    unload_timeout: Seconds = msgspec.field(name="unloadTimeout", default=0.0)
    stop_grace: Annotated[Seconds | None, Meta(description="seconds, 0 or more")] = None
    hang_timeout: Annotated[Seconds | None, Meta(description="seconds, 0 or more")] = None
    concurrency_limit: Count = msgspec.field(name="concurrencyLimit", default=0)
    max_queue: Annotated[Places | None, Meta(description="a whole number, 1 or more")] = None
    need: Size = "0"
    stamp: Text = ""
    context: Count = 0
    aliases: Aliases = msgspec.field(default_factory=list)
    filters: FiltersConfig = msgspec.field(default_factory=FiltersConfig)
    use_model_name: Text = msgspec.field(name="useModelName", default="")
    unlisted: Flag = False
    weight: Annotated[float, Meta(gt=0, description="a number, more than 0")] = 1.0
    priority: Whole = 0
    pinned: Flag = False
    min_residency: Annotated[Seconds, Meta(extra={"formerly": "min_stay"})] = 0.0
    preload: Flag = False
    name: MacroText = ""
    description: MacroText = ""
    metadata: MacroSection = msgspec.field(default_factory=dict)
    macros: MacroSection = msgspec.field(default_factory=dict)
    send_loading_state: Annotated[bool | None, Meta(description="true or false")] = msgspec.field(
        name="sendLoadingState", default=None
    )
    timeouts: Annotated[
        Any, Meta(extra={"inert": "a worker may take as long as its client waits"})
    ] = None
    capabilities: Annotated[Any, Meta(extra={"inert": "models are listed without it"})] = None


class ServerConfig(Struct, frozen=True, kw_only=True):
    """Top level of config.yaml except `models`; custom_models.yaml may set the same keys."""

    host: Annotated[str, Meta(min_length=1, description="an address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535, description="a port, 1 to 65535")] = 5847
    keys: Annotated[dict[str, Any], Meta(description="a section", extra={"secret": True})] = (
        msgspec.field(default_factory=dict)
    )
    api_keys: Annotated[list[str], Meta(description="a list of keys", extra={"secret": True})] = (
        msgspec.field(name="apiKeys", default_factory=list)
    )
    allowed_hosts: Names = msgspec.field(default_factory=list)
    cors: CorsConfig = msgspec.field(default_factory=CorsConfig)
    tls: TlsConfig = msgspec.field(default_factory=TlsConfig)
    max_body: Size = "32 MiB"
    client_timeout: Annotated[float, Meta(gt=0, description="seconds, more than 0")] = 60.0
    drain_timeout: Annotated[Seconds, Meta(extra={"formerly": "drain_grace"})] = 30.0
    max_resident: Count = 0
    memory: MemoryConfig = msgspec.field(default_factory=MemoryConfig)
    max_queued: Annotated[Count, Meta(extra={"formerly": "max_waiting"})] = 512
    max_per_tenant: Count = 0
    max_turn: Annotated[Seconds, Meta(extra={"formerly": "max_wait"})] = 60.0
    policy: Annotated[
        Literal["cost", "lru", "lru-ttl", "lfu", "ttl", "no-evict"],
        Meta(description="cost, lru, lru-ttl, lfu, ttl or no-evict"),
    ] = "cost"
    groups: Section = msgspec.field(default_factory=dict)
    warm_standby: Annotated[
        bool | None, Meta(description="true or false", extra={"formerly": "spare"})
    ] = None
    pass_env: Names = msgspec.field(default_factory=list)
    ttl: Seconds = 0.0
    max_queue: Places = 64
    stop_grace: Seconds = 5.0
    hang_timeout: Seconds = 30.0
    health_check_timeout: Annotated[float, Meta(gt=0, description="seconds, more than 0")] = (
        msgspec.field(name="healthCheckTimeout", default=120.0)
    )
    unload_timeout: Seconds = msgspec.field(name="unloadTimeout", default=0.0)
    global_ttl: Seconds = msgspec.field(name="globalTTL", default=0.0)
    log_level: Annotated[
        Literal["debug", "info", "warn", "error"], Meta(description="debug, info, warn or error")
    ] = msgspec.field(name="logLevel", default="info")
    include_aliases: Flag = msgspec.field(name="includeAliasesInList", default=False)
    macros: MacroSection = msgspec.field(default_factory=dict)

    start_port: Annotated[Any, Meta(extra={"inert": "ports are chosen among the free ones"})] = (
        msgspec.field(name="startPort", default=None)
    )
    matrix: Annotated[
        Any, Meta(extra={"inert": "models live together as memory and max_resident allow"})
    ] = None
    routing: Annotated[
        Any, Meta(extra={"inert": "models live together as memory and max_resident allow"})
    ] = None
    hooks: HooksConfig = msgspec.field(default_factory=HooksConfig)
    profiles: Annotated[Any, Meta(extra={"inert": "models keep their names"})] = None
    peers: Annotated[Any, Meta(extra={"inert": "their models are not served"})] = None
    send_loading_state: Flag = msgspec.field(name="sendLoadingState", default=False)
    capture_buffer: Annotated[Any, Meta(extra={"inert": "no request is recorded"})] = msgspec.field(
        name="captureBuffer", default=None
    )
    metrics_max_in_memory: Annotated[Any, Meta(extra={"inert": "metrics are counters"})] = (
        msgspec.field(name="metricsMaxInMemory", default=None)
    )
    log_to_stdout: Annotated[Any, Meta(extra={"inert": "logs go to files"})] = msgspec.field(
        name="logToStdout", default=None
    )
    log_time_format: Annotated[Any, Meta(extra={"inert": "log times are ISO 8601"})] = (
        msgspec.field(name="logTimeFormat", default=None)
    )
    performance: Annotated[Any, Meta(extra={"inert": "use /metrics"})] = None
    store: Annotated[Any, Meta(extra={"inert": "activity is not stored"})] = None
    ui: Annotated[Any, Meta(extra={"inert": "there are no settings for it"})] = None
    upstream: Annotated[
        Any, Meta(extra={"inert": "every path under /upstream loads its model"})
    ] = None


class CustomModelConfig(ModelConfig, frozen=True, kw_only=True):
    """Entry of `models` in custom_models.yaml: a model's keys and those of the generator."""

    sampler_args: Annotated[str, Meta(description="flags for the worker, as on a command line")] = (
        ""
    )
    ctx_size: Count = 0
    base_model: Annotated[str, Meta(description="the name of a model that was found")] = ""
    adapters: Annotated[
        dict[str, str], Meta(description="a section with a path for each adapter's name")
    ] = msgspec.field(default_factory=dict)
    mmproj: FilePath = ""
    jinja: Flag = False
    chat_template_file: FilePath = ""
    chat_template_kwargs: Section = msgspec.field(default_factory=dict)


def alias_id(alias: str | dict[str, Any]) -> str:
    """Return the name of an entry of `aliases`; empty for a section without an id."""
    return alias if isinstance(alias, str) else str(alias.get("id") or "")
