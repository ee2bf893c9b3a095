"""Commands about API keys: their options, and no more.

API keys: made, listed, taken out. A key is shown once; what is kept is its sum.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from swapd.cli.config import in_use, read
from swapd.cli.options import Config, Json
from swapd.cli.output import FailedError, command, print_error, print_json, table
from swapd.cli.sync import request_reload, sync_models
from swapd.paths import demo_directory, find_paths
from swapd.system.lockfile import exclusive_lock

KeyName = Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice.")]


def add(
    name: KeyName,
    models: Annotated[
        list[str] | None,
        typer.Option(help="Models it is good for, between commas; * for any characters."),
    ] = None,
    admin: Annotated[
        bool, typer.Option("--admin", help="Good for everything, logs and unloading too.")
    ] = False,
    rate: Annotated[int, typer.Option(help="Requests a minute; 0: no limit.", min=0)] = 0,
    priority: Annotated[
        int, typer.Option(help="Higher goes first, 30 s for each step; added to the model's.")
    ] = 0,
    config: Config = None,
) -> None:
    """Make a key and print it, this once."""

    raise typer.Exit(add_key(name, models, admin, rate, priority, config))


def list_(config: Config = None, as_json: Json = False) -> None:
    """List the keys and what each is good for."""

    raise typer.Exit(list_keys(config, as_json))


def rm(name: KeyName, config: Config = None) -> None:
    """Take a key out."""

    raise typer.Exit(remove_key(name, config))


def key() -> typer.Typer:
    """The group of commands about keys."""
    group = typer.Typer(
        help="API keys for the HTTP endpoint: add, list, rm.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("add")(add)
    group.command("list")(list_)
    group.command("rm")(rm)
    return group


PREFIX = "sk-swapd-"
RANDOM_BYTES = 32


def add_key(
    name: str,
    models: list[str] | None,
    admin: bool,
    rate: int,
    priority: int,
    config: Path | None,
) -> int:
    """Make a key, write its sum into the configuration, print the key. Raises FailedError."""
    from swapd.config.access import NAME, hash_of

    if not NAME.fullmatch(name):
        raise FailedError(f"{name!r} can't be a key's name: it is of A-Z a-z 0-9 _ . -", 2)
    names = [part.strip() for text in models or () for part in text.split(",") if part.strip()]
    if models is not None and not names:
        raise FailedError("--models names no model; without it the key is good for all of them", 2)
    if admin and names:
        raise FailedError("--admin opens every model: leave it out, or --models", 2)
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
        place = _Place(config)
        first = _put(place, name, entry)
    print(key)
    print_error(f"{place.file} has its SHA-256 sum; the key itself is shown this once")
    _warn_of_unknown(names, config)
    if first:
        print_error("as long as there is a key, every HTTP request but GET /health needs one")
    return 0


def _put(place: _Place, name: str, entry: dict[str, object]) -> bool:
    """Write the key down; whether it is the first one there. Raises FailedError."""
    from swapd.config.yaml_edit import put

    known = place.names()
    if name in known:
        raise FailedError(f"there is a key {name} already; {command()} key rm {name} takes it out")
    place.write(put(place.text, ("keys", name), entry, place.file.name))
    return not known


def _warn_of_unknown(patterns: list[str], config: Path | None) -> None:
    """Say which of them open nothing, for no model has such a name."""
    from swapd.config.access import opens_nothing

    home = find_paths()
    models = read(home, config or in_use(home)).catalog.models.values() if patterns else ()
    for _, told in opens_nothing(patterns, models):
        print_error(told)


def remove_key(name: str, config: Path | None) -> int:
    """Take a key out. Raises FailedError."""
    from swapd.config.yaml_edit import EditError, take

    with exclusive_lock(find_paths().edits):
        place = _Place(config)
        try:
            place.write(take(place.text, ("keys", name), f"a key {name}", place.file.name))
        except EditError as error:
            raise FailedError(f"nothing was changed: {error}") from error
    print(f"{name} opens nothing any more")
    if not place.names():
        print_error("that was the last key: whoever reaches the address is served now")
    return 0


def list_keys(config: Path | None, as_json: bool) -> int:
    """What each key is good for."""
    home = find_paths()
    keys = read(home, config or in_use(home)).settings.access.keys
    if as_json:
        told = [
            {
                "name": key.name,
                "models": key.models,
                "admin": key.admin,
                "rate": key.rate,
                "priority": key.priority,
            }
            for key in keys
        ]
        print_json({"keys": told})
    elif not keys:
        print("there are no keys: whoever reaches the address is served")
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


class _Place:
    """The file that keys are written into: the one that sync makes the configuration of, or a
    configuration that somebody wrote by hand. It is that of the swapd that runs, if one does."""

    def __init__(self, config: Path | None) -> None:
        from swapd.library.generate import MARK

        self._home = find_paths()
        self._home.folder.mkdir(parents=True, exist_ok=True)
        if config is None and (used := in_use(self._home)) != self._home.config:
            config = used
        self._by_hand = config is not None
        self.file = config.absolute() if config is not None else self._home.custom
        if config is None and self._home.config.is_file():
            with self._home.config.open("rb") as file:
                if not file.read(len(MARK)).startswith(MARK.encode()):
                    self._by_hand, self.file = True, self._home.config
        self.text = self._read()

    def _read(self) -> str:
        try:
            return self.file.read_bytes().decode("utf-8")
        except FileNotFoundError:
            if self._by_hand:
                raise
            return ""
        except UnicodeDecodeError as error:
            raise FailedError(f"{self.file} is not text in UTF-8") from error

    def names(self) -> list[str]:
        """The keys that the file has."""
        from swapd.config.errors import ConfigError
        from swapd.config.yaml_nodes import MappingNode, node_at, parse_tree

        try:
            tree, _ = parse_tree(self.text, self.file.name)
        except ConfigError as error:
            raise FailedError(f"nothing was changed:\n{error}") from error
        section = node_at(tree, ("keys",))
        return list(section.entries) if isinstance(section, MappingNode) else []

    def write(self, text: str) -> None:
        """Replace the file's text, if the configuration can be used with it; then sync."""
        from swapd.config.errors import ConfigError
        from swapd.system.state_files import replace_text

        try:
            self._check(text)
        except ConfigError as error:
            raise FailedError(f"nothing was changed:\n{error}") from error
        replace_text(self.file, text)
        self.text = text
        if self._by_hand:
            request_reload(self._home)
        else:
            sync_models(force=False, say=lambda _: None)

    def _check(self, text: str) -> None:
        from swapd.config.env import read_env
        from swapd.config.load import parse
        from swapd.library.sync import made_of, make_plan
        from swapd.paths import WORKER_COMMAND
        from swapd.process import memory
        from swapd.system import aio

        total = memory.total()
        if self._by_hand:
            env = read_env(self._home.folder, os.environ)
            parse(text, self.file.name, env, worker_command=WORKER_COMMAND, total_memory=total)
        else:
            folder, when = self._home.folder, aio.wall()
            plan = make_plan(
                folder, os.environ, demo_directory(), now=when, total_memory=total, custom_text=text
            )
            made_of(plan, total)
