"""Builder of a ModelSpec from the schema of one model. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping as MappingType
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from swapd.config.decode import Diagnostics
from swapd.config.errors import Path
from swapd.config.macros import RESERVED, Macro, MacroError, MacroExpander, MacroScope
from swapd.config.schema import ModelConfig, ServerConfig, alias_id
from swapd.config.units import parse_size
from swapd.config.yaml_nodes import MappingNode, ScalarNode, node_at
from swapd.domain.models import LaunchSpec, ModelSpec, Presentation, ServingPolicy, WorkerLimits
from swapd.gguf.llama_flags import flag_value, speaks_llama_flags

_EXTERNAL_LIMIT = 10
"""Concurrent requests of an external worker without a given number; llama-swap's default."""
_PORT = frozenset({"PORT"})
_PORT_STAYS = "${PORT} stays as written: the port is chosen when the worker starts"
_PORT_PID = frozenset({"PORT", "PID"})
_MACRO_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Values shared by all models of a file."""

    server: ServerConfig
    macros: MappingType[str, Macro]
    env: MappingType[str, str]
    worker: tuple[str, ...]


class ModelBuilder:
    """Builder of one model; all problems are added to the report."""

    def __init__(
        self, name: str, model: ModelConfig, context: BuildContext, report: Diagnostics
    ) -> None:
        self._name = name
        self._model = model
        self._context = context
        self._report = report
        self._path: Path = ("models", name)
        macros = {**context.macros, **collect_macros((*self._path, "macros"), report)}
        self._expander = MacroExpander(MacroScope(name, macros, context.env, context.worker))

    def build(self) -> ModelSpec | None:
        """Return the model, or None when its command cannot be used; the report has the reason."""
        if not self._model.cmd:
            self._report.problem(self._path, "has no cmd, the command that serves it")
            return None
        before = len(self._report.problems)
        argv = self._command("cmd", self._model.cmd, _PORT)
        if len(self._report.problems) == before and not argv:
            self._problem("cmd", "holds no command")
        if not argv:
            return None
        worker = self._context.worker
        builtin = argv[: len(worker)] == worker
        proxy, endpoint = self._proxy(builtin, argv), self._check_endpoint()
        model, server = self._model, self._context.server
        grace = server.unload_timeout or server.stop_grace
        return ModelSpec(
            name=self._name,
            launch=LaunchSpec(
                argv=_completed(argv, self._name) if builtin else argv,
                env=self._environment(),
                limits=self._limits(),
                builtin=builtin,
                proxy=proxy,
                check_endpoint=endpoint,
                context=model.context or self._context_size(argv, builtin),
                stamp=model.stamp,
            ),
            serving=ServingPolicy(
                stop_argv=self._command("cmdStop", model.cmd_stop, _PORT_PID),
                start_timeout=server.health_check_timeout,
                stop_grace=model.unload_timeout or grace
                if model.stop_grace is None
                else model.stop_grace,
                hang_timeout=server.hang_timeout
                if model.hang_timeout is None
                else model.hang_timeout,
                liveness_probe=not builtin and model.hang_timeout is not None and bool(endpoint),
                need_bytes=self._need(),
                slots=self._slots(argv, builtin),
                max_queue=server.max_queue if model.max_queue is None else model.max_queue,
                ttl=server.ttl or server.global_ttl if model.ttl < 0 else model.ttl,
                weight=model.weight,
                priority=model.priority,
                pinned=model.pinned,
                min_residency=model.min_residency,
                preload=model.preload,
                upstream_name=model.use_model_name,
                drop_params=self._drop_params(),
                send_loading_state=server.send_loading_state
                if model.send_loading_state is None
                else model.send_loading_state,
            ),
            presentation=Presentation(
                aliases=self._aliases(),
                unlisted=model.unlisted,
                title=self._label("name", model.name),
                description=self._label("description", model.description),
                metadata=self._metadata(),
            ),
        )

    def _problem(self, key: str, message: str) -> None:
        self._report.problem((*self._path, key), message)

    def _command(self, key: str, command: str | list[str], keep: frozenset[str]) -> tuple[str, ...]:
        before = len(self._report.problems)
        try:
            argv = self._expander.words(command, lambda what: self._problem(key, what), keep)
        except ValueError as error:
            self._problem(key, f"cannot be split into words: {error}")
            return ()
        if any("\0" in word for word in argv):
            self._problem(key, "holds a NUL character")
        return argv if len(self._report.problems) == before else ()

    def _text(self, key: str, text: str) -> str:
        try:
            return self._expander.text(text, _PORT)
        except MacroError as error:
            self._problem(key, str(error))
            return ""

    def _label(self, key: str, text: str) -> str:
        """Expand a text for people; it is shown before a worker runs, so `${PORT}` is not known."""
        shown = self._text(key, text)
        if "${PORT}" in shown:
            self._report.warn((*self._path, key), _PORT_STAYS)
        return shown

    def _proxy(self, builtin: bool, argv: tuple[str, ...]) -> str:
        """Return an external worker's URL; empty for the built-in one, which reports its own."""
        given = self._text("proxy", self._model.proxy)
        if builtin:
            if given:
                path = (*self._path, "proxy")
                self._report.warn(path, "has no effect: the built-in worker reports its address")
            return ""
        in_cmd = any("${PORT}" in word for word in argv)
        if not in_cmd and not given:
            self._problem("cmd", "does not use ${PORT}, so proxy must say where the worker answers")
        if not in_cmd and "${PORT}" in given:
            self._problem(
                "proxy", "uses ${PORT}, but cmd does not, so the worker does not get the port"
            )
        proxy = given or "http://127.0.0.1:${PORT}"
        if not _is_url(proxy.replace("${PORT}", "1")):
            self._problem("proxy", f"must be a URL like http://127.0.0.1:8080, not {given}")
        return proxy

    def _check_endpoint(self) -> str:
        endpoint = self._text("checkEndpoint", self._model.check_endpoint)
        if endpoint == "none":
            return ""
        if not endpoint.startswith("/"):
            self._problem("checkEndpoint", f"must be a path like /health, or none, not {endpoint}")
        return endpoint

    def _environment(self) -> tuple[tuple[str, str], ...]:
        pairs = []
        for i, entry in enumerate(self._model.env):
            match = _VARIABLE.fullmatch(entry)
            if match is None or "\0" in entry:
                self._report.problem((*self._path, "env", i), f"must be NAME=value, not {entry!r}")
            else:
                pairs.append((match[1], match[2]))
        return tuple(pairs)

    def _limits(self) -> WorkerLimits:
        given = self._model.limits
        memory = self._size(("limits", "memory"), given.memory)
        if sys.platform != "linux" and (memory or given.files):
            path = (*self._path, "limits")
            self._report.warn(path, "memory and files have an effect on Linux only")
        return WorkerLimits(min(memory, 2**62), given.files, given.nice)

    def _need(self) -> int:
        return self._size(("need",), self._model.need)

    def _size(self, keys: tuple[str, ...], text: str) -> int:
        try:
            return parse_size(text)
        except ValueError as error:
            self._report.problem((*self._path, *keys), f"{error}, not {text}")
            return 0

    def _slots(self, argv: tuple[str, ...], builtin: bool) -> int:
        limit = self._model.concurrency_limit
        if not speaks_llama_flags(argv, builtin):
            return limit or _EXTERNAL_LIMIT
        slots = self._number(argv, 1, "--parallel", "-np")
        if builtin and slots < 1:
            self._problem("cmd", "--parallel must be 1 or more")
        slots = max(slots, 1)
        if not limit:
            return slots
        return min(slots, limit) if builtin else limit

    def _context_size(self, argv: tuple[str, ...], builtin: bool) -> int:
        short = ("-c",) if speaks_llama_flags(argv, builtin) else ()
        return max(self._number(argv, 0, "--ctx-size", *short), 0)

    def _number(self, argv: tuple[str, ...], default: int, *names: str) -> int:
        text = flag_value(argv, *names)
        if text is None:
            return default
        if not re.fullmatch(r"-?\d{1,9}", text):
            self._problem("cmd", f"{names[0]} must be a whole number, not {text}")
            return default
        return int(text)

    def _aliases(self) -> tuple[str, ...]:
        for i, alias in enumerate(self._model.aliases):
            path = (*self._path, "aliases", i)
            if isinstance(alias, dict):
                for key in sorted(alias.keys() - {"id"}):
                    if key in ("name", "unlisted"):
                        self._report.warn((*path, key), "has no effect yet: its id alone counts")
                    else:
                        self._report.problem(
                            (*path, key), "is not a key of an alias, which has an id"
                        )
        return tuple(alias_id(alias) for alias in self._model.aliases)

    def _drop_params(self) -> tuple[str, ...]:
        given = self._model.filters.strip_params
        path = (*self._path, "filters", "stripParams")
        dropped: list[str] = []
        for entry in [given] if isinstance(given, str) else given:
            try:
                names = self._expander.text(entry).split(",")
            except MacroError as error:
                self._report.problem(path, str(error))
                continue
            dropped += [name.strip() for name in names if name.strip()]
        if "model" in dropped:
            self._report.warn(path, "model stays in every request and cannot be removed")
        return tuple(dict.fromkeys(name for name in dropped if name != "model"))

    def _metadata(self) -> MappingType[str, object]:
        try:
            made = self._expander.value(self._model.metadata, _PORT)
        except MacroError as error:
            self._problem("metadata", str(error))
            made = {}
        if "${PORT}" in repr(made):
            self._report.warn((*self._path, "metadata"), _PORT_STAYS)
        return MappingProxyType(made if isinstance(made, dict) else {})


