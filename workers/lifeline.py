"""The worker's two connections to its supervisor, see `workers.protocol`.

Messages are written to the descriptor that `SWAPD_READY_FD` names. Standard input is the other
connection: when it ends, the supervisor is gone and the worker exits at once.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Mapping

from workers.protocol import READY_FD, LoadFailure, Message, encode_message


class Lifeline:
    """Writer of the messages. It never blocks: a line that does not fit the pipe is dropped."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._status = 0
        if descriptor is not None:
            os.set_blocking(descriptor, False)
            os.set_inheritable(descriptor, False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Lifeline:
        """Return the lifeline that SWAPD_READY_FD names, or one without a descriptor.

        Raise ValueError if the variable names no open descriptor.
        """
        value = environment.get(READY_FD)
        if value is None:
            return cls(None)
        try:
            return cls(int(value))
        except (ValueError, OSError) as error:
            raise ValueError(f"{READY_FD}={value!r} is not an open descriptor") from error

    @property
    def is_supervised(self) -> bool:
        """True if there is a supervisor."""
        return self._descriptor is not None

    def send(self, message: Message) -> None:
        """Write one message."""
        if isinstance(message, LoadFailure):
            # The supervisor may close standard input before the process has ended by itself.
            self._status = 1
        if self._descriptor is None:
            return
        try:
            os.write(self._descriptor, encode_message(message))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPIPE):
                raise

    def exit_with_stdin(self) -> None:
        """Start the thread that ends the process when standard input ends.

        It is started under a supervisor or behind a pipe only: a worker started from a terminal,
        or with `</dev/null`, goes on. The thread blocks in a system call and needs no event loop,
        so it works while a model loads and while the engine computes.
        """
        try:
            mode = os.fstat(0).st_mode
        except OSError:
            return  # The process was started without a standard input.
        if self._descriptor is not None or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            threading.Thread(target=self._wait_for_end, name="stdin", daemon=True).start()

    def _wait_for_end(self) -> None:
        while os.read(0, 4096):
            pass
        os._exit(self._status)
