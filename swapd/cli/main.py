"""The command line: which words there are. What they do stands in the modules beside this one,
which are imported when they are needed: the command line starts quickly.

A wrong word on the command line, as one sentence.

Names with colons at a bash prompt.

bash takes a colon for the end of a word: of `ls/qwen:q4` it hands over `ls/qwen`, `:` and `q4`, and
puts what it is answered into the place of the last of them. So the words are joined before they are
looked at, and what stands before the last colon is taken off every answer.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, MutableMapping
from contextlib import redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any

import typer

from swapd.cli import bench, keys, service, sync
from swapd.cli import chat as talk
from swapd.cli import models as model
from swapd.cli import server as daemon
from swapd.cli import simulate as simulation
from swapd.cli.output import FailedError, command, print_error
from swapd.system.stdio import hold_standard_descriptors

WRONG = 2
"""Exit status for wrong words and options."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What the library under typer raises; which library that is differs by version."""
_PLAINLY = MappingProxyType(
    {
        r"Invalid value for (.*): .* is not a valid int.*": r"\1 must be a whole number",
        r"Invalid value for (.*): .* is not a valid float.*": r"\1 must be a number",
        r"Invalid value for (.*): .* is not in the range x>=(.*)\.": r"\1 must be \2 or more",
        r"Invalid value for (.*): .* is not in the range (.*)<=x<=(.*)\.":
            r"\1 must be from \2 to \3",
        r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"there is nothing to do with \1",
    }
)  # fmt: skip


def sentence(error: Any) -> str:
    """What is wrong, with the nearest right thing and where to read on."""
    said = str(error.format_message()).strip()
    for pattern, plainly in _PLAINLY.items():
        said = re.sub(pattern, plainly, said)
    said = re.sub(r"\.? Did you mean (.*)\?$", r"; did you mean \1?", said).removesuffix(".")
    said = re.sub(r" \(Possible options?: (.*)\)$", r"; did you mean \1?", said)
    if re.match("[A-Z][a-z]", said):
        said = said[0].lower() + said[1:]
    where = error.ctx.command_path.partition(" ")[2] if error.ctx is not None else ""
    told = " ".join(part for part in (command(), where, "--help") if part)
    return f"{said}{'' if said.endswith('?') else ';'} {told} tells more"


def is_help(error: Any) -> bool:
    """Whether it is no fault, but a group of commands called without one."""
    return "\n" in str(error.format_message())


def is_bash_asking(program: str, environ: MutableMapping[str, str]) -> bool:
    """Whether this process is to complete a line, for bash."""
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    return environ.get(variable) == "complete_bash"


def for_bash(complete: Callable[[], None], environ: MutableMapping[str, str] = os.environ) -> None:
    """Let `complete` print what the line can go on with, and mend that for names with colons."""
    before = join_words(environ)
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            complete()
    finally:
        for line in said.getvalue().splitlines():
            if line.startswith(before):
                sys.stdout.write(line[len(before) :] + "\n")


def join_words(environ: MutableMapping[str, str]) -> str:
    """Join the words around colons; returns what bash keeps of the word that is completed."""
    words = environ.get("COMP_WORDS", "").split("\n")
    at = int(environ.get("COMP_CWORD") or 0)
    joined: list[str] = []
    current = 0
    for i, word in enumerate(words):
        follows = i > 1 and (word == ":" or words[i - 1] == ":") and len(joined) > 1
        if follows:
            joined[-1] += word
        else:
            joined.append(word)
        if i == at:
            current = len(joined) - 1
    if at >= len(words) or ":" not in joined[current]:
        return ""
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(joined), str(current)
    kept = joined[current]
    return kept[: kept.rindex(":") + 1] if at < len(words) else ""


READER_GONE = 141
"""As a shell tells of a program that SIGPIPE ended."""


def build() -> typer.Typer:
    """All commands."""
    app = typer.Typer(
        help="Run many language models on the machine you have, behind one endpoint.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for function in (daemon.start, daemon.stop, daemon.restart, daemon.status, daemon.serve):
        app.command()(function)
    app.command("sync")(sync.sync)
    app.command("list")(model.list_)
    app.command("ls", hidden=True)(model.list_)
    app.command("show")(model.show)
    app.command("ps")(daemon.ps)
    app.command("stats")(daemon.stats)
    app.command("run")(talk.run)
    app.command("chat", hidden=True)(talk.run)
    app.command("pull")(model.pull)
    app.command("rm")(model.rm)
    app.command("set")(model.set_)
    app.command("load")(model.load)
    app.command("unload")(model.unload)
    app.command("logs")(daemon.logs)
    app.command("bench")(bench.bench)
    app.command("simulate")(simulation.simulate)
    app.command("doctor")(daemon.doctor)
    app.add_typer(daemon.config(), name="config")
    app.add_typer(keys.key(), name="key")
    for name, group in service.groups().items():
        app.add_typer(group, name=name)
    return app


def main() -> None:
    """The entry of `swapd` and `python -m swapd`."""
    hold_standard_descriptors()
    try:
        _run()
    finally:
        _flush()


def _run() -> None:
    program = Path(command()).name
    try:
        if is_bash_asking(program, os.environ):
            for_bash(lambda: build()(prog_name=program))
        sys.exit(build()(prog_name=program, standalone_mode=False) or 0)
    except UsageError as error:
        if is_help(error):
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        else:
            print_error(sentence(error))
        sys.exit(WRONG)
    except FailedError as error:
        print_error(str(error))
        sys.exit(error.status)
    except UnicodeError as error:
        wrong = error.object if isinstance(error, UnicodeEncodeError | UnicodeDecodeError) else ""
        print_error(f"{wrong!r:.99} is not text in UTF-8")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(READER_GONE)
    except OSError as error:
        print_error(_about(error))
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _flush() -> None:
    """Write what is left; whoever read the output may have seen enough, as `| head` has."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _leave_unwritten()
    except OSError as error:
        _leave_unwritten()
        print_error(f"standard output: {_about(error)}")
        sys.exit(1)


def _leave_unwritten() -> None:
    """What is left would be tried again, and complained about, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about(error: OSError) -> str:
    """What the system said, and of which file."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what
