"""Starting a worker's process, with the pipes by which it is heard; and keeping a spare one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swapd.effects.guardian import Guardian
from swapd.words.catalog import ModelSpec


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how workers are spawned."""

    home: Path
    """Their working directory: relative paths of a configuration mean files in it."""
    guardian: Guardian
    environ: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process and our ends of its pipes."""

    process: subprocess.Popen[bytes]
    words: int
    """Descriptor on which it speaks to us, if it is one of ours."""
    lines: int
    """Descriptor of what it prints."""


def spawn(argv: tuple[str, ...], place: Place, env: Mapping[str, str], own: bool) -> Spawned:
    """Start `argv` in a session of its own. Raises OSError when it can't be run."""
    word_out, word_in = os.pipe()
    line_out, line_in = os.pipe()
    environ = {**place.environ, **env}
    environ.pop("SWAPD_READY_FD", None)
    if own:
        environ["SWAPD_READY_FD"] = str(word_in)
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=line_in,
            stderr=line_in,
            cwd=place.home,
            env=environ,
            pass_fds=(word_in,) if own else (),
            start_new_session=True,
        )
    except OSError:
        os.close(word_out)
        os.close(line_out)
        raise
    finally:
        os.close(word_in)
        os.close(line_in)
    place.guardian.watch(process.pid)
    return Spawned(process, word_out, line_out)


class Spare:
    """At most one process of ours that has all behind it but its model.

    `serve` is the command of our worker and `spare` the one of a worker that waits for the rest
    of that command as a line of JSON. Nobody counts it as a worker until it is taken.
    """

    def __init__(self, serve: tuple[str, ...], spare: tuple[str, ...], place: Place) -> None:
        self._serve = serve
        self._spare = spare
        self._place = place
        self._waiting: Spawned | None = None

    def prepare(self) -> None:
        """Start one if there is none."""
        if self._waiting is None:
            self._waiting = spawn(self._spare, self._place, {}, own=True)

    def take(self, spec: ModelSpec, argv: tuple[str, ...]) -> Spawned | None:
        """The spare as the worker of this model; None when there is none that fits."""
        length = len(self._serve)
        fits = spec.own and not spec.env and argv[:length] == self._serve
        if self._waiting is None or not fits:
            return None
        if self._waiting.process.poll() is not None:
            self.dismiss()
            return None
        taken, self._waiting = self._waiting, None
        assert taken.process.stdin is not None
        taken.process.stdin.write(msgspec.json.encode(argv[length:]) + b"\n")
        taken.process.stdin.flush()
        return taken

    def dismiss(self) -> None:
        """End the spare and reap it; it goes at the end of its standard input."""
        if self._waiting is None:
            return
        gone, self._waiting = self._waiting, None
        assert gone.process.stdin is not None
        gone.process.stdin.close()
        gone.process.wait()
        self._place.guardian.forget(gone.process.pid)
        os.close(gone.words)
        os.close(gone.lines)
