"""Start of worker processes: pipes, environment, resource limits, and the warm standby.

Environment: workers get the variables that locate programs and libraries, identify the user and
the locale, and control a GPU or its libraries. Others are left out: the variables that configure
swapd, and keys. `env` of a model sets more, and `pass_env` names more.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from swapd.domain.models import ModelSpec, WorkerLimits
from swapd.process.orphans import RUN_ID, Guardian
from workers.protocol import READY_FD


def apply_limits(pid: int, limits: WorkerLimits) -> None:
    """Apply the limits to the process and to all its later children.

    They are set from outside right after the spawn: between fork and exec, they would prevent
    `vfork`. Memory and files are limited on Linux only (`prlimit`). Raises OSError when a limit
    can't be set.
    """
    try:
        _apply(pid, limits)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EPERM
        raise OSError(number, f"its limits can't be set: {error}") from error


def _apply(pid: int, limits: WorkerLimits) -> None:
    if limits.nice:
        os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
    if sys.platform != "linux":
        return
    if limits.memory:
        # Not the address space, in which a mapped model file would count whole: the data limit
        # counts the process's private writable memory.
        resource.prlimit(pid, resource.RLIMIT_DATA, (limits.memory, limits.memory))
    if limits.files:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limits.files, limits.files))


NO_LIMITS = WorkerLimits()


@dataclass(frozen=True, slots=True)
class SpawnContext:
    """Working directory, guardian and environment of all workers."""

    home: Path
    """Working directory of the workers; relative paths of a configuration start here."""
    guardian: Guardian
    environ: Mapping[str, str]
    """Variables of swapd's environment that workers inherit."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process and swapd's ends of its pipes."""

    process: subprocess.Popen[bytes]
    message_fd: int
    """Descriptor of the worker's messages, for built-in workers; else -1."""
    output_fd: int
    """Descriptor of the worker's printed output."""


def spawn(
    argv: tuple[str, ...],
    context: SpawnContext,
    env: Mapping[str, str],
    builtin: bool,
    limits: WorkerLimits = NO_LIMITS,
) -> Spawned:
    """Start `argv` in a new session; it inherits only its pipes.

    Raises OSError when the command can't be run, or its limits can't be set.
    """
    message_read, message_write = os.pipe() if builtin else (-1, -1)
    output_read, output_write = os.pipe()
    environ = {**context.environ, **env, RUN_ID: context.guardian.run_id}
    if builtin:
        environ[READY_FD] = str(message_write)
        # Without it, ggml starts a debugger when it aborts, and its output hides the reason.
        environ.setdefault("GGML_NO_BACKTRACE", "1")
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=output_write,
            stderr=output_write,
            cwd=context.home,
            env=environ,
            pass_fds=(message_write,) if builtin else (),
            start_new_session=True,
        )
    except OSError:
        _close(message_read, output_read)
        raise
    finally:
        _close(message_write, output_write)
    context.guardian.watch(process.pid)
    try:
        apply_limits(process.pid, limits)
    except OSError:
        _close(message_read, output_read)
        _kill(process, context)
        raise
    return Spawned(process, message_read, output_read)


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)


def _kill(process: subprocess.Popen[bytes], context: SpawnContext) -> None:
    """Kill and reap a process that is not used."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    context.guardian.forget(process.pid)
    assert process.stdin is not None
    process.stdin.close()


class WarmStandby:
    """At most one started built-in worker process that has not loaded a model yet.

    `serve` is the command of the built-in worker. `standby` is the command of a process that waits
    for the remaining arguments of `serve` as a line of JSON. The process does not count as a worker
    until it is taken.
    """

    def __init__(
        self, serve: tuple[str, ...], standby: tuple[str, ...], context: SpawnContext
    ) -> None:
        self._serve = serve
        self._standby = standby
        self._context = context
        self._waiting: Spawned | None = None

    def prepare(self) -> None:
        """Start the standby process if there is none."""
        if self._waiting is None:
            self._waiting = spawn(self._standby, self._context, {}, builtin=True)

    def take(self, spec: ModelSpec, argv: tuple[str, ...]) -> Spawned | None:
        """Turn the standby process into this model's worker; return None when none is suitable."""
        length = len(self._serve)
        default = not spec.launch.env and spec.launch.limits == NO_LIMITS
        suitable = spec.launch.builtin and default and argv[:length] == self._serve
        if self._waiting is None or not suitable:
            return None
        if self._waiting.process.poll() is not None:
            self.close()
            return None
        assert self._waiting.process.stdin is not None
        line = msgspec.json.encode(argv[length:]) + b"\n"
        try:
            os.write(self._waiting.process.stdin.fileno(), line)
        except BrokenPipeError:
            self.close()
            return None
        taken, self._waiting = self._waiting, None
        return taken

    def close(self) -> None:
        """Kill and reap the standby process: it has no work to finish, and may be stopped."""
        if self._waiting is None:
            return
        ended, self._waiting = self._waiting, None
        _kill(ended.process, self._context)
        _close(ended.message_fd, ended.output_fd)


DEFAULT_NAMES = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM", "TZ", "LANG", "LANGUAGE"),
    *("LC_*", "XDG_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"),
    *("GGML_*", "LLAMA_*", "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*"),
    *("CUDA*", "NVIDIA_*", "NCCL_*", "HIP_*", "HSA_*", "ROCR_*", "ROCM_*", "GPU_*", "AMD_*"),
    *("METAL_*", "MTL_*", "VK_*", "MESA_*", "ZE_*", "ONEAPI_*", "SYCL_*", "ASCEND_*", "MUSA_*"),
)
"""Inherited variables; `*` stands for any ending."""

SECRET_WORDS = frozenset(
    {"KEY", "KEYS", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "CREDENTIALS"}
)
"""Words in the names of secrets: such a variable is inherited only if named in full."""


def worker_environment(environ: Mapping[str, str], named: Sequence[str]) -> dict[str, str]:
    """Return the variables that workers inherit: the default ones and those in `named`.

    A name may end in `*`.
    """
    return {name: value for name, value in environ.items() if _passes(name, named)}


def _passes(name: str, named: Sequence[str]) -> bool:
    if name in named:
        return True
    if SECRET_WORDS & set(name.upper().split("_")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in (*DEFAULT_NAMES, *named))
