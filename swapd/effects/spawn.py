"""Starting a worker's process, with the pipes by which it is heard; and keeping a spare one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from swapd.domain.models import ModelSpec, WorkerLimits
from swapd.effects.guardian import Guardian
from swapd.effects.limits import limit
from swapd.effects.register import MARK

NO_LIMITS = WorkerLimits()


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how workers are spawned."""

    home: Path
    """Their working directory: relative paths of a configuration mean files in it."""
    guardian: Guardian
    environ: Mapping[str, str]
    """What they get to see of our environment."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process and our ends of its pipes."""

    process: subprocess.Popen[bytes]
    words: int
    """Descriptor on which it speaks to us, if it is one of ours; else -1."""
    lines: int
    """Descriptor of what it prints."""


def spawn(
    argv: tuple[str, ...],
    place: Place,
    env: Mapping[str, str],
    own: bool,
    limits: WorkerLimits = NO_LIMITS,
) -> Spawned:
    """Start `argv` in a session of its own, with nothing of ours but its pipes.

    Raises OSError when it can't be run, or not within its limits.
    """
    word_out, word_in = os.pipe() if own else (-1, -1)
    line_out, line_in = os.pipe()
    environ = {**place.environ, **env, MARK: place.guardian.mark}
    if own:
        environ["SWAPD_READY_FD"] = str(word_in)
        # Else ggml starts a debugger when it gives up, whose words hide its own.
        environ.setdefault("GGML_NO_BACKTRACE", "1")
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
        _close(word_out, line_out)
        raise
    finally:
        _close(word_in, line_in)
    place.guardian.watch(process.pid)
    try:
        limit(process.pid, limits)
    except OSError:
        _close(word_out, line_out)
        _end(process, place)
        raise
    return Spawned(process, word_out, line_out)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _end(process: subprocess.Popen[bytes], place: Place) -> None:
    """Kill and reap one that is not to be."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    place.guardian.forget(process.pid)
    assert process.stdin is not None
    process.stdin.close()


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
        plain = not spec.env and spec.limits == NO_LIMITS
        fits = spec.own and plain and argv[:length] == self._serve
        if self._waiting is None or not fits:
            return None
        if self._waiting.process.poll() is not None:
            self.dismiss()
            return None
        assert self._waiting.process.stdin is not None
        line = msgspec.json.encode(argv[length:]) + b"\n"
        try:
            os.write(self._waiting.process.stdin.fileno(), line)
        except BrokenPipeError:
            self.dismiss()
            return None
        taken, self._waiting = self._waiting, None
        return taken

    def dismiss(self) -> None:
        """End the spare and reap it. It has nothing to finish, and may be stopped: so at once."""
        if self._waiting is None:
            return
        gone, self._waiting = self._waiting, None
        _end(gone.process, self._place)
        _close(gone.words, gone.lines)
