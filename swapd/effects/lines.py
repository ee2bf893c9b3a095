"""Lines from a pipe, as they come."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

READ_SIZE = 65536


class LineReader:
    """Reads whole lines from a pipe on the event loop, without ever blocking it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, take: Callable[[bytes], None]
    ) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._take = take
        self._rest = b""
        self._open = True
        loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """Take what there is; whether there may be more."""
        try:
            chunk = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            chunk = b""
        if not chunk:
            self._close()
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)
        if len(self._rest) > READ_SIZE:
            self._take(self._rest)
            self._rest = b""
        return True

    def finish(self) -> None:
        """Take what is left, a line without its end included, and close."""
        while self._open and self._read():
            pass
        self._close()
        if self._rest:
            self._take(self._rest)
            self._rest = b""

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
