"""`key`: add, list and remove API keys. A key is shown once; only its hash is stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from swapd.cli.options import Config, Json
from swapd.cli.output import FailedError, command, print_error, print_json, table
from swapd.paths import demo_directory, find_paths

PREFIX = "sk-swapd-"
RANDOM_BYTES = 32
KeyName = Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice.")]


def group() -> typer.Typer:
    """Return the group of commands about keys."""
    app = typer.Typer(
        help="API keys for the HTTP endpoint: add, list, rm.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    app.command("add")(add)
    app.command("list")(list_)
    app.command("rm")(rm)
    return app


def add(
    name: KeyName,
    models: Annotated[
        list[str] | None,
        typer.Option(help="Models it may use, separated by commas; * for any characters."),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Allow everything, logs and unloading too.")
    ] = False,
    rate: Annotated[int, typer.Option(help="Requests per minute; 0: no limit.", min=0)] = 0,
    priority: Annotated[
        int, typer.Option(help="Higher goes first, 30 s per step; added to the model's.")
    ] = 0,
    config: Config = None,
) -> int:
    """Create a key and print it once."""
    import secrets

    from swapd.config.access import NAME, hash_of
    from swapd.system.lockfile import exclusive_lock

    if not NAME.fullmatch(name):
        raise FailedError(f"{name!r} can't be a key's name: allowed are A-Z a-z 0-9 _ . -", 2)
    names = [part.strip() for text in models or () for part in text.split(",") if part.strip()]
    if models is not None and not names:
        raise FailedError("--models names no model; without it the key allows all of them", 2)
    if admin and names:
        raise FailedError("--admin allows every model: leave out either --admin or --models", 2)
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    entry: dict[str, object] = {"hash": hash_of(key)}
    if names:
        entry["models"] = names
    if admin:
        entry["admin"] = True
    if rate:
        entry["rate"] = rate
    if priority:
        entry["priority"] = priority
    with exclusive_lock(find_paths().edits):
        file = _KeyFile(config)
        first = _store(file, name, entry)
    print(key)
    print_error(f"{file.path} has its SHA-256 sum; the key itself is not shown again")
    _warn_of_unknown_models(names, config)
    if first:
        print_error("as long as there is a key, every HTTP request but GET /health needs one")
    return 0


def _store(file: _KeyFile, name: str, entry: dict[str, object]) -> bool:
    """Write the key; return True if it is the first one. Raises FailedError."""
    from swapd.config.yaml_edit import put

    known = file.names()
    if name in known:
        raise FailedError(f"there is a key {name} already; {command()} key rm {name} removes it")
    file.write(put(file.text, ("keys", name), entry, file.path.name))
    return not known


def _warn_of_unknown_models(patterns: list[str], config: Path | None) -> None:
    """Print a warning for each pattern that matches no model."""
    from swapd.cli.catalog import active_config, read_config
    from swapd.config.access import opens_nothing

    paths = find_paths()
    file = config or active_config(paths)
    models = read_config(paths, file).catalog.models.values() if patterns else ()
    for _, message in opens_nothing(patterns, models):
        print_error(message)


def list_(config: Config = None, as_json: Json = False) -> int:
    """List the keys and their permissions."""
    from swapd.cli.catalog import active_config, read_config

    paths = find_paths()
    keys = read_config(paths, config or active_config(paths)).settings.access.keys
    if as_json:
        report = [
            {
                "name": key.name,
                "models": key.models,
                "admin": key.admin,
                "rate": key.rate,
                "priority": key.priority,
            }
            for key in keys
        ]
        print_json({"keys": report})
    elif not keys:
        print("there are no keys: requests need none")
    else:
        rows = [
            [
                key.name,
                "all" if key.admin or "*" in key.models else ", ".join(key.models) or "none",
                "yes" if key.admin else "",
                str(key.rate or ""),
                str(key.priority or ""),
            ]
            for key in keys
        ]
        print("\n".join(table(["KEY", "MODELS", "ADMIN", ">PER MINUTE", ">PRIORITY"], rows)))
    return 0


def rm(name: KeyName, config: Config = None) -> int:
    """Remove a key."""
    from swapd.config.yaml_edit import EditError, take
    from swapd.system.lockfile import exclusive_lock

    with exclusive_lock(find_paths().edits):
        file = _KeyFile(config)
        try:
            file.write(take(file.text, ("keys", name), f"a key {name}", file.path.name))
        except EditError as error:
            raise FailedError(f"nothing was changed: {error}") from error
    print(f"removed {name}")
    if not file.names():
        print_error("that was the last key: requests need none now")
    return 0


class _KeyFile:
    """The file that holds the keys: custom_models.yaml, or a handwritten configuration.

    A running swapd decides which: the file belongs to the configuration it uses.
    """

    def __init__(self, config: Path | None) -> None:
        from swapd.cli.catalog import active_config
        from swapd.library.generate import MARKER

        self._paths = find_paths()
        self._paths.folder.mkdir(parents=True, exist_ok=True)
        if config is None and (used := active_config(self._paths)) != self._paths.config:
            config = used
        self._handwritten = config is not None
        self.path = config.absolute() if config is not None else self._paths.custom
        if config is None and self._paths.config.is_file():
            with self._paths.config.open("rb") as file:
                if not file.read(len(MARKER)).startswith(MARKER.encode()):
                    self._handwritten, self.path = True, self._paths.config
        self.text = self._read()

    def _read(self) -> str:
        try:
            return self.path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            if self._handwritten:
                raise
            return ""
        except UnicodeDecodeError as error:
            raise FailedError(f"{self.path} is not text in UTF-8") from error

    def names(self) -> list[str]:
        """Return the names of the keys in the file."""
        from swapd.config.errors import ConfigError
        from swapd.config.yaml_nodes import MappingNode, node_at, parse_tree

        try:
            tree, _ = parse_tree(self.text, self.path.name)
        except ConfigError as error:
            raise FailedError(f"nothing was changed:\n{error}") from error
        section = node_at(tree, ("keys",))
        return list(section.entries) if isinstance(section, MappingNode) else []

    def write(self, text: str) -> None:
        """Replace the file, if the configuration is valid with the text, and apply it."""
        from swapd.cli.client import request_reload
        from swapd.cli.sync import run_sync
        from swapd.config.errors import ConfigError
        from swapd.system.state_files import replace_text

        try:
            self._check(text)
        except ConfigError as error:
            raise FailedError(f"nothing was changed:\n{error}") from error
        replace_text(self.path, text)
        self.text = text
        if self._handwritten:
            request_reload(self._paths)
        else:
            run_sync(output=lambda _: None)

    def _check(self, text: str) -> None:
        """Raise ConfigError when the configuration would be invalid with the text."""
        from swapd.config.env import read_env
        from swapd.config.load import parse
        from swapd.library.sync import make_plan, render
        from swapd.paths import WORKER_COMMAND
        from swapd.process import memory
        from swapd.system.aio import wall

        folder, total = self._paths.folder, memory.total()
        if self._handwritten:
            env = read_env(folder, os.environ)
            parse(text, self.path.name, env, worker_command=WORKER_COMMAND, total_memory=total)
        else:
            plan = make_plan(
                folder,
                os.environ,
                demo_directory(),
                now=wall(),
                total_memory=total,
                custom_text=text,
            )
            render(plan, total)
