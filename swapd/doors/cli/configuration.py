"""The configuration files: where they are, what they say, whether they can be used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from swapd.doors.cli.library import in_use
from swapd.doors.cli.say import FailedError, command, complain
from swapd.paths import WORKER_COMMAND, Home, demo_folder, find_home
from swapd.system.redact import without_secrets_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import yaml

    from swapd.config.load import Loaded


def path() -> int:
    """Print where the configuration in use is, for scripts."""
    print(in_use(find_home()))
    return 0


def show() -> int:
    """Print the configuration in use as it is, but for keys that stand in it in plain text."""
    file = in_use(find_home())
    print(without_secrets_in(without_keys(_text(file), file)), end="")
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
    home = find_home()
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
            complain(bad)
    return 1 if any(bad for _, bad in verdicts) else 0


def _configuration(home: Home, file: Path) -> tuple[str, str]:
    """What is good to say of it, or what is wrong."""
    _text(file)
    try:
        loaded = read(home, file)
    except FailedError as error:
        return "", str(error)
    for warning in loaded.warnings:
        complain(str(warning))
    if wrong := in_its_files(loaded, file):
        return "", "\n".join(wrong)
    count = len(loaded.catalog.models)
    return f"{file}: {count} model{'' if count == 1 else 's'}", ""


def read(home: Home, file: Path, environ: Mapping[str, str] = os.environ) -> Loaded:
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


def in_its_files(loaded: Loaded, file: Path) -> list[str]:
    """What the files that a configuration names are not good for: what start or a request says."""
    from swapd.config.adapters import adapter_problems
    from swapd.http.tls import TlsError, new_context

    found = [str(problem) for problem in adapter_problems(loaded.catalog, file)]
    tls = loaded.settings.tls
    if tls.cert:
        try:
            new_context(tls.cert, tls.key)
        except TlsError as error:
            found.append(f"{file.name}: {error}")
    return found


def effective(home: Home) -> Loaded:
    """What swapd serves with or would: its file, or what a sync makes. Raises FailedError."""
    if (file := in_use(home)).is_file():
        return read(home, file)
    from swapd.config.errors import ConfigError
    from swapd.config.load import parse
    from swapd.library.sync import look, made_of
    from swapd.process import memory
    from swapd.system import aio

    total = memory.total()
    try:
        plan = look(home.folder, os.environ, demo_folder(), now=aio.wall(), total_memory=total)
        text, _ = made_of(plan, total)
        return parse(
            text, home.config.name, plan.env, worker_command=WORKER_COMMAND, total_memory=total
        )
    except ConfigError as error:
        raise FailedError(str(error)) from error


def _customisation(home: Home) -> tuple[str, str]:
    from swapd.config.custom_models import read_custom
    from swapd.config.env import read_env
    from swapd.config.errors import ConfigError

    if not home.custom.is_file():
        return f"{home.custom}: not there, and not needed", ""
    try:
        custom = read_custom(home.custom, read_env(home.folder, os.environ))
    except ConfigError as error:
        return "", f"{home.custom} can't be used:\n{error}"
    for warning in custom.warnings:
        complain(str(warning))
    count = len(custom.models)
    return f"{home.custom}: speaks of {count} model{'' if count == 1 else 's'}", ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        made = f"; {command()} sync makes one" if file == find_home().config else ""
        raise FailedError(f"there is no {file}{made}") from error
    except UnicodeDecodeError as error:
        raise FailedError(f"{file} is not text in UTF-8") from error
    except OSError as error:
        raise FailedError(f"{file} can't be read: {error.strerror}") from error
