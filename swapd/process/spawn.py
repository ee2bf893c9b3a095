"""Starting a worker's process, with the pipes by which it is heard; and keeping a spare one.

Limits that the kernel holds a worker to.

Which variables of swapd's own environment its workers get to see.

What finds programs and libraries, says who and where one is, and steers a GPU or its libraries.
Nothing else: not what swapd itself is told by, and no keys. `env` of a model sets more, and
`pass_env` names more.
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
from swapd.process.orphans import MARK, Guardian
from workers.protocol import READY_FD


def limit(pid: int, limits: WorkerLimits) -> None:
    """Hold the process, and all that it starts from now on, to these limits.

    Set from outside right after the spawn: doing it between fork and exec would cost the `vfork`.
    Memory and files are Linux's alone (`prlimit`). Raises OSError when one can't be set.
    """
    try:
        _set(pid, limits)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EPERM
        raise OSError(number, f"its limits can't be set: {error}") from error


def _set(pid: int, limits: WorkerLimits) -> None:
    if limits.nice:
        os.setpriority(os.PRIO_PROCESS, pid, limits.nice)
    if sys.platform != "linux":
        return
    if limits.memory:
        # Not the address space: a model's file, mapped, would count whole. This is what the
        # process may write to that is its own.
        resource.prlimit(pid, resource.RLIMIT_DATA, (limits.memory, limits.memory))
    if limits.files:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (limits.files, limits.files))


NO_LIMITS = WorkerLimits()


@dataclass(frozen=True, slots=True)
class SpawnContext:
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
    place: SpawnContext,
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
        environ[READY_FD] = str(word_in)
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


def _end(process: subprocess.Popen[bytes], place: SpawnContext) -> None:
    """Kill and reap one that is not to be."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    place.guardian.forget(process.pid)
    assert process.stdin is not None
    process.stdin.close()


class WarmStandby:
    """At most one process of ours that has all behind it but its model.

    `serve` is the command of our worker and `spare` the one of a worker that waits for the rest
    of that command as a line of JSON. Nobody counts it as a worker until it is taken.
    """

    def __init__(self, serve: tuple[str, ...], spare: tuple[str, ...], place: SpawnContext) -> None:
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
        plain = not spec.launch.env and spec.launch.limits == NO_LIMITS
        fits = spec.launch.builtin and plain and argv[:length] == self._serve
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


USUAL = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TERM", "TZ", "LANG", "LANGUAGE"),
    *("LC_*", "XDG_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_*", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"),
    *("GGML_*", "LLAMA_*", "OMP_*", "GOMP_*", "KMP_*", "MKL_*", "OPENBLAS_*"),
    *("CUDA*", "NVIDIA_*", "NCCL_*", "HIP_*", "HSA_*", "ROCR_*", "ROCM_*", "GPU_*", "AMD_*"),
    *("METAL_*", "MTL_*", "VK_*", "MESA_*", "ZE_*", "ONEAPI_*", "SYCL_*", "ASCEND_*", "MUSA_*"),
)
"""Names, and beginnings of names before a `*`."""

SECRET = frozenset(
    {"KEY", "KEYS", "TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "CREDENTIALS"}
)
"""A variable with one of these words in its name is passed on only by its whole name."""


def worker_environment(own: Mapping[str, str], named: Sequence[str]) -> dict[str, str]:
    """What of `own` a worker gets: the usual, and what `named` says, `*` at ends allowed."""
    return {name: value for name, value in own.items() if _passes(name, named)}


def _passes(name: str, named: Sequence[str]) -> bool:
    if name in named:
        return True
    if SECRET & set(name.upper().split("_")):
        return False
    return any(fnmatchcase(name, pattern) for pattern in (*USUAL, *named))
