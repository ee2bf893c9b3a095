"""One file over HTTP onto the disk: resumed where it broke off, checked, and then put in place."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO

from swapd.cli.output import FailedError, confirm, show_bytes, waiting
from swapd.system.aio import wall

PIECE = 2**20
SILENCE = 60.0
"""Seconds without a byte after which a connection counts as broken."""
SETTLED = 3600.0
TRIES = 3
"""Connections in a row that may break before they have brought anything."""

Moved = Callable[[int, int], None]
"""Told how many bytes there are by now, and of how many; 0: nobody knows."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file to fetch. 0 and empty text: not known."""

    url: str
    target: Path
    size: int = 0
    sha256: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """For the server that is asked, not for one that it sends on to."""

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def origin(self) -> Path:
        """Holds the validator of what is in the part, without which it can't be gone on with."""
        return self.target.with_name(f"{self.target.name}.part.etag")

    def there(self) -> int:
        """Bytes of the part; 0 when nothing can be gone on with."""
        if not (self.part.is_file() and (self.sha256 or self.origin.is_file())):
            return 0
        return self.part.stat().st_size

    @property
    def done(self) -> bool:
        """The whole file is there already, as far as its size tells."""
        return self.target.is_file() and self.size in (0, self.target.stat().st_size)


class _BrokenError(Exception):
    """A connection broke; the message says how."""


def need_room(folder: Path, missing: int, assume_yes: bool) -> None:
    """Ask before something is begun that the disk can't hold. Raises FailedError on a no."""
    place = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if missing <= free or assume_yes:
        return
    told = f"{show_bytes(missing)} are to come and {place} has {show_bytes(free) or 'nothing'} free"
    if not confirm(f"{told}: begin all the same?"):
        raise FailedError(f"{told}; make room, or use --yes")


def fetch(wanted: Download, room: Callable[[int], None], moved: Moved) -> None:
    """Bring the file; what a broken connection has left is gone on with, now or another time.

    `room` is asked once, with the bytes that are missing. Raises FailedError.
    """
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(wanted):
        _fetch(wanted, room, moved)


@contextmanager
def _alone(wanted: Download) -> Iterator[None]:
    """The part belongs to this process meanwhile. Raises FailedError where another has it."""
    file = _held(wanted)
    try:
        yield
    finally:
        if _is_part(wanted, file) and wanted.part.is_file() and not wanted.part.stat().st_size:
            wanted.part.unlink()
        file.close()


def _is_part(wanted: Download, file: IO[bytes]) -> bool:
    """Whether the open file still has that name: it loses it when it is whole."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), wanted.part.stat())
    except FileNotFoundError:
        return False


def _held(wanted: Download) -> IO[bytes]:
    """The part, opened and locked; made where there is none."""
    while True:
        file = wanted.part.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise FailedError(f"{wanted.target} is being fetched already") from error
        except OSError as error:
            # Some shares on a network know no locks; there it goes without.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                file.close()
                raise
            return file
        if _is_part(wanted, file):
            return file
        file.close()


def _fetch(wanted: Download, room: Callable[[int], None], moved: Moved) -> None:
    failures = 0
    while True:
        before = wanted.there()
        try:
            _receive(wanted, before, room, moved)
            break
        except _BrokenError as error:
            failures = 0 if wanted.there() > before else failures + 1
            if failures == TRIES:
                came = show_bytes(wanted.there()) or "nothing"
                raise FailedError(
                    f"{wanted.url} broke off: {error}; {came} came,"
                    " and the same command goes on from there"
                ) from error
    _check(wanted)
    # It is whole; a young file is passed over by sync, for it might still be being copied.
    os.utime(wanted.part, (wall(), wall() - SETTLED))
    wanted.part.replace(wanted.target)
    wanted.origin.unlink(missing_ok=True)


def _receive(wanted: Download, begin: int, room: Callable[[int], None], moved: Moved) -> None:
    """One connection's worth."""
    try:
        with urllib.request.urlopen(_request(wanted, begin), timeout=SILENCE) as answer:
            begin = begin if _goes_on(answer, begin) else 0
            total = begin + int(answer.headers.get("Content-Length") or 0)
            if wanted.size and total not in (begin, wanted.size):
                message = f"{wanted.url} has {total:,} bytes instead of {wanted.size:,}"
                raise FailedError(message)
            room(total - begin)
            etag = answer.headers.get("ETag", "")
            if etag:
                wanted.origin.write_text(etag, encoding="utf-8")
            else:
                wanted.origin.unlink(missing_ok=True)
            _write(wanted, answer, begin, total, moved)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and begin:
                # There is no more than is here, so it is whole or of another file: the check tells.
                return
            raise FailedError(f"{wanted.url} answers {error.code} {error.reason}") from error
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise _BrokenError(str(getattr(error, "reason", "") or error)) from error


def _request(wanted: Download, begin: int) -> urllib.request.Request:
    request = urllib.request.Request(wanted.url)
    for name, value in wanted.headers.items():
        request.add_unredirected_header(name, value)
    if begin:
        request.add_header("Range", f"bytes={begin}-")
        if wanted.origin.is_file():
            request.add_header("If-Range", wanted.origin.read_text(encoding="utf-8"))
    return request


def _goes_on(answer: http.client.HTTPResponse, begin: int) -> bool:
    """Whether the answer begins where we have got to, and not at the start."""
    return answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
        f"bytes {begin}-"
    )


def _write(
    wanted: Download, answer: http.client.HTTPResponse, begin: int, total: int, moved: Moved
) -> None:
    at = begin
    try:
        with wanted.part.open("ab" if begin else "wb") as file:
            moved(at, total)
            while piece := answer.read(PIECE):
                file.write(piece)
                at += len(piece)
                moved(at, total)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full: {wanted.part} has {show_bytes(at) or 'nothing'}"
            raise FailedError(f"{message}; make room and give the same command again") from error
        raise
    if total and at < total:
        raise _BrokenError(f"the connection ended at {at:,} of {total:,} bytes")


def _check(wanted: Download) -> None:
    """Raises FailedError, and throws the part away, when it is not what was wanted."""
    size = wanted.part.stat().st_size
    problem = ""
    if wanted.size and size != wanted.size:
        problem = f"has {size:,} bytes instead of {wanted.size:,}"
    elif wanted.sha256:
        with waiting(f"checking {wanted.target.name}"):
            found = _sha256(wanted.part)
        if found != wanted.sha256.lower():
            problem = f"has the SHA-256 sum {found} instead of {wanted.sha256.lower()}"
    if not problem and wanted.target.suffix.lower() == ".gguf":
        problem = _damage(wanted.part)
    if problem:
        wanted.part.unlink()
        wanted.origin.unlink(missing_ok=True)
        raise FailedError(f"{wanted.url} {problem}; it was thrown away")


def _damage(path: Path) -> str:
    """Why the file is no GGUF file; empty when it is one."""
    from swapd.gguf.reader import DamagedModelError, read_header

    try:
        read_header(path)
    except DamagedModelError as error:
        return str(error)
    return ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def fetch_all(files: list[Download], room: Callable[[int], None]) -> None:
    """Fetch one after the other, with a bar for whoever is at a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    shown = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as progress:
        for wanted in files:
            if wanted.done:
                print(f"there already  {wanted.target}")
                continue
            task = progress.add_task(wanted.target.name, total=wanted.size or None)

            def moved(at: int, total: int, task: object = task) -> None:
                progress.update(task, completed=at, total=total or None)  # type: ignore[arg-type]

            fetch(wanted, room, moved)
            print(f"fetched  {wanted.target}")
