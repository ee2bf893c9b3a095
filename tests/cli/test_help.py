"""`--help` of every command agrees with docs/cli.md."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from swapd.cli.main import build
from tests.cli.user import User
from tests.daemon import ROOT

PAGE = (ROOT / "docs/cli.md").read_text()
HEADINGS = re.findall(r"^### `(.*)`$", PAGE, re.MULTILINE)
HIDDEN = {"ls": "list", "chat": "run"}
GROUPS = ("service", "cron", "config", "key")


def _command(heading: str) -> str:
    """Return the words of a heading that are a command's name."""
    return " ".join(word for word in heading.partition(" [")[0].split() if word.islower())


def _options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", text)) - {"--help", "-h"}


def _help(*words: str) -> str:
    """Return the help of a command without a process: there are many commands."""
    result = CliRunner().invoke(
        build(), [*words, "--help"], prog_name="model", env={"COLUMNS": "80"}
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_help_is_the_same_in_a_process(served: User) -> None:
    for words in ((), ("run",), ("service", "install")):
        result = served.says(*words, "--help")
        assert result == served.says(*words, "-h")
        assert result.split() == _help(*words).split()
        assert "..." not in result.partition("Commands:")[2], "a summary is cut off"


def _commands(help_text: str) -> list[str]:
    section = help_text.partition("Commands:\n")[2]
    return re.findall(r"^  ([a-z]+)", section, re.MULTILINE)


def test_every_command_is_documented_and_no_other() -> None:
    named = _commands(_help())
    leaves = [c for c in named if c not in GROUPS]
    for group in GROUPS:
        leaves += [f"{group} {c}" for c in _commands(_help(group))]
    documented = [_command(heading) for heading in HEADINGS]
    assert sorted(documented) == sorted([*leaves, "config"])
    readable = {
        "start",
        "stop",
        "restart",
        "status",
        "serve",
        "sync",
        "list",
        "show",
        "ps",
        "stats",
    }
    readable |= {
        "run",
        "pull",
        "rm",
        "set",
        "logs",
        "unload",
        "load",
        "bench",
        "simulate",
        "doctor",
        *GROUPS,
    }
    assert set(named) == readable


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_options_are_those_of_the_page(heading: str) -> None:
    result = _help(*_command(heading).split())
    usage, _, rest = result.partition("\n")
    described = rest.partition("Options:")[2].partition("Commands:")[0]
    listed = "\n".join(re.findall(r"^  (-.*?)(?:  |$)", described, re.MULTILINE))
    assert _options(listed) == _options(heading)
    assert set(re.findall(r"\b[A-Z]+\b", usage)) - {"OPTIONS", "COMMAND", "ARGS"} == set(
        re.findall(r"\b[A-Z]+\b", heading)
    )
    # A sentence, not a default of typer.
    assert re.search(r"^  [A-Z].*[.:]", rest, re.MULTILINE)


@pytest.mark.parametrize(("hidden", "same"), HIDDEN.items())
def test_other_names_mean_the_same(hidden: str, same: str) -> None:
    assert f"`{hidden}` is the same." in PAGE
    mine, other = _help(hidden), _help(same)
    assert mine.partition("\n")[2] == other.partition("\n")[2]
