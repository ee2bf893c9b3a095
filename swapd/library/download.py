"""Download one file over HTTP: resume it where it broke off, verify it, then move it into place."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO, Protocol

from swapd.config.units import show_size
from swapd.system.aio import wall

CHUNK_BYTES = 2**20
READ_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as broken."""
SETTLED_AGE = 3600.0
"""Age in seconds that a finished file is given."""
MAX_ATTEMPTS = 3
"""Connections in a row that may break without having delivered a byte."""


class DownloadError(Exception):
    """A download failed; the message is one sentence."""


@dataclass(frozen=True, slots=True)
class Download:
    """A file to download. 0 and empty text mean unknown."""

    url: str
    target: Path
    size: int = 0
    """Bytes."""
    sha256: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Headers for the server of `url` alone, not for a server that it redirects to."""

    @property
    def part(self) -> Path:
        """Path of the incomplete file."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def etag_file(self) -> Path:
        """Path of the validator of the part, without which the part can't be resumed."""
        return self.target.with_name(f"{self.target.name}.part.etag")

    def received(self) -> int:
        """Return the bytes of the part; 0 when there is nothing to resume."""
        if not (self.part.is_file() and (self.sha256 or self.etag_file.is_file())):
            return 0
        return self.part.stat().st_size

    @property
    def done(self) -> bool:
        """True if the whole file is in place, judged by its size."""
        return self.target.is_file() and self.size in (0, self.target.stat().st_size)


class DownloadObserver(Protocol):
    """Progress of one download, and the decision whether it fits on the disk."""

    def check_space(self, missing: int) -> None:
        """Raise to cancel a download that has `missing` bytes to go."""

    def update(self, received: int, total: int) -> None:
        """Report the bytes received and the size of the file; 0: unknown."""

    def verifying(self) -> AbstractContextManager[None]:
        """Return a context that surrounds the computation of the checksum."""


class _BrokenError(Exception):
    """A connection broke; the message gives the reason."""


def fetch(download: Download, observer: DownloadObserver) -> None:
    """Download the file, and resume what an earlier broken connection has left.

    Raises DownloadError, and whatever `observer.check_space` raises.
    """
    download.target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(download):
        _fetch(download, observer)


@contextmanager
def _exclusive(download: Download) -> Iterator[None]:
    """Lock the part while the body runs. Raises DownloadError when another process has it."""
    file = _lock_part(download)
    try:
        yield
    finally:
        part = download.part
        if _is_part(download, file) and part.is_file() and not part.stat().st_size:
            part.unlink()
        file.close()


def _is_part(download: Download, file: IO[bytes]) -> bool:
    """Return True if the open file still has the part's name, which it loses when complete."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), download.part.stat())
    except FileNotFoundError:
        return False


def _lock_part(download: Download) -> IO[bytes]:
    """Open and lock the part; create it where there is none."""
    while True:
        file = download.part.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DownloadError(f"{download.target} is already being downloaded") from error
        except OSError as error:
            # Some network file systems have no locks; there the download runs without.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                file.close()
                raise
            return file
        # Another process may have completed and renamed the part before the lock was taken.
        if _is_part(download, file):
            return file
        file.close()


def _fetch(download: Download, observer: DownloadObserver) -> None:
    failures = 0
    while True:
        before = download.received()
        try:
            _receive(download, before, observer)
            break
        except _BrokenError as error:
            failures = 0 if download.received() > before else failures + 1
            if failures == MAX_ATTEMPTS:
                received = _size(download.received())
                raise DownloadError(
                    f"{download.url} broke off: {error}; {received} received,"
                    " and the same command resumes from there"
                ) from error
    _verify(download, observer)
    # The file is complete, but a sync skips young files since they may still be being copied.
    os.utime(download.part, (wall(), wall() - SETTLED_AGE))
    download.part.replace(download.target)
    download.etag_file.unlink(missing_ok=True)


def _receive(download: Download, offset: int, observer: DownloadObserver) -> None:
    """Receive as much as one connection delivers. Raises _BrokenError when it breaks."""
    try:
        with urllib.request.urlopen(_request(download, offset), timeout=READ_TIMEOUT) as response:
            offset = offset if _is_resumed(response, offset) else 0
            total = offset + int(response.headers.get("Content-Length") or 0)
            if download.size and total not in (offset, download.size):
                message = f"{download.url} has {total:,} bytes instead of {download.size:,}"
                raise DownloadError(message)
            observer.check_space(total - offset)
            etag = response.headers.get("ETag", "")
            if etag:
                download.etag_file.write_text(etag, encoding="utf-8")
            else:
                download.etag_file.unlink(missing_ok=True)
            _write(download, response, offset, total, observer)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:
                # The server has no byte beyond the part: the part is complete or belongs to
                # another version of the file, and the verification decides which.
                return
            message = f"{download.url} responds with {error.code} {error.reason}"
            raise DownloadError(message) from error
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise _BrokenError(str(getattr(error, "reason", "") or error)) from error


def _request(download: Download, offset: int) -> urllib.request.Request:
    request = urllib.request.Request(download.url)
    for name, value in download.headers.items():
        request.add_unredirected_header(name, value)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if download.etag_file.is_file():
            request.add_header("If-Range", download.etag_file.read_text(encoding="utf-8"))
    return request


def _is_resumed(response: http.client.HTTPResponse, offset: int) -> bool:
    """Return True if the response begins at `offset` and not at the start of the file."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(
        f"bytes {offset}-"
    )


def _write(
    download: Download,
    response: http.client.HTTPResponse,
    offset: int,
    total: int,
    observer: DownloadObserver,
) -> None:
    received = offset
    try:
        with download.part.open("ab" if offset else "wb") as file:
            observer.update(received, total)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                received += len(chunk)
                observer.update(received, total)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk is full: {download.part} has {_size(received)}"
            raise DownloadError(f"{message}; free some space and repeat the command") from error
        raise
    if total and received < total:
        raise _BrokenError(f"the connection ended at {received:,} of {total:,} bytes")


def _verify(download: Download, observer: DownloadObserver) -> None:
    """Delete the part and raise DownloadError when it is not the expected file."""
    size = download.part.stat().st_size
    problem = ""
    if download.size and size != download.size:
        problem = f"has {size:,} bytes instead of {download.size:,}"
    elif download.sha256:
        with observer.verifying():
            found = _sha256(download.part)
        if found != download.sha256.lower():
            problem = f"has the SHA-256 sum {found} instead of {download.sha256.lower()}"
    if not problem and download.target.suffix.lower() == ".gguf":
        problem = _damage(download.part)
    if problem:
        download.part.unlink()
        download.etag_file.unlink(missing_ok=True)
        raise DownloadError(f"{download.url} {problem}; it was deleted")


def _damage(path: Path) -> str:
    """Return why the file is no GGUF file; empty when it is one."""
    from swapd.gguf.reader import DamagedModelError, read_header

    try:
        read_header(path)
    except DamagedModelError as error:
        return str(error)
    return ""


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _size(count: int) -> str:
    return show_size(count) if count else "nothing"
