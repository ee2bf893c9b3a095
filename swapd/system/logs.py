"""Logs: swapd's own and one for each model, on disk with a bound, the last lines in memory.

A log's file: bounded by turning over, and without a say in whether anything else works.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from itertools import pairwise
from pathlib import Path

FILE_BYTES = 5 * 2**20
FILES_KEPT = 2
"""Earlier ones, beside the one that is written."""


class LogFile(logging.Handler):
    """Appends lines to `file`; when it is full it becomes `file.1`, that `file.2`, and so on.

    Lines that can't be written, because the disk is full or the folder gone, are counted and
    dropped; the first one that can be written again is preceded by how many they were.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file
        self._fd = -1
        self._size = 0
        self._lost = 0
        self._why = ""
        self._torn = False

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode("utf-8", "replace")
        try:
            if self._lost:
                missing = f"{self._lost} lines are missing here: {self._why}\n"
                self._write(missing.encode())
                self._lost = 0
            self._write(line)
        except OSError as error:
            self._lost += 1
            self._why = error.strerror or str(error)
            self._release()

    def _write(self, line: bytes) -> None:
        if self._fd < 0:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            self._fd = os.open(self._file, flags, 0o644)
            self._size = os.fstat(self._fd).st_size
        if self._size and self._size + len(line) > FILE_BYTES:
            self._turn_over()
            return self._write(line)
        line = b"\n" + line if self._torn else line
        while line:
            done = os.write(self._fd, line)
            self._size += done
            line = line[done:]
            self._torn = bool(line)
        return None

    def _turn_over(self) -> None:
        self._release()
        names = [self._file, *(Path(f"{self._file}.{i + 1}") for i in range(FILES_KEPT))]
        for name, older in reversed(list(pairwise(names))):
            if name.exists():
                name.replace(older)

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        self._release()
        super().close()


LINES_KEPT = 200
LINE_LENGTH = 2000
"""Characters of a line that are kept in memory; the file has all of it."""
NAME_LENGTH = 50
"""Characters of a model's name in its file's, four bytes at most each."""


class Tail(logging.Handler):
    """Remembers the last lines of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record)[:LINE_LENGTH])


def log_file(folder: Path, model: str = "") -> Path:
    """Where in the folder of logs a model's is, or, without a name, swapd's own.

    No two models share one: a name that can't be a file's is told from others by a sum of it.
    """
    if not model:
        return folder / "swapd.log"
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in model)[:NAME_LENGTH]
    if name != model:
        name += f"~{hashlib.sha256(model.encode('utf-8', 'replace')).hexdigest()[:8]}"
    return folder / f"model-{name}.log"


class ClientFaults(logging.Filter):
    """Takes the traceback off what a client did wrong or broke off: it is no fault of ours."""

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
    """All logs of one home. `folder` is made when it is missing."""

    def __init__(self, folder: Path, level: str, foreground: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.own = logging.Logger("swapd", level.upper())
        self._tails: dict[str, Tail] = {}
        self._models: dict[str, logging.Logger] = {}
        form = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
        handlers = [self._file(""), self._tail("")]
        if foreground:
            handlers.append(logging.StreamHandler())
        for handler in handlers:
            handler.setFormatter(form)
            self.own.addHandler(handler)

    @property
    def own_file(self) -> Path:
        return log_file(self.folder)

    def of(self, model: str) -> logging.Logger:
        """The log of what this model's workers print."""
        if model not in self._models:
            log = logging.Logger(model, logging.INFO)
            log.addHandler(self._file(model))
            log.addHandler(self._tail(model))
            for handler in log.handlers:
                handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._models[model] = log
        return self._models[model]

    def of_server(self, *faults: type[BaseException]) -> logging.Logger:
        """A logger for the HTTP server, into swapd's own log; `faults` are those of clients."""
        log = logging.Logger("http", logging.INFO)
        log.addFilter(ClientFaults(faults))
        for handler in self.own.handlers:
            log.addHandler(handler)
        return log

    def last(self, model: str = "") -> list[str]:
        """The last lines of a model's log, or, without a name, of swapd's own."""
        tail = self._tails.get(model)
        return list(tail.lines) if tail else []

    def close(self) -> None:
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
