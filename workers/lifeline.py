"""The two threads that tie a worker to whoever started it.

`SWAPD_READY_FD` names an inherited descriptor for JSON lines: one `{"ready": true, …}` or
`{"error": …}`, then `{"beat": <steps>}` while the worker gets on with requests (see `pulse`).
Standard input is the other: when it ends, the starter is gone, and the worker goes at once.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Mapping

VARIABLE = "SWAPD_READY_FD"


class Lifeline:
    """Writes the lines. Never waits for the reader: a line that does not fit is dropped."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._status = 0
        if descriptor is not None:
            os.set_blocking(descriptor, False)
            os.set_inheritable(descriptor, False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Lifeline:
        """The lifeline that SWAPD_READY_FD names; a mute one if it is not set.

        Raises ValueError if it names no open descriptor.
        """
        named = environment.get(VARIABLE)
        if named is None:
            return cls(None)
        try:
            return cls(int(named))
        except (ValueError, OSError) as error:
            raise ValueError(f"{VARIABLE}={named!r} is not an open descriptor") from error

    @property
    def is_heard(self) -> bool:
        """Whether there is a supervisor."""
        return self._descriptor is not None

    def ready(self, **facts: object) -> None:
        """The worker listens and its model is loaded."""
        self._write({"ready": True, **facts})

    def failed(self, sentence: str) -> None:
        """It will not come up, and why."""
        self._status = 1  # whoever hears this may well hang up before the process has ended
        self._write({"error": sentence})

    def beat(self, steps: int) -> None:
        """The worker gets on; `steps` are those that were computed so far."""
        self._write({"beat": steps})

    def end_with_stdin(self) -> None:
        """Starts the thread that ends the process when standard input ends.

        Only under a supervisor or behind a pipe: someone who starts a worker from a terminal, or
        with `</dev/null`, keeps it. It blocks in a system call and needs no event loop, so it
        works while a model loads and while a step runs.
        """
        try:
            mode = os.fstat(0).st_mode
        except OSError:
            return  # started without a standard input: there is nothing that could end
        if self._descriptor is not None or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            threading.Thread(target=self._wait_for_end, name="stdin", daemon=True).start()

    def _wait_for_end(self) -> None:
        while os.read(0, 4096):
            pass
        os._exit(self._status)

    def _write(self, line: dict[str, object]) -> None:
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPIPE):
                raise
