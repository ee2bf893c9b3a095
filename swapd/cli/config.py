"""The configuration files: where they are, what they say, whether they can be used.

The models there are, by the names that people use.

What counts in the end: the files, `.env` and the environment together, defaults included.

Whether the adapters that commands name are some: what a request for them would find out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from swapd.cli.client import running
from swapd.cli.output import FailedError, command, print_error, sanitize, show_bytes
from swapd.config.errors import Problem
from swapd.domain.models import Catalog, Limits
from swapd.domain.settings import ServerSettings
from swapd.gguf.llama_flags import adapter_files, speaks_llama_flags
from swapd.gguf.reader import DamagedModelError, read_header
from swapd.paths import WORKER_COMMAND, Paths, demo_directory, find_paths
from swapd.system.redact import redact_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import yaml

    from swapd.config.load import LoadedConfig
    from swapd.domain.models import Catalog
    from swapd.library.inventory import InventoryEntry


def in_use(home: Paths) -> Path:
    """The configuration that counts: that of the swapd that runs, else the home's own."""
    holder = running(home)
    return Path(holder.config) if holder is not None and holder.config else home.config


def models(home: Paths) -> list[InventoryEntry]:
    """All models by name, then what should be a model and can't be used.

    Those that a sync finds; or, where the configuration in use is not a sync's, those that stand in
    it. Raises FailedError when neither can be read.
    """
    from swapd.config.errors import ConfigError
    from swapd.library.generate import is_generated
    from swapd.library.inventory import list_inventory, mark_served, written
    from swapd.process import memory
    from swapd.system import aio

    config = in_use(home)
    if config.is_file() and not is_generated(config):
        return written(catalog(home), config.parent, home.state)
    try:
        entries = list_inventory(
            home.folder,
            os.environ,
            demo_directory(),
            now=aio.wall(),
            total_memory=memory.total(),
        )
    except ConfigError as error:
        raise FailedError(f"the models can't be listed:\n{error}") from error
    return mark_served(entries, config) if config.is_file() else entries


def catalog(home: Paths) -> Catalog:
    """What the configuration in use says. Raises FailedError when it can't be used."""

    return read(home, in_use(home)).catalog


def find(entries: list[InventoryEntry], name: str) -> InventoryEntry:
    """The model that `name` means. Raises FailedError with the nearest names."""
    from swapd.domain.model_names import AmbiguousName, SpellingIndex

    usable = {entry.name: entry for entry in entries if not entry.broken}
    exact = usable.get(name) or next((e for e in usable.values() if name in e.aliases), None)
    if exact is not None:
        return exact
    for entry in entries:
        if entry.name == name:
            raise FailedError(f"{name} can't be used: {entry.path} {entry.broken}")
    found = SpellingIndex({e.name: e.aliases for e in usable.values()}).find(name)
    if isinstance(found, AmbiguousName):
        raise FailedError(str(found))
    if found is None:
        raise FailedError(_unknown(name, usable))
    return usable[found]


def _unknown(name: str, usable: dict[str, InventoryEntry]) -> str:
    from swapd.config.errors import did_you_mean

    name = name if name.strip() and name.isprintable() else repr(name)
    if not usable:
        return f"there is no model {name}: none is configured"
    near = did_you_mean(name, [n for e in usable.values() for n in (e.name, *e.aliases)])
    more = f" and {len(usable) - 12} more" if len(usable) > 12 else ""
    return f"there is no model {name}" + (
        near or f"; there are: {', '.join(list(usable)[:12])}{more}"
    )


def path() -> int:
    """Print where the configuration in use is, for scripts."""
    print(in_use(find_paths()))
    return 0


def show() -> int:
    """Print the configuration in use as it is, but for keys that stand in it in plain text."""
    file = in_use(find_paths())
    print(redact_text(without_keys(_text(file), file)), end="")
    return 0


def without_keys(text: str, file: Path) -> str:
    """The text with `***` for each of `apiKeys`. Raises FailedError where they can't be found."""
    import yaml

    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        if "apiKeys" in text:
            message = f"{file} is not shown: it has API keys, but is no YAML; config check says why"
            raise FailedError(message) from error
        return text
    pairs = top.value if isinstance(top, yaml.MappingNode) else []
    spans = [span for key, value in pairs if key.value == "apiKeys" for span in _scalars(value)]
    for start, end in sorted(set(spans), reverse=True):
        text = f"{text[:start]}'***'{text[end:]}"
    return text


