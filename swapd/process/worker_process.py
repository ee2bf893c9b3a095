"""Worker processes: spawn in a session of their own, hear them, signal them, reap them.

A model's own way of ending its worker: a command, which lasts no longer than the worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from swapd.domain.events import WorkerId
from swapd.domain.models import ModelSpec
from swapd.process.memory import oom_kills
from swapd.process.ports import free_port
from swapd.process.spawn import SpawnContext, Spawned, WarmStandby, spawn
from swapd.system.aio import LineReader
from workers.protocol import READY_FD, LoadFailure, Message, ReadyMessage, message_type


class StopCommand:
    """Runs `argv`; calls `failed` if it ends with another status than 0 before `end` is called.

    Raises OSError when it can't be run. How long the worker may take, and with it the command,
    is bounded by the model's `stop_grace`: then the worker is killed.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        place: SpawnContext,
        spec: ModelSpec,
        output: logging.Logger,
        failed: Callable[[], None],
    ) -> None:
        self._output = output
        self._failed = failed
        self._over = False
        self._place = place
        self._loop = asyncio.get_running_loop()
        spawned = spawn(argv, place, dict(spec.launch.env), builtin=False)
        self._process = spawned.process
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._lines = LineReader(self._loop, spawned.lines, self._printed)
        threading.Thread(target=self._wait, name="wait for cmdStop", daemon=True).start()

    def end(self) -> None:
        """The worker has ended: so does this."""
        if self._over:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._output.debug("swapd: cmdStop had ended")
        self._finish()

    def _wait(self) -> None:
        """In a thread of its own: sleep until the process has ended, then say so."""
        try:
            if hasattr(os, "waitid"):
                # Without reaping, so that its number stays its own until `_ended`.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            else:
                self._process.wait()
        except ChildProcessError:
            return  # `end` was quicker.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ended)

    def _printed(self, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            self._output.info("cmdStop: %s", text)

    def _ended(self) -> None:
        if self._over:
            return
        self._finish()
        if self._process.returncode != 0:
            self._output.warning(
                "swapd: cmdStop ended with status %d; sending SIGTERM", self._process.returncode
            )
            self._failed()

    def _finish(self) -> None:
        self._over = True
        self._process.wait()
        self._place.guardian.forget(self._process.pid)
        self._lines.finish()


TAIL_LINES = 5
"""Of what it printed last, this many lines tell why it did not come up."""
TAIL_WIDTH = 300
ASKED_TO_END = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit statuses by signals that nothing in a program raises by mistake."""
WITHOUT_MEMORY = frozenset({-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS})
"""Exit statuses of programs that do not get the memory they need."""
MEMORY_WORDS = ("MemoryError", "can't start new thread", "failed to map segment", "llocate memory")
"""What Python, the loader and the C library say then."""


class WorkerListener(Protocol):
    """Who wants to hear of a worker; called on the event loop."""

    def worker_reported(self, worker: WorkerId, message: Message) -> None: ...

    def worker_exited(self, worker: WorkerId, reason: str, killed_externally: bool) -> None: ...


class WorkerProcess:
    """One worker process from its spawn to its end.

    The constructor spawns at once, or takes the spare where that fits, and raises OSError when
    the command can't be run. `base_url`
    is where it answers: for a foreign worker known from the start, for ours once it has spoken.
    """

    def __init__(
        self,
        worker: WorkerId,
        spec: ModelSpec,
        place: SpawnContext,
        listener: WorkerListener,
        output: logging.Logger,
        spare: WarmStandby | None = None,
    ) -> None:
        self.worker = worker
        self.spec = spec
        self.port = 0 if spec.launch.builtin else free_port()
        self.base_url = "" if spec.launch.builtin else self._fill(spec.launch.proxy).rstrip("/")
        self.argv = tuple(self._fill(word) for word in spec.launch.argv)
        self._listener = listener
        self._output = output
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._verdict = ""
        self._killed = False
        self._is_up = False
        self._oom_kills = oom_kills()
        self._told = False
        """Whether it was asked or made to end."""
        self._stop_command: StopCommand | None = None
        taken = spare.take(spec, self.argv) if spare is not None else None
        self._was_spare = taken is not None
        self._begin(taken or self._spawned())

    def _spawned(self) -> Spawned:
        return spawn(
            self.argv,
            self._place,
            dict(self.spec.launch.env),
            self.spec.launch.builtin,
            self.spec.launch.limits,
        )

    def _begin(self, spawned: Spawned) -> None:
        self._ended = False
        self._process = spawned.process
        self.pid = self._process.pid
        own = self.spec.launch.builtin
        self._words = LineReader(self._loop, spawned.words, self._heard) if own else None
        self._lines = LineReader(self._loop, spawned.lines, self._printed)
        self._await_end()

    def _fill(self, text: str, pid: int = 0) -> str:
        return text.replace("${PORT}", str(self.port)).replace("${PID}", str(pid))

    # -- hearing -------------------------------------------------------------------------------

    def _heard(self, line: bytes) -> None:
        self._was_spare = False
        try:
            fields = msgspec.json.decode(line, type=dict[str, object])
            message: Message = msgspec.convert(fields, message_type(fields))
        except (msgspec.DecodeError, ValueError) as error:
            self._output.warning("swapd: invalid message on %s (%s): %r", READY_FD, error, line)
            return
        if isinstance(message, LoadFailure):
            self._verdict = message.error
        elif isinstance(message, ReadyMessage):
            self.port = message.port
            self.base_url = f"http://{message.host}:{message.port}"
        self._listener.worker_reported(self.worker, message)

    def came_up(self) -> None:
        """It serves. What it prints from now on may be of requests, which is for the log alone."""
        self._is_up = True
        self._tail = deque(maxlen=0)

    def _printed(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._tail.append(text[:TAIL_WIDTH])
            self._output.info("%s", text)

    # -- ending --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask it to end, by the model's own stop command if it has one, else by SIGTERM."""
        self._told = True
        if not self.spec.serving.stop_argv:
            self._signal(signal.SIGTERM)
            return
        argv = tuple(self._fill(word, self.pid) for word in self.spec.serving.stop_argv)
        try:
            self._stop_command = StopCommand(
                argv, self._place, self.spec, self._output, self._terminate
            )
        except OSError as error:
            self._output.warning("swapd: cmdStop can't be run: %s; sending SIGTERM", error)
            self._terminate()

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and all of its process group at once."""
        self._killed = True
        self._told = True
        self._signal(signal.SIGKILL)

    def condemn(self, reason: str) -> None:
        """Kill it, and let `reason` be the reason of its end."""
        self._verdict = reason
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        """Signal the group. Not reaped before `_ended`, so the number can't be a stranger's."""
        if self._ended:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            self._output.debug("swapd: %d had gone before %s", self.pid, number.name)
        except PermissionError:
            # macOS answers so for a group of which only a zombie is left.
            self._output.debug("swapd: %d could not be sent %s", self.pid, number.name)

    def _await_end(self) -> None:
        """Have `_reap` called when the process has ended, without reaping it."""
        try:
            # A thread would have to be waited for until it has begun.
            end = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            threading.Thread(target=self._wait, name=f"wait for {self.pid}", daemon=True).start()
            return
        self._loop.add_reader(end, self._came_to_its_end, end)

    def _came_to_its_end(self, end: int) -> None:
        self._loop.remove_reader(end)
        os.close(end)
        self._reap()

    def _wait(self) -> None:
        """In a thread of its own: sleep until the process has ended, then report it."""
        if hasattr(os, "waitid"):
            # Without reaping, so that its number stays its own while the group is ended.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        self._signal(signal.SIGKILL)
        self._ended = True
        self._process.wait()
        try:
            self._clear_away()
        finally:
            # Whatever else fails: an end that nobody hears of would keep its place for good.
            if not self._began_anew():
                self._listener.worker_exited(
                    self.worker, self._reason(), self._was_killed_externally()
                )

    def _clear_away(self) -> None:
        """What was there for the process that has ended."""
        self._place.guardian.forget(self.pid)
        if self._stop_command is not None:
            self._stop_command.end()
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._words is not None:
            self._words.finish()
        self._lines.finish()

    def _began_anew(self) -> bool:
        """Start a fresh process if this one was the spare and somebody killed it before it spoke.

        Nobody knows what it died of, and it may have been dead when it was taken.
        """
        if not self._was_spare or self._told or self._process.returncode >= 0:
            return False
        self._was_spare = False
        try:
            self._begin(self._spawned())
        except OSError as error:
            self._verdict = f"{self.argv[0]} can't be run: {error.strerror}"
            return False
        self._output.warning("swapd: the spare worker was killed; pid %d instead", self.pid)
        return True

    def _was_killed_externally(self) -> bool:
        """Whether somebody else ended it, and not the system for want of memory."""
        status = self._process.returncode
        if status in ASKED_TO_END:
            return not self._told
        killed = status == -signal.SIGKILL and not self._killed
        return killed and self._oom_kills is not None and oom_kills() == self._oom_kills

    def _reason(self) -> str:
        """One sentence: how it ended and, if it said so, why."""
        limit = self.spec.launch.limits.memory
        if limit and not self._is_up and self._lacked_memory():
            return f"{self._how()} (its limits.memory, {limit / 2**20:,.0f} MiB, may be too small)"
        return self._how()

    def _lacked_memory(self) -> bool:
        """Whether it ended as one does that gets no memory."""
        if self._process.returncode in WITHOUT_MEMORY:
            return True
        said = "\n".join((self._verdict, *self._tail))
        return any(word in said for word in MEMORY_WORDS)

    def _how(self) -> str:
        if self._verdict:
            return self._verdict
        status = self._process.returncode
        if status == 0:
            return "the worker ended with exit status 0"
        if status < 0:
            how = f"the worker was ended by {_named(-status)}"
        else:
            how = f"the worker ended with exit status {status}"
        # SIGKILL leaves no last words: what was printed before it is of something else.
        if status == -signal.SIGKILL or not self._tail:
            return how
        return f"{how}: {' | '.join(self._tail)}"


def _named(number: int) -> str:
    """A signal as people call it; the real-time ones have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
