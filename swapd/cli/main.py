"""Entry point of the command line: commands, exit statuses, and completion in bash.

Command modules import their heavier dependencies inside functions: every command imports all of
these modules, and a command must start in about 0.1 s.

Completion of names with colons: bash takes a colon for the end of a word. It passes `ls/qwen:q4` as
`ls/qwen`, `:` and `q4`, and replaces only the last of them by the completion. So the words are
joined before the lookup, and the text up to the last colon is removed from every completion.
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

from swapd.cli import (
    bench,
    chat,
    config,
    cron,
    doctor,
    keys,
    models,
    pull,
    remove,
    service,
    simulate,
    start_stop,
    status,
    sync,
)
from swapd.cli.output import FailedError, command, print_error
from swapd.system.stdio import hold_standard_descriptors

USAGE_ERROR = 2
"""Exit status for wrong commands and options."""
READER_GONE = 141
"""Exit status when the reader of the output is gone: that of a program killed by SIGPIPE."""
INTERRUPTED = 130
"""Exit status after Ctrl-C: that of a program killed by SIGINT."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Exception of the library below typer; which library it is depends on typer's version."""
_REPLACEMENTS = MappingProxyType(
    {
        r"Invalid value for (.*): .* is not a valid int.*": r"\1 must be a whole number",
        r"Invalid value for (.*): .* is not a valid float.*": r"\1 must be a number",
        r"Invalid value for (.*): .* is not in the range x>=(.*)\.": r"\1 must be \2 or more",
        r"Invalid value for (.*): .* is not in the range (.*)<=x<=(.*)\.":
            r"\1 must be from \2 to \3",
        r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)": r"unexpected argument \1",
    }
)  # fmt: skip
"""Plainer messages by patterns of the library's."""


def build() -> typer.Typer:
    """Return the application with all commands."""
    app = typer.Typer(
        help="Run many language models on the machine you have, behind one endpoint.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("start")(start_stop.start)
    app.command("stop")(start_stop.stop)
    app.command("restart")(start_stop.restart)
    app.command("status")(status.status)
    app.command("serve")(start_stop.serve)
    app.command("sync")(sync.sync)
    app.command("list")(models.list_)
    app.command("ls", hidden=True)(models.list_)
    app.command("show")(models.show)
    app.command("ps")(status.ps)
    app.command("stats")(status.stats)
    app.command("run")(chat.run)
    app.command("chat", hidden=True)(chat.run)
    app.command("pull")(pull.pull)
    app.command("rm")(remove.rm)
    app.command("set")(models.set_)
    app.command("load")(models.load)
    app.command("unload")(models.unload)
    app.command("logs")(status.logs)
    app.command("bench")(bench.bench)
    app.command("simulate")(simulate.simulate)
    app.command("doctor")(doctor.doctor)
    app.add_typer(config.group(), name="config")
    app.add_typer(keys.group(), name="key")
    app.add_typer(service.group(), name="service")
    app.add_typer(cron.group(), name="cron")
    return app


def main() -> None:
    """Run the command line and exit: the entry point of `swapd` and `python -m swapd`."""
    hold_standard_descriptors()
    try:
        _run()
    finally:
        _flush()


def _run() -> None:
    """Run the command and exit with its status; print every expected error as one sentence."""
    program = Path(command()).name
    try:
        if is_bash_completion(program, os.environ):
            complete_for_bash(lambda: build()(prog_name=program))
        sys.exit(build()(prog_name=program, standalone_mode=False) or 0)
    except UsageError as error:
        if is_help(error):
            print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        else:
            print_error(usage_message(error))
        sys.exit(USAGE_ERROR)
    except FailedError as error:
        print_error(str(error))
        sys.exit(error.status)
    except UnicodeError as error:
        text = error.object if isinstance(error, UnicodeEncodeError | UnicodeDecodeError) else ""
        print_error(f"{text!r:.99} is not text in UTF-8")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(READER_GONE)
    except OSError as error:
        print_error(_describe(error))
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)


def usage_message(error: Any) -> str:
    """Return the error as one sentence, with the nearest correct word and the page of help."""
    message = str(error.format_message()).strip()
    for pattern, replacement in _REPLACEMENTS.items():
        message = re.sub(pattern, replacement, message)
    message = re.sub(r"\.? Did you mean (.*)\?$", r"; did you mean \1?", message).removesuffix(".")
    message = re.sub(r" \(Possible options?: (.*)\)$", r"; did you mean \1?", message)
    if re.match("[A-Z][a-z]", message):
        message = message[0].lower() + message[1:]
    path = error.ctx.command_path.partition(" ")[2] if error.ctx is not None else ""
    help_command = " ".join(part for part in (command(), path, "--help") if part)
    return f"{message}{'' if message.endswith('?') else ';'} see {help_command}"


def is_help(error: Any) -> bool:
    """Return True if the error is the help page of a group called without a command."""
    return "\n" in str(error.format_message())


def is_bash_completion(program: str, environ: MutableMapping[str, str]) -> bool:
    """Return True if bash has started this process to complete a line."""
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    return environ.get(variable) == "complete_bash"


def complete_for_bash(
    complete: Callable[[], None], environ: MutableMapping[str, str] = os.environ
) -> None:
    """Run `complete`, which prints completions, and adapt them for names with colons."""
    prefix = join_words(environ)
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            complete()
    finally:
        for line in output.getvalue().splitlines():
            if line.startswith(prefix):
                sys.stdout.write(line[len(prefix) :] + "\n")


def join_words(environ: MutableMapping[str, str]) -> str:
    """Join the words around colons; return the part of the current word that bash keeps."""
    words = environ.get("COMP_WORDS", "").split("\n")
    at = int(environ.get("COMP_CWORD") or 0)
    joined: list[str] = []
    current = 0
    for i, word in enumerate(words):
        continues = i > 1 and (word == ":" or words[i - 1] == ":") and len(joined) > 1
        if continues:
            joined[-1] += word
        else:
            joined.append(word)
        if i == at:
            current = len(joined) - 1
    if at >= len(words) or ":" not in joined[current]:
        return ""
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(joined), str(current)
    completed = joined[current]
    return completed[: completed.rindex(":") + 1]


def _flush() -> None:
    """Write the buffered output; accept that its reader is gone, as with `| head`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        print_error(f"standard output: {_describe(error)}")
        sys.exit(1)


def _discard_output() -> None:
    """Redirect standard output, or Python would retry the write at exit and report it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe(error: OSError) -> str:
    """Return the system's message, with the file that it concerns."""
    message = error.strerror or str(error)
    return f"{error.filename}: {message}" if error.filename else message
