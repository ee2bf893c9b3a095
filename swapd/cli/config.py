"""`config`: check and show the configuration, and the settings that result from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swapd.cli.output import FailedError, command, print_error, sanitize, show_bytes
from swapd.paths import Paths, find_paths

if TYPE_CHECKING:
    import yaml

    from swapd.config.errors import Problem
    from swapd.config.load import LoadedConfig
    from swapd.domain.models import Catalog, Limits
    from swapd.domain.settings import ServerSettings

File = Annotated[Path | None, typer.Argument(metavar="FILE", help="Another configuration.")]


def group() -> typer.Typer:
    """Return the group of commands about the configuration."""
    app = typer.Typer(
        help="Check and show the configuration and its settings.",
        invoke_without_command=True,
        rich_markup_mode=None,
    )
    app.callback()(_show_settings)
    app.command("check")(check)
    app.command("path")(path)
    app.command("show")(show)
    return app


def _show_settings(context: typer.Context) -> int:
    return show_settings() if context.invoked_subcommand is None else 0


def path() -> int:
    """Print the path of config.yaml."""
    from swapd.cli.catalog import active_config

    print(active_config(find_paths()))
    return 0


def show() -> int:
    """Print config.yaml."""
    from swapd.cli.catalog import active_config
    from swapd.system.redact import redact_text

    file = active_config(find_paths())
    print(redact_text(redact_keys(_read_text(file), file)), end="")
    return 0


def redact_keys(text: str, file: Path) -> str:
    """Replace each of `apiKeys` by `***`. Raises FailedError where they can't be located."""
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
    """Yield the spans of values below a node, except references to environment variables."""
    if isinstance(node.value, str):
        if "${env." not in node.value:
            yield node.start_mark.index, node.end_mark.index
        return
    for inner in node.value:
        for one in inner if isinstance(inner, tuple) else (inner,):
            yield from _scalars(one)


def check(file: File = None) -> int:
    """Check the configuration and print each problem with its line.

    Exit status 1: it can't be used.
    """
    from swapd.cli.catalog import active_config

    paths = find_paths()
    if file is not None:
        return _print_results([_check_config(paths, file)])
    used = active_config(paths)
    if used == paths.config and not used.exists():
        results = [(f"{used}: not there yet; {command()} sync or start creates it", "")]
    else:
        results = [_check_config(paths, used)]
    # custom_models.yaml affects the generated config.yaml alone.
    if used == paths.config:
        results.append(_check_custom(paths))
    return _print_results(results)


def _print_results(results: list[tuple[str, str]]) -> int:
    for good, bad in results:
        if good:
            print(f"✓ {good}")
        if bad:
            print_error(bad)
    return 1 if any(bad for _, bad in results) else 0


def _check_config(paths: Paths, file: Path) -> tuple[str, str]:
    """Return a summary of the configuration, or its problems."""
    from swapd.cli.catalog import read_config

    _read_text(file)
    try:
        loaded = read_config(paths, file)
    except FailedError as error:
        return "", str(error)
    for warning in loaded.warnings:
        print_error(str(warning))
    if problems := file_problems(loaded, file):
        return "", "\n".join(problems)
    return f"{file}: {_count(len(loaded.catalog.models))}", ""


def _check_custom(paths: Paths) -> tuple[str, str]:
    from swapd.config.custom_models import read_custom_models
    from swapd.config.env import read_env
    from swapd.config.errors import ConfigError

    if not paths.custom.is_file():
        return f"{paths.custom}: not there, and not needed", ""
    try:
        custom = read_custom_models(paths.custom, read_env(paths.folder, os.environ))
    except ConfigError as error:
        return "", f"{paths.custom} can't be used:\n{error}"
    for warning in custom.warnings:
        print_error(str(warning))
    return f"{paths.custom}: {_count(len(custom.models))}", ""


def _count(models: int) -> str:
    return f"{models} model{'' if models == 1 else 's'}"


def file_problems(loaded: LoadedConfig, file: Path) -> list[str]:
    """Return the problems of the files that a configuration names, which a start would report."""
    from swapd.http.tls import TlsError, new_context

    found = [str(problem) for problem in _adapter_problems(loaded.catalog, file)]
    tls = loaded.settings.tls
    if tls.cert:
        try:
            new_context(tls.cert, tls.key)
        except TlsError as error:
            found.append(f"{file.name}: {error}")
    return found


