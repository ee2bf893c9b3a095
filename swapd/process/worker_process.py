"""Worker processes: start in a session of their own, messages, signals, exit and exit reason.

A model may have a command that stops its worker (`cmdStop`); it lives no longer than the worker.
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
    """A running `cmdStop`; calls `failed` if it exits with another status than 0 before `end`.

    Raises OSError when the command can't be run. The model's `stop_grace` limits the time of the
    worker and so of the command: then the worker is killed.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        context: SpawnContext,
        spec: ModelSpec,
        output: logging.Logger,
        failed: Callable[[], None],
    ) -> None:
        self._output = output
        self._failed = failed
        self._has_ended = False
        self._context = context
        self._loop = asyncio.get_running_loop()
        spawned = spawn(argv, context, dict(spec.launch.env), builtin=False)
        self._process = spawned.process
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._output_reader = LineReader(self._loop, spawned.output_fd, self._log_output)
        threading.Thread(target=self._wait, name="wait for cmdStop", daemon=True).start()

    def end(self) -> None:
        """Kill the command, because the worker has exited."""
        if self._has_ended:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._output.debug("swapd: cmdStop had already exited")
        self._finish()

    def _wait(self) -> None:
        """Wait for the exit, in its own thread, then call `_exited` on the event loop."""
        try:
            if hasattr(os, "waitid"):
                # Without reaping, so that the pid is not reused before `_exited`.
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            else:
                self._process.wait()
        except ChildProcessError:
            return  # `end` has reaped the process.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._exited)

    def _log_output(self, line: bytes) -> None:
        if text := line.decode("utf-8", "replace").rstrip():
            self._output.info("cmdStop: %s", text)

    def _exited(self) -> None:
        if self._has_ended:
            return
        self._finish()
        if self._process.returncode != 0:
            self._output.warning(
                "swapd: cmdStop ended with status %d; sending SIGTERM", self._process.returncode
            )
            self._failed()

    def _finish(self) -> None:
        self._has_ended = True
        self._process.wait()
        self._context.guardian.forget(self._process.pid)
        self._output_reader.finish()


TAIL_LINES = 5
"""Last lines of a worker's output that the exit reason quotes."""
TAIL_WIDTH = 300
"""Characters quoted of each line."""
TERMINATION_STATUSES = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit statuses for signals that a program does not raise by a fault of its own."""
OUT_OF_MEMORY_STATUSES = frozenset({-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS})
"""Exit statuses of programs that fail to allocate memory."""
OUT_OF_MEMORY_TEXTS = (
    "MemoryError",
    "can't start new thread",
    "failed to map segment",
    "llocate memory",
)
"""Parts of the messages of Python, the loader and the C library in that case."""


class WorkerListener(Protocol):
    """Receiver of a worker's messages and exit; called on the event loop."""

    def worker_reported(self, worker: WorkerId, message: Message) -> None: ...

    def worker_exited(self, worker: WorkerId, reason: str, killed_externally: bool) -> None: ...


