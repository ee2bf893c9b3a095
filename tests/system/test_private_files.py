"""Private files: modes whatever the umask, no other owner, no links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from swapd.system.lockfile import InstanceLock, exclusive_lock
from swapd.system.private_files import open_private, private_directory
from swapd.system.state_files import write_state
from tests.daemon import Swapd, config
from tests.fixtures import fake

CREATE = os.O_WRONLY | os.O_CREAT
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    private_directory(tmp_path / "state")
    os.close(open_private(tmp_path / "state/file", CREATE))
    assert _mode(tmp_path / "state") == 0o700
    assert _mode(tmp_path / "state/file") & 0o077 == 0


def test_what_is_too_open_is_tightened(tmp_path: Path) -> None:
    folder, file = tmp_path / "state", tmp_path / "state/file"
    folder.mkdir()
    file.touch()
    folder.chmod(0o777)
    file.chmod(0o666)
    private_directory(folder)
    os.close(open_private(file, CREATE))
    assert (_mode(folder), _mode(file)) == (0o700, 0o600)


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root's")
    state = tmp_path / "state"
    private_directory(state)
    for name in ("lock", "edits.lock", "names.json"):
        (state / name).symlink_to(victim)
    with pytest.raises(PermissionError, match="is a link"):
        InstanceLock(state)
    with pytest.raises(PermissionError, match="is a link"), exclusive_lock(state / "edits.lock"):
        pass
    write_state(state / "names.json", {"a": 1})
    assert not (state / "names.json").is_symlink()
    assert victim.read_text() == "root's"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_only_a_regular_file_is_opened(tmp_path: Path, make: object) -> None:
    make(tmp_path / "file")  # type: ignore[operator]
    with pytest.raises(OSError):
        open_private(tmp_path / "file", CREATE)


@root_only
def test_a_directory_or_file_of_another_user_is_refused(tmp_path: Path) -> None:
    folder, file, link = tmp_path / "state", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    file.touch()
    link.symlink_to(tmp_path)
    for path in (folder, file, link):
        os.chown(path, 12345, 12345, follow_symlinks=False)
    for path in (folder, link):
        with pytest.raises(PermissionError, match="belongs to another user"):
            private_directory(path)
    with pytest.raises(PermissionError, match="belongs to another user"):
        open_private(file, CREATE)


def test_all_files_of_a_running_swapd_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Swapd(tmp_path, config({"a": fake("a")})) as swapd:
            assert swapd.ask("a").status_code == 200
            state = tmp_path / ".swapd"
            found = [state, *state.rglob("*")]
            assert {path.name for path in found} >= {"lock", "workers.json", "swapd.log"}
            assert [p for p in found if p.exists() and _mode(p) & 0o077] == []
    finally:
        os.umask(before)
