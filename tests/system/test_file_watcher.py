"""File watches on a system with no inotify instances left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.daemon import ROOT

NONE_LEFT = 'echo 0 >/proc/sys/user/max_inotify_instances || exit 77; exec "$0" "$@"'
WATCH = """
import asyncio, os, sys
from pathlib import Path
from swapd.system.file_watcher import FileWatch
async def main(file):
    os.utime(file, (1e9, 1e9))  # Polling compares times to the second.
    seen = asyncio.Event()
    watch = FileWatch([file], seen.set)
    file.write_text("more")
    await asyncio.wait_for(seen.wait(), 30)
    watch.close()
asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is not installed")
def test_changes_are_noticed_by_polling(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = ["unshare", "-Ur", "sh", "-c", NONE_LEFT]
    command = [sys.executable, "-c", WATCH, str(tmp_path / "file")]
    done = subprocess.run(
        [*inside, *command], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"namespaces are not available: {done.stderr}")
    assert done.returncode == 0, done.stderr
