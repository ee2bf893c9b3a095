"""Logs: swapd's own and one for each model, on disk with a bound, the last lines in memory."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from pathlib import Path

from swapd.effects.log_file import LogFile

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