def collect_macros(path: Path, report: Diagnostics) -> dict[str, Macro]:
    """Collect the macros of the section at `path`; invalid ones are reported.

    Their text is taken from the file unchanged, so that `1.10` stays `1.10`.
    """
    section = node_at(report.tree, path)
    found: dict[str, Macro] = {}
    entries = section.entries if isinstance(section, MappingNode) else {}
    for name, entry in entries.items():
        here = (*path, name)
        if name in RESERVED or name.startswith("env."):
            report.problem(here, f"${{{name}}} has a meaning of its own and cannot be a macro")
        elif not _MACRO_NAME.fullmatch(name):
            report.problem(here, "a macro's name is 1 to 63 of A-Z a-z 0-9 _ -")
        elif not isinstance(entry.node, ScalarNode):
            report.problem(here, "must be text, a number or true or false")
        else:
            value = entry.node.value
            found[name] = Macro("" if value is None else entry.node.text, value)
    return found


def _completed(argv: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Complete the built-in worker's command: the model's name, and port 0 (any) unless given."""
    if flag_value(argv, "--alias", "-a") is None:
        argv = (*argv, "--alias", name)
    if flag_value(argv, "--port") is not None:
        return argv
    host = () if flag_value(argv, "--host") is not None else ("--host", "127.0.0.1")
    return (*argv, *host, "--port", "0")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # Reading the port checks it.
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
