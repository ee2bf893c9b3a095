"""config.yaml as a Catalog and Settings: text in, values out, every fault with its line.

`parse` is pure. `load` reads the file and inspects the model files it names. Nothing here
imports numpy or gguf, to keep the daemon's memory low.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingType
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from swapd.config.access import build_access_rules, build_tls_paths
from swapd.config.decode import Diagnostics, decode
from swapd.config.errors import ConfigError, Problem, did_you_mean
from swapd.config.model_builder import BuildContext, ModelBuilder, collect_macros
from swapd.config.schema import GroupConfig, ModelConfig, ServerConfig
from swapd.config.units import parse_size, show_size
from swapd.config.yaml_nodes import MappingNode, ScalarNode, node_at, parse_tree
from swapd.domain.models import Catalog, Group, Limits, ModelSpec
from swapd.domain.settings import ServerSettings, TlsPaths
from swapd.gguf.file_stamp import file_stamp
from swapd.gguf.memory_estimate import estimate_spec


def groups_of(
    report: Diagnostics, models: Iterable[str], env: MappingType[str, str], max_resident: int = 0
) -> tuple[Group, ...]:
    """Read the groups of a configuration; a member must be a model and be in one group only.

    A group that is loaded together must not have more than `max_resident` members.
    """
    section = node_at(report.tree, ("groups",))
    if section is None or (isinstance(section, ScalarNode) and section.value is None):
        return ()
    if not isinstance(section, MappingNode):
        report.problem(("groups",), "must be a section with a group's name as each key")
        return ()
    known = set(models)
    owner: dict[str, str] = {}
    found = []
    for name, entry in section.entries.items():
        path = ("groups", name)
        if not isinstance(entry.node, MappingNode):
            report.problem(path, "must be a section with members")
            continue
        group = decode(GroupConfig, entry.node, path, report, env)
        for i, member in enumerate(group.members):
            here = (*path, "members", i)
            if member not in known:
                report.problem(here, f"there is no model {member}{did_you_mean(member, known)}")
            elif owner.setdefault(member, name) != name:
                report.problem(here, f"{member} is in group {owner[member]} already")
        members = frozenset(group.members)
        if group.together and group.swap:
            report.problem((*path, "swap"), "must be false for members that are loaded together")
        if group.together and 0 < max_resident < len(group.members):
            message = f"{len(group.members)} members can't be together: max_resident is"
            report.problem((*path, "together"), f"{message} {max_resident}")
        swap = not group.together if group.swap is None else group.swap
        found.append(Group(name, members, swap, group.exclusive, group.persistent, group.together))
    return tuple(found)


_PORT_VARIABLES = ("SWAPD_PORT", "LLAMA_SWAP_PORT")


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """Values of a usable file, with warnings for its author."""

    catalog: Catalog
    settings: ServerSettings
    warnings: tuple[Problem, ...] = ()


def load(
    path: Path, env: MappingType[str, str], *, worker_command: tuple[str, ...], total_memory: int
) -> LoadedConfig:
    """Read a configuration file. Raises ConfigError with all of its problems.

    `env` is the environment, `.env` included; `worker_command` replaces `${worker}`;
    `total_memory` is the machine's, in bytes, the base of percentages. A model without
    `need` gets an estimate by its file, relative to the configuration's folder; an estimate
    above the budget reserves all of the budget, with a warning, because it is only an estimate of
    the worker's memory.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
        raise ConfigError([Problem(path.name, 0, "", message)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem(path.name, 0, "", "is not text in UTF-8")]) from error
    loaded = parse(text, path.name, env, worker_command=worker_command, total_memory=total_memory)
    loaded = replace(loaded, settings=_with_paths(loaded.settings, path.parent))
    return _with_needs(loaded, path)


def parse(
    text: str,
    file: str,
    env: MappingType[str, str],
    *,
    worker_command: tuple[str, ...],
    total_memory: int,
) -> LoadedConfig:
    """Parse a configuration without reading any other file; `file` is its name in messages."""
    tree, problems = parse_tree(text, file)
    # Sections for YAML anchors that are used elsewhere, as in compose files.
    anchors = frozenset(key for key in tree.entries if key.startswith("x-"))
    report = Diagnostics(file, tree, problems)
    server = decode(ServerConfig, tree, (), report, env, beside=anchors | {"models"})
    context = BuildContext(server, collect_macros(("macros",), report), env, worker_command)
    models = _models(tree, context, report)
    _check_names(models, report)
    _preload(server.hooks.on_startup.preload, models, report)
    limits = replace(
        _limits(server, report, total_memory),
        groups=groups_of(report, models, env, server.max_resident),
    )
    settings = replace(
        _settings(server, report, env),
        access=build_access_rules(report, server, models.values(), env),
    )
    if server.ttl and server.global_ttl:
        report.problem(("globalTTL",), "means the same as ttl; give one of them")
    for spec in models.values():
        if limits.budget_bytes and spec.serving.need_bytes > limits.budget_bytes:
            budget = show_size(limits.budget_bytes)
            report.problem(
                ("models", spec.name, "need"),
                f"{show_size(spec.serving.need_bytes)} is more than memory.budget, {budget}",
            )
    if report.problems:
        # A cause found twice (a macro in several words) is reported once.
        raise ConfigError(dict.fromkeys(sorted(report.problems, key=lambda p: p.line)))
    catalog = Catalog(MappingProxyType(models), limits)
    return LoadedConfig(catalog, settings, tuple(dict.fromkeys(report.warnings)))


