"""A log's file: bounded by turning over, and without a say in whether anything else works."""

from __future__ import annotations

import logging
import os
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
