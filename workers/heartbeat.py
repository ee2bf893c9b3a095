"""Heartbeats: reports to the supervisor that the worker makes progress with its requests.

Two threads can hang: the thread of the event loop and the engine's. A third thread checks both once
a second while there are requests, and sends a heartbeat only if both have moved since the last
check. Without requests it sleeps.
"""

from __future__ import annotations

import asyncio
import threading
import time

from workers.engine.engine import Engine
from workers.lifeline import Lifeline
from workers.protocol import Heartbeat

INTERVAL = 1.0
"""Seconds between heartbeats."""


class HeartbeatSender:
    """The heartbeat thread of one worker."""

    def __init__(self, lifeline: Lifeline, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._lifeline = lifeline
        self._engine = engine
        self._loop = loop
        self._requests = 0
        self._has_requests = threading.Event()
        self._loop_moved = True
        self._rounds = -1

    def start(self) -> None:
        """Start the third thread."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def begin(self) -> None:
        """Count a request that is being served. Called on the loop's thread, as `end`."""
        self._requests += 1
        self._has_requests.set()

    def end(self) -> None:
        """Count a request as served."""
        self._requests -= 1

    def check(self) -> bool:
        """Return True if both threads have moved since the last call. For one thread only."""
        moved = self._engine_moved() and self._loop_moved
        self._loop_moved = False
        self._loop.call_soon_threadsafe(self._mark_loop)
        return moved

    def _mark_loop(self) -> None:
        self._loop_moved = True

    def _engine_moved(self) -> bool:
        """Return True if the engine's thread waits for work or has computed something."""
        engine = self._engine
        rounds, self._rounds = self._rounds, engine.iterations
        computed = engine.model.progress.seen()
        return engine.idle or computed or rounds != self._rounds

    def _run(self) -> None:
        while True:
            self._has_requests.wait()
            time.sleep(INTERVAL)
            self._has_requests.clear()
            if self._requests:
                self._has_requests.set()
            try:
                moved = self.check()
            except RuntimeError:
                return  # The loop is closed: the process ends.
            if moved:
                self._lifeline.send(Heartbeat(self._engine.counters.steps))
