"""Logs: one of swapd and one per model, in bounded files, with their last lines in memory.

A log file that can't be written, for example on a full disk, stops nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from itertools import pairwise
from pathlib import Path

from swapd.system.private_files import open_private, private_directory

FILE_BYTES = 5 * 2**20
"""Bytes after which a log file is rotated."""
ROTATED_FILES = 2
"""Rotated files beside the current one."""


class LogFile(logging.Handler):
    """Handler that appends lines to `file` and rotates it: `file.1` is the newest rotated file.

    Lines that can't be written, because the disk is full or the folder missing, are counted and
    dropped; their number is written before the next line that succeeds.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._fd = -1
        self._size = 0
        self._dropped = 0
        self._reason = ""
        self._partial = False

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode("utf-8", "replace")
        try:
            if self._dropped:
                missing = f"{self._dropped} lines are missing here: {self._reason}\n"
                self._write(missing.encode())
                self._dropped = 0
            self._write(line)
        except OSError as error:
            self._dropped += 1
            self._reason = error.strerror or str(error)
            self._close_file()

    def _write(self, line: bytes) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._fd = open_private(self._file, flags)
            self._size = os.fstat(self._fd).st_size
        if self._size and self._size + len(line) > FILE_BYTES:
            self._rotate()
            return self._write(line)
        line = b"\n" + line if self._partial else line
        while line:
            written = os.write(self._fd, line)
            self._size += written
            line = line[written:]
            self._partial = bool(line)
        return None

    def _rotate(self) -> None:
        self._close_file()
        names = [self._file, *(Path(f"{self._file}.{i + 1}") for i in range(ROTATED_FILES))]
        for name, older in reversed(list(pairwise(names))):
            if name.exists():
                name.replace(older)

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        self._close_file()
        super().close()


TAIL_LINES = 200
"""Lines of a log in memory."""
LINE_LENGTH = 2000
"""Characters of a line in memory; the file has the whole line."""
NAME_LENGTH = 50
"""Characters of a model's name in the name of its log file, of at most four bytes each."""


class Tail(logging.Handler):
    """Handler that stores the last lines of a log in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record)[:LINE_LENGTH])


def log_file(folder: Path, model: str = "") -> Path:
    """Return the path of a model's log file or, without a name, of swapd's log file.

    No two models share a file: a name that is no valid file name gets a checksum.
    """
    if not model:
        return folder / "swapd.log"
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in model)[:NAME_LENGTH]
    if name != model:
        name += f"~{hashlib.sha256(model.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return folder / f"model-{name}.log"


class ClientFaults(logging.Filter):
    """Filter that removes the traceback of errors that clients caused."""

    def __init__(self, faults: tuple[type[BaseException], ...]) -> None:
        super().__init__()
        self._faults = faults

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, self._faults):
            record.msg, record.args = f"{record.getMessage()}: {error}".splitlines()[0], ()
            record.exc_info, record.exc_text = None, None
        return True


class Logs:
    """All logs of a data directory. `folder` is created when it is missing."""

    def __init__(self, folder: Path, level: str, foreground: bool) -> None:
        private_directory(folder)
        self.folder = folder
        self.own = logging.Logger("swapd", level.upper())
        self._tails: dict[str, Tail] = {}
        self._models: dict[str, logging.Logger] = {}
        formatter = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
        handlers = [self._file(""), self._tail("")]
        if foreground:
            handlers.append(logging.StreamHandler())
        for handler in handlers:
            handler.setFormatter(formatter)
            self.own.addHandler(handler)

    @property
    def own_file(self) -> Path:
        """Path of swapd's log file."""
        return log_file(self.folder)

    def of(self, model: str) -> logging.Logger:
        """Return the log of the printed output of this model's workers."""
        if model not in self._models:
            log = logging.Logger(model, logging.INFO)
            log.addHandler(self._file(model))
            log.addHandler(self._tail(model))
            for handler in log.handlers:
                handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._models[model] = log
        return self._models[model]

    def http_logger(self, *faults: type[BaseException]) -> logging.Logger:
        """Return the HTTP server's logger, which writes to swapd's log.

        `faults` are the errors caused by clients.
        """
        log = logging.Logger("http", logging.INFO)
        log.addFilter(ClientFaults(faults))
        for handler in self.own.handlers:
            log.addHandler(handler)
        return log

    def last(self, model: str = "") -> list[str]:
        """Return the last lines of a model's log or, without a name, of swapd's log."""
        tail = self._tails.get(model)
        return list(tail.lines) if tail else []

    def close(self) -> None:
        """Close all log files."""
        for log in [self.own, *self._models.values()]:
            for handler in list(log.handlers):
                log.removeHandler(handler)
                handler.close()

    def _file(self, model: str) -> logging.Handler:
        return LogFile(log_file(self.folder, model))

    def _tail(self, model: str) -> Tail:
        tail = Tail()
        self._tails[model] = tail
        return tail
