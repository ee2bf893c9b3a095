"""Background tasks."""

from __future__ import annotations

import asyncio
import logging

import pytest

from swapd.system.aio import Tasks


async def test_a_failed_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("test of tasks")
    tasks = Tasks(log)

    async def fail() -> None:
        raise ValueError("lost?")

    with pytest.raises(ValueError, match="lost"):
        await tasks.run(fail(), "the task")
    assert "the task failed" in caplog.text
    assert "lost?" in caplog.text
    waits = tasks.run(asyncio.Event().wait(), "waits")  # type: ignore[arg-type]
    await tasks.end()
    assert waits.cancelled()