def _models(tree: MappingNode, context: BuildContext, report: Diagnostics) -> dict[str, ModelSpec]:
    entry = tree.entries.get("models")
    if entry is None or (isinstance(entry.node, ScalarNode) and entry.node.value is None):
        report.problem(("models",), "missing; a configuration without models has models: {}")
        return {}
    if not isinstance(entry.node, MappingNode):
        report.problem(("models",), "must be a section with a model's name as each key")
        return {}
    found: dict[str, ModelSpec] = {}
    for name, model_entry in entry.node.entries.items():
        path = ("models", name)
        if not name.strip():
            report.problem(path, "a model's name cannot be empty")
        elif not isinstance(model_entry.node, MappingNode):
            report.problem(path, "must be a section with at least cmd")
        else:
            model = decode(ModelConfig, model_entry.node, path, report, context.env)
            spec = ModelBuilder(name, model, context, report).build()
            if spec is not None:
                found[name] = spec
    return found


def _check_names(models: MappingType[str, ModelSpec], report: Diagnostics) -> None:
    """Check that every name means one model: no alias twice, none that is a model's name."""
    owner: dict[str, str] = {}
    for spec in models.values():
        for i, alias in enumerate(spec.presentation.aliases):
            path = ("models", spec.name, "aliases", i)
            if not alias.strip():
                report.problem(path, "an alias cannot be empty")
            elif alias in models:
                report.problem(path, f"{alias} is the name of a model")
            elif alias in owner:
                report.problem(path, f"{alias} already stands for {owner[alias]}")
            else:
                owner[alias] = spec.name


def _preload(names: list[str], models: dict[str, ModelSpec], report: Diagnostics) -> None:
    """Mark the models to be loaded at the start, given by name or alias."""
    catalog = Catalog(MappingProxyType(models))
    for i, name in enumerate(names):
        spec = catalog.resolve(name)
        if spec is None:
            path = ("hooks", "on_startup", "preload", i)
            report.problem(path, f"there is no model {name}{did_you_mean(name, models)}")
        else:
            models[spec.name] = replace(spec, serving=replace(spec.serving, preload=True))


def _limits(server: ServerConfig, report: Diagnostics, total_memory: int) -> Limits:
    budget = _size(server.memory.budget, ("memory", "budget"), report, total_memory)
    memory = server.memory
    if 0 < memory.critical <= memory.threshold:
        message = f"must be above memory.threshold, {memory.threshold:g}, or 0 for never"
        report.problem(("memory", "critical"), message)
    return Limits(
        max_resident=server.max_resident,
        budget_bytes=budget,
        require_free_memory=bool(budget or memory.threshold),
        threshold_percent=memory.threshold,
        psi_threshold_percent=memory.psi_threshold,
        critical_percent=memory.critical,
        interval=memory.interval,
        max_queued=server.max_queued,
        max_per_tenant=server.max_per_tenant,
        max_turn=server.max_turn,
        policy=server.policy,
    )


def _settings(
    server: ServerConfig, report: Diagnostics, env: MappingType[str, str]
) -> ServerSettings:
    return ServerSettings(
        host=env.get("SWAPD_HOST") or server.host,
        port=_port(server, report, env),
        max_body_bytes=_size(server.max_body, ("max_body",), report),
        client_timeout=server.client_timeout,
        drain_timeout=server.drain_timeout,
        warm_standby=server.warm_standby,
        pass_env=tuple(server.pass_env),
        log_level=server.log_level,
        include_aliases=server.include_aliases,
        tls=build_tls_paths(report, server),
    )


def _with_paths(settings: ServerSettings, beside: Path) -> ServerSettings:
    """Resolve relative paths against the configuration's folder."""
    cert, key = (
        str(beside.absolute() / Path(file).expanduser()) if file else ""
        for file in (settings.tls.cert, settings.tls.key)
    )
    return replace(settings, tls=TlsPaths(cert, key))


def _port(server: ServerConfig, report: Diagnostics, env: MappingType[str, str]) -> int:
    """Return the port; the environment takes precedence over the file."""
    for name in _PORT_VARIABLES:
        text = env.get(name, "").strip()
        if not text:
            continue
        if re.fullmatch(r"\d{1,5}", text) and 1 <= int(text) <= 65535:
            return int(text)
        message = f"must be a port, 1 to 65535, not {text}"
        report.problems.append(Problem("environment", 0, name, message))
    return server.port


def _size(text: str, path: tuple[str, ...], report: Diagnostics, whole: int | None = None) -> int:
    try:
        return parse_size(text, whole)
    except ValueError as error:
        report.problem(path, f"{error}, not {text}")
        return 0


def _with_needs(loaded: LoadedConfig, path: Path) -> LoadedConfig:
    budget = loaded.catalog.limits.budget_bytes
    models: dict[str, ModelSpec] = {}
    warnings = list(loaded.warnings)
    for name, spec in loaded.catalog.models.items():
        need = spec.serving.need_bytes or estimate_spec(spec, path.parent)
        if budget and need > budget:
            message = (
                f"needs about {show_size(need)}, more than memory.budget, "
                f"{show_size(budget)}: it will run alone, if it runs"
            )
            warnings.append(Problem(path.name, 0, f"models.{name}", message))
            need = budget
        stamp = spec.launch.stamp or file_stamp(spec.launch.argv, spec.launch.builtin, path.parent)
        launch = replace(spec.launch, stamp=stamp) if stamp != spec.launch.stamp else spec.launch
        serving = replace(spec.serving, need_bytes=need)
        models[name] = ModelSpec(spec.name, launch, serving, spec.presentation)
    catalog = replace(loaded.catalog, models=MappingProxyType(models))
    return replace(loaded, catalog=catalog, warnings=tuple(warnings))
