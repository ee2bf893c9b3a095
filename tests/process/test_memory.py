"""Memory held by processes."""

from __future__ import annotations

import subprocess
import sys

from swapd.process import memory


def test_the_memory_held_grows_with_a_process() -> None:
    def held(megabytes: int) -> int:
        code = f"x = bytearray({megabytes} * 2**20); print(flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        sample = memory.sample([process.pid])
        process.kill()
        process.communicate()
        assert 0 < sample.used_percent < 100
        return sample.held[process.pid]

    assert 90 * 2**20 < held(100) - held(0) < 110 * 2**20


def test_a_process_that_has_ended_holds_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert memory.sample([process.pid]).held == {}