def _scalars(node: yaml.Node) -> Iterator[tuple[int, int]]:
    """Where the values below a node stand; those of the environment are no secrets here."""
    if isinstance(node.value, str):
        if "${env." not in node.value:
            yield node.start_mark.index, node.end_mark.index
        return
    for inner in node.value:
        for one in inner if isinstance(inner, tuple) else (inner,):
            yield from _scalars(one)


def check(file: Path | None) -> int:
    """Say of each file whether it can be used, and what is wrong with it where; 1 if anything is.

    Without a file, the configuration in use, and custom_models.yaml if that is config.yaml.
    """
    home = find_paths()
    if file is not None:
        return _told([_configuration(home, file)])
    used = in_use(home)
    if used == home.config and not used.exists():
        told = [(f"{used}: not there yet; {command()} sync or start makes it", "")]
    else:
        told = [_configuration(home, used)]
    return _told([*told, _customisation(home)] if used == home.config else told)


def _told(verdicts: list[tuple[str, str]]) -> int:
    for good, bad in verdicts:
        if good:
            print(f"✓ {good}")
        if bad:
            print_error(bad)
    return 1 if any(bad for _, bad in verdicts) else 0


def _configuration(home: Paths, file: Path) -> tuple[str, str]:
    """What is good to say of it, or what is wrong."""
    _text(file)
    try:
        loaded = read(home, file)
    except FailedError as error:
        return "", str(error)
    for warning in loaded.warnings:
        print_error(str(warning))
    if wrong := in_its_files(loaded, file):
        return "", "\n".join(wrong)
    count = len(loaded.catalog.models)
    return f"{file}: {count} model{'' if count == 1 else 's'}", ""


def read(home: Paths, file: Path, environ: Mapping[str, str] = os.environ) -> LoadedConfig:
    """A configuration as swapd would read it. Raises FailedError."""
    from swapd.config.env import read_env
    from swapd.config.errors import ConfigError
    from swapd.config.load import load
    from swapd.process import memory

    try:
        env = read_env(home.folder, environ)
        return load(file, env, worker_command=WORKER_COMMAND, total_memory=memory.total())
    except ConfigError as error:
        raise FailedError(f"{file} can't be used:\n{error}") from error


def in_its_files(loaded: LoadedConfig, file: Path) -> list[str]:
    """What the files that a configuration names are not good for: what start or a request says."""
    from swapd.http.tls import TlsError, new_context

    found = [str(problem) for problem in adapter_problems(loaded.catalog, file)]
    tls = loaded.settings.tls
    if tls.cert:
        try:
            new_context(tls.cert, tls.key)
        except TlsError as error:
            found.append(f"{file.name}: {error}")
    return found


def effective(home: Paths) -> LoadedConfig:
    """What swapd serves with or would: its file, or what a sync makes. Raises FailedError."""
    if (file := in_use(home)).is_file():
        return read(home, file)
    from swapd.config.errors import ConfigError
    from swapd.config.load import parse
    from swapd.library.sync import made_of, make_plan
    from swapd.process import memory
    from swapd.system import aio

    total = memory.total()
    try:
        plan = make_plan(
            home.folder, os.environ, demo_directory(), now=aio.wall(), total_memory=total
        )
        text, _ = made_of(plan, total)
        return parse(
            text, home.config.name, plan.env, worker_command=WORKER_COMMAND, total_memory=total
        )
    except ConfigError as error:
        raise FailedError(str(error)) from error


