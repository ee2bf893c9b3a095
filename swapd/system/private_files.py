"""Files that only their owner may use, whatever the umask, and that are not reached by links.

The state directory holds sockets, prompts in logs, and files that swapd trusts more than others.
Other users of the machine may share the folder above it. So its mode is set and not left to the
umask, a directory of another user is refused, and a link in place of a file is never followed:
its author would choose the file that swapd overwrites.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_directory(folder: Path) -> None:
    """Create the directory with mode 0700, or tighten the mode of an existing one.

    Folders above it are created as usual. A link is accepted if it and its target belong to this
    user. Raises PermissionError if the directory belongs to another user, or OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        _check_owner(folder, folder.lstat())
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        status = os.fstat(handle)
        _check_owner(folder, status)
        if stat.S_IMODE(status.st_mode) & _OTHERS or status.st_mode & 0o700 != 0o700:
            os.fchmod(handle, 0o700)
    finally:
        os.close(handle)


def open_private(path: Path, flags: int) -> int:
    """Open a file as `os.open` does and return its descriptor; a new file has mode 0600.

    The mode of an existing file is tightened. Raises PermissionError for a link, for a file of
    another user and for anything but a regular file, or OSError.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP or path.is_symlink():
            message = "is a link, and files of the state directory are not reached by links"
            raise PermissionError(errno.EPERM, message, str(path)) from None
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(errno.EPERM, "is not a regular file", str(path))
        _check_owner(path, status)
        if stat.S_IMODE(status.st_mode) & _OTHERS:
            os.fchmod(handle, 0o600)
    except OSError:
        os.close(handle)
        raise
    return handle


def _check_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        message = f"belongs to another user (uid {status.st_uid})"
        raise PermissionError(errno.EPERM, message, str(path))