class WorkerProcess:
    """A worker process from its start to its exit.

    The constructor starts the process, or takes the warm standby if it is suitable, and raises
    OSError when the command can't be run. `base_url` is the address of an external worker from the
    start, of a built-in worker once it has sent its ReadyMessage.
    """

    def __init__(
        self,
        worker: WorkerId,
        spec: ModelSpec,
        context: SpawnContext,
        listener: WorkerListener,
        output: logging.Logger,
        standby: WarmStandby | None = None,
    ) -> None:
        self.worker = worker
        self.spec = spec
        self.port = 0 if spec.launch.builtin else free_port()
        self.base_url = "" if spec.launch.builtin else self._fill(spec.launch.proxy).rstrip("/")
        self.argv = tuple(self._fill(word) for word in spec.launch.argv)
        self._listener = listener
        self._output = output
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._given_reason = ""
        """Exit reason that swapd or the worker stated; empty: none."""
        self._killed = False
        self._is_ready = False
        self._oom_kills = oom_kills()
        self._is_stopping = False
        """True if swapd has stopped or killed it."""
        self._stop_command: StopCommand | None = None
        taken = standby.take(spec, self.argv) if standby is not None else None
        self._was_standby = taken is not None
        """True for a former warm standby until its first message."""
        self._begin(taken or self._spawn())

    def _spawn(self) -> Spawned:
        return spawn(
            self.argv,
            self._context,
            dict(self.spec.launch.env),
            self.spec.launch.builtin,
            self.spec.launch.limits,
        )

    def _begin(self, spawned: Spawned) -> None:
        self._ended = False
        self._process = spawned.process
        self.pid = self._process.pid
        self._message_reader = None
        if self.spec.launch.builtin:
            self._message_reader = LineReader(
                self._loop, spawned.message_fd, self._message_received
            )
        self._output_reader = LineReader(self._loop, spawned.output_fd, self._log_output)
        self._watch_exit()

    def _fill(self, text: str, pid: int = 0) -> str:
        return text.replace("${PORT}", str(self.port)).replace("${PID}", str(pid))

    # -- messages and output -------------------------------------------------------------------

    def _message_received(self, line: bytes) -> None:
        self._was_standby = False
        try:
            fields = msgspec.json.decode(line, type=dict[str, object])
            message: Message = msgspec.convert(fields, message_type(fields))
        except (msgspec.DecodeError, ValueError) as error:
            self._output.warning("swapd: invalid message on %s (%s): %r", READY_FD, error, line)
            return
        if isinstance(message, LoadFailure):
            self._given_reason = message.error
        elif isinstance(message, ReadyMessage):
            self.port = message.port
            self.base_url = f"http://{message.host}:{message.port}"
        self._listener.worker_reported(self.worker, message)

    def mark_ready(self) -> None:
        """Mark the worker as ready.

        Its later output may quote requests, so it is logged, but not used in the exit reason.
        """
        self._is_ready = True
        self._tail = deque(maxlen=0)

    def _log_output(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self._tail.append(text[:TAIL_WIDTH])
            self._output.info("%s", text)

    # -- stop and exit -------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the worker by the model's `cmdStop` if it has one, else by SIGTERM."""
        self._is_stopping = True
        if not self.spec.serving.stop_argv:
            self._signal(signal.SIGTERM)
            return
        argv = tuple(self._fill(word, self.pid) for word in self.spec.serving.stop_argv)
        try:
            self._stop_command = StopCommand(
                argv, self._context, self.spec, self._output, self._terminate
            )
        except OSError as error:
            self._output.warning("swapd: cmdStop can't be run: %s; sending SIGTERM", error)
            self._terminate()

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the worker and its whole process group."""
        self._killed = True
        self._is_stopping = True
        self._signal(signal.SIGKILL)

    def kill_for(self, reason: str) -> None:
        """Kill the worker with `reason` as its exit reason."""
        self._given_reason = reason
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        """Signal the process group. Its pid can't be reused before `_ended` is set."""
        if self._ended:
            return
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            self._output.debug("swapd: process %d had exited before %s", self.pid, number.name)
        except PermissionError:
            # The error of macOS for a group of which only a zombie is left.
            self._output.debug("swapd: process %d could not be sent %s", self.pid, number.name)

    def _watch_exit(self) -> None:
        """Have `_reap` called when the process has exited, without reaping it."""
        try:
            # Preferred to a thread: starting one blocks until it runs.
            pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            threading.Thread(target=self._wait, name=f"wait for {self.pid}", daemon=True).start()
            return
        self._loop.add_reader(pidfd, self._pidfd_readable, pidfd)

    def _pidfd_readable(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        self._reap()

    def _wait(self) -> None:
        """Wait for the exit, in its own thread, then call `_reap` on the event loop."""
        if hasattr(os, "waitid"):
            # Without reaping, so that the pid is not reused before the group is killed.
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._reap)

    def _reap(self) -> None:
        # Children that the worker left behind are killed before its pid can be reused.
        self._signal(signal.SIGKILL)
        self._ended = True
        self._process.wait()
        try:
            self._release_resources()
        finally:
            # Also after an error: an exit that is not reported would occupy capacity for ever.
            if not self._was_respawned():
                self._listener.worker_exited(
                    self.worker, self._exit_reason(), self._was_killed_externally()
                )

    def _release_resources(self) -> None:
        """Release the resources of the process that has exited."""
        self._context.guardian.forget(self.pid)
        if self._stop_command is not None:
            self._stop_command.end()
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._message_reader is not None:
            self._message_reader.finish()
        self._output_reader.finish()

    def _was_respawned(self) -> bool:
        """Start a new process if a former warm standby was killed by a signal before any message.

        The cause is unknown, and the process may have been dead when it was taken. Returns True
        if the new process runs.
        """
        if not self._was_standby or self._is_stopping or self._process.returncode >= 0:
            return False
        self._was_standby = False
        try:
            self._begin(self._spawn())
        except OSError as error:
            self._given_reason = f"{self.argv[0]} can't be run: {error.strerror}"
            return False
        self._output.warning("swapd: the warm standby was killed; started pid %d instead", self.pid)
        return True

    def _was_killed_externally(self) -> bool:
        """Return True if a signal ended it that neither swapd nor the OOM killer sent."""
        status = self._process.returncode
        if status in TERMINATION_STATUSES:
            return not self._is_stopping
        killed = status == -signal.SIGKILL and not self._killed
        return killed and self._oom_kills is not None and oom_kills() == self._oom_kills

    def _exit_reason(self) -> str:
        """Return one sentence on how the worker ended, with the cause that it reported."""
        limit = self.spec.launch.limits.memory
        if limit and not self._is_ready and self._ran_out_of_memory():
            hint = f"its limits.memory, {limit / 2**20:,.0f} MiB, may be too small"
            return f"{self._exit_description()} ({hint})"
        return self._exit_description()

    def _ran_out_of_memory(self) -> bool:
        """Return True if status or output are those of a failed memory allocation."""
        if self._process.returncode in OUT_OF_MEMORY_STATUSES:
            return True
        output = "\n".join((self._given_reason, *self._tail))
        return any(text in output for text in OUT_OF_MEMORY_TEXTS)

    def _exit_description(self) -> str:
        if self._given_reason:
            return self._given_reason
        status = self._process.returncode
        if status == 0:
            return "the worker ended with exit status 0"
        if status < 0:
            text = f"the worker was ended by {_signal_name(-status)}"
        else:
            text = f"the worker ended with exit status {status}"
        # A process can't print a reason for SIGKILL: its last output is about something else.
        if status == -signal.SIGKILL or not self._tail:
            return text
        return f"{text}: {' | '.join(self._tail)}"


def _signal_name(number: int) -> str:
    """Return the name of a signal; real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