def _customisation(home: Paths) -> tuple[str, str]:
    from swapd.config.custom_models import read_custom_models
    from swapd.config.env import read_env
    from swapd.config.errors import ConfigError

    if not home.custom.is_file():
        return f"{home.custom}: not there, and not needed", ""
    try:
        custom = read_custom_models(home.custom, read_env(home.folder, os.environ))
    except ConfigError as error:
        return "", f"{home.custom} can't be used:\n{error}"
    for warning in custom.warnings:
        print_error(str(warning))
    count = len(custom.models)
    return f"{home.custom}: speaks of {count} model{'' if count == 1 else 's'}", ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        made = f"; {command()} sync makes one" if file == find_paths().config else ""
        raise FailedError(f"there is no {file}{made}") from error
    except UnicodeDecodeError as error:
        raise FailedError(f"{file} is not text in UTF-8") from error
    except OSError as error:
        raise FailedError(f"{file} can't be read: {error.strerror}") from error


def show_effective() -> int:
    """Check the configuration; then print what swapd goes by with it. 1 if it can't be used."""
    status = check(None)
    if status != 0:
        return status
    home = find_paths()
    loaded = effective(home)
    lines = [*_server(loaded.settings), *_limits(loaded.catalog.limits), *_library(home)]
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        print(f"{key:<{width}}  {sanitize(value)}")
    return 0


def _server(settings: ServerSettings) -> Iterator[tuple[str, str]]:
    names = ", ".join(key.name for key in settings.access.keys)
    yield (
        "listens at",
        f"{settings.host}, port {settings.port}{', TLS' if settings.tls.cert else ''}",
    )
    yield "keys", names or "none: whoever reaches it may use it"
    yield "longest request", show_bytes(settings.max_body_bytes)
    yield "a stop waits", f"{settings.drain_timeout:g} s for running requests"


def _limits(limits: Limits) -> Iterator[tuple[str, str]]:
    yield "memory", show_bytes(limits.budget_bytes) or "as much as there is"
    threshold = limits.threshold_percent
    above = f"above {threshold:g}% of the machine's memory, looked at every {limits.interval:g} s"
    yield "idle ones go", above if threshold else "when others need their room"
    yield "workers at once", str(limits.max_resident or "as many as there is memory for")
    yield "who goes", f"by policy {limits.policy}"
    most = f"at most {limits.max_queued}" if limits.max_queued else "any number"
    yield "requests wait", f"{most}, while others have turns of {limits.max_turn:g} s"


def _library(home: Paths) -> Iterator[tuple[str, str]]:
    """Where models are looked for, and what they are called and given."""
    from swapd.config.env import read_env, sync_settings
    from swapd.config.errors import ConfigError

    try:
        settings = sync_settings(read_env(home.folder, os.environ))
    except ConfigError as error:
        raise FailedError(str(error)) from error
    stores = settings.stores
    for source, folders in (
        ("Ollama", stores.ollama),
        ("LM Studio", stores.lmstudio),
        ("Hugging Face", stores.hub),
        ("folders", stores.folders),
    ):
        yield source, ", ".join(map(_place, folders)) or "none named in MODEL_FOLDERS"
    yield "names begin", f"with {settings.prefix}" if settings.prefix else "with nothing more"
    yield "context", f"{settings.ctx_size:,} tokens, less for large models and for small memory"
    every = f"{settings.sync_interval:g} s" if settings.sync_interval else "change that is seen"
    yield "models are", f"looked for at each start and every {every}"


def _place(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder} (not there)"


def adapter_problems(catalog: Catalog, config: Path) -> list[Problem]:
    """A sentence for each adapter that can't be used; relative paths are meant from the file's."""
    return [
        Problem(config.name, 0, f"models.{spec.name}", wrong)
        for spec in catalog.models.values()
        if speaks_llama_flags(spec.launch.argv, spec.launch.builtin)
        for files in adapter_files(spec.launch.argv)
        for wrong in _wrong(files, config.parent)
    ]


def _wrong(files: tuple[str, ...], beside: Path) -> Iterator[str]:
    whole = ",".join(files)
    for file in (whole,) if (beside / whole).is_file() else files:
        path = beside / file
        try:
            kind = read_header(path).text("general.type")
        except FileNotFoundError:
            yield f"the adapter {path} is not there"
        except OSError as error:
            yield f"the adapter {path} can't be read: {error.strerror}"
        except DamagedModelError as error:
            yield f"the adapter {path} {error}"
        else:
            if kind != "adapter":
                yield f"{path} is no adapter but a GGUF {f'of type {kind}' if kind else 'file'}"
