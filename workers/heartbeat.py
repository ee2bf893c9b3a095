"""Whether the worker gets on with what it is asked, told to whoever supervises it.

Two threads can stop getting on: the event loop's and the one that computes. A third asks both, once
a second as long as there is a request, and only if both have moved since does it write a beat. At
rest it sleeps.
"""

from __future__ import annotations

import asyncio
import threading
import time

from workers.engine.engine import Engine
from workers.lifeline import Lifeline

INTERVAL = 1.0
"""Seconds between beats."""


class Heartbeat:
    """One worker's."""

    def __init__(self, lifeline: Lifeline, engine: Engine, loop: asyncio.AbstractEventLoop) -> None:
        self._lifeline = lifeline
        self._engine = engine
        self._loop = loop
        self._requests = 0
        self._wanted = threading.Event()
        self._loop_moved = True
        self._rounds = -1

    def start(self) -> None:
        """Starts the third thread."""
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def begin(self) -> None:
        """A request is being served. On the loop's thread, as `end`."""
        self._requests += 1
        self._wanted.set()

    def end(self) -> None:
        """It is served."""
        self._requests -= 1

    def look(self) -> bool:
        """Whether both threads have moved since it was last asked. From any one thread."""
        moved = self._engine_moved() and self._loop_moved
        self._loop_moved = False
        self._loop.call_soon_threadsafe(self._move)
        return moved

    def _move(self) -> None:
        self._loop_moved = True

    def _engine_moved(self) -> bool:
        """Whether the thread that computes waits for work, or has done some."""
        engine = self._engine
        rounds, self._rounds = self._rounds, engine.rounds
        computed = engine.model.progress.seen()
        return engine.resting or computed or rounds != self._rounds

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            time.sleep(INTERVAL)
            self._wanted.clear()
            if self._requests:
                self._wanted.set()
            try:
                moved = self.look()
            except RuntimeError:
                return  # the loop is closed: the process ends
            if moved:
                self._lifeline.beat(self._engine.counters.steps)