def _adapter_problems(catalog: Catalog, config: Path) -> list[Problem]:
    """Return a problem for each unusable adapter; relative paths start at the file's folder."""
    from swapd.config.errors import Problem
    from swapd.gguf.llama_flags import adapter_files, speaks_llama_flags

    return [
        Problem(config.name, 0, f"models.{spec.name}", problem)
        for spec in catalog.models.values()
        if speaks_llama_flags(spec.launch.argv, spec.launch.builtin)
        for files in adapter_files(spec.launch.argv)
        for problem in _unusable_adapters(files, config.parent)
    ]


def _unusable_adapters(files: tuple[str, ...], folder: Path) -> Iterator[str]:
    from swapd.gguf.reader import DamagedModelError, read_header

    # A flag takes several files between commas, and a file's name may contain a comma.
    whole = ",".join(files)
    for file in (whole,) if (folder / whole).is_file() else files:
        path = folder / file
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


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        hint = f"; {command()} sync creates it" if file == find_paths().config else ""
        raise FailedError(f"there is no {file}{hint}") from error
    except UnicodeDecodeError as error:
        raise FailedError(f"{file} is not text in UTF-8") from error
    except OSError as error:
        raise FailedError(f"{file} can't be read: {error.strerror}") from error


def show_settings() -> int:
    """Check the configuration, then print the resulting settings; return 1 if it is invalid."""
    from swapd.cli.catalog import read_active_config

    status = check(None)
    if status != 0:
        return status
    paths = find_paths()
    loaded = read_active_config(paths)
    lines = [
        *_server_settings(loaded.settings),
        *_limits(loaded.catalog.limits),
        *_library_settings(paths),
    ]
    width = max(len(key) for key, _ in lines)
    for key, value in lines:
        print(f"{key:<{width}}  {sanitize(value)}")
    return 0


def _server_settings(settings: ServerSettings) -> Iterator[tuple[str, str]]:
    names = ", ".join(key.name for key in settings.access.keys)
    tls = ", TLS" if settings.tls.cert else ""
    yield "listens at", f"{settings.host}, port {settings.port}{tls}"
    yield "keys", names or "none: requests need no key"
    yield "longest request", show_bytes(settings.max_body_bytes)
    yield "stop", f"waits {settings.drain_timeout:g} s for running requests"


def _limits(limits: Limits) -> Iterator[tuple[str, str]]:
    yield "memory", show_bytes(limits.budget_bytes) or "no limit but the machine's"
    threshold = limits.threshold_percent
    above = f"above {threshold:g}% of the machine's memory, measured every {limits.interval:g} s"
    yield "idle workers", f"stopped {above if threshold else 'when others need their memory'}"
    yield "workers at once", str(limits.max_resident or "no limit but memory")
    yield "eviction", f"policy {limits.policy}"
    most = f"at most {limits.max_queued}" if limits.max_queued else "any number of"
    yield "queue", f"{most} requests; a model serves up to {limits.max_turn:g} s while others wait"


def _library_settings(paths: Paths) -> Iterator[tuple[str, str]]:
    """Yield the folders that are scanned for models, and the defaults of the models."""
    from swapd.config.env import read_env, sync_settings
    from swapd.config.errors import ConfigError

    try:
        settings = sync_settings(read_env(paths.folder, os.environ))
    except ConfigError as error:
        raise FailedError(str(error)) from error
    stores = settings.stores
    for source, folders in (
        ("Ollama", stores.ollama),
        ("LM Studio", stores.lmstudio),
        ("Hugging Face", stores.hub),
        ("folders", stores.folders),
    ):
        yield source, ", ".join(map(_describe_folder, folders)) or "none in MODEL_FOLDERS"
    yield "prefix of names", settings.prefix or "none"
    yield "context", f"{settings.ctx_size:,} tokens, less for large models and for little memory"
    every = f"every {settings.sync_interval:g} s" if settings.sync_interval else "after each change"
    yield "sync", f"at each start and {every}"


def _describe_folder(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder} (not there)"
