"""The command line: which words there are. What they do stands in the modules beside this one,
which are imported when they are needed: the command line starts quickly."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from swapd.doors.cli import daemon_commands as daemon
from swapd.doors.cli import key_commands as keys
from swapd.doors.cli import model_commands as model
from swapd.doors.cli import service_commands as service
from swapd.doors.cli import simulate_commands as simulation
from swapd.doors.cli import talk_commands as talk
from swapd.doors.cli.completion import for_bash, is_bash_asking
from swapd.doors.cli.say import FailedError, command, complain
from swapd.doors.cli.usage import WRONG, UsageError, is_help, sentence
from swapd.system.stdio import hold_standard_descriptors

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
    app.command("sync")(model.sync)
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
    app.command("bench")(talk.bench)
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
            complain(sentence(error))
        sys.exit(WRONG)
    except FailedError as error:
        complain(str(error))
        sys.exit(error.status)
    except UnicodeError as error:
        wrong = error.object if isinstance(error, UnicodeEncodeError | UnicodeDecodeError) else ""
        complain(f"{wrong!r:.99} is not text in UTF-8")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(READER_GONE)
    except OSError as error:
        complain(_about(error))
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
        complain(f"standard output: {_about(error)}")
        sys.exit(1)


def _leave_unwritten() -> None:
    """What is left would be tried again, and complained about, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _about(error: OSError) -> str:
    """What the system said, and of which file."""
    what = error.strerror or str(error)
    return f"{error.filename}: {what}" if error.filename else what
