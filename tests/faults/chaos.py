"""Chaos run: a real swapd under load, with random faults from one seed.

`python -m tests.faults.chaos --seconds 3600 --seed 1`. Kills and stops workers, the warm standby
and the guardian; fills swapd's disk; steps its clock; edits the configuration, also into invalid
ones; unloads models; has clients leave, read slowly and open idle connections. Then it checks:
requests sent = answered + rejected + cancelled, every complete response is the expected one, no
process is left, descriptors and memory are back to their start.

The same seed gives the same faults and requests in the same order; how they interleave depends on
the machine. Clock steps apply to the time of day of swapd and its workers (`tests/clock`); a step
of the machine's clock would affect all processes.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from swapd.process.orphans import RUN_ID
from swapd.system.aio import now
from swapd.system.process_identity import environment_variable
from tests.clock import SteppedClock, can_step
from tests.daemon import Swapd, alive, config, eventually
from tests.disk import can_mount, fill, small_disk
from tests.faults.chaos_clients import BUILTIN, EXTERNAL, QUESTIONS, Client, Plan, Tally
from tests.fixtures import demo, fake

CLIENTS = 6
STEP = 365 * 86400
DISK_KIB = 24 * 1024
MAY_BREAK_OFF = ("broken off (external, ", "broken off (builtin, model_start_failed)")
"""Responses that may end in an error event.

Those of an external worker, and a resumed one of a built-in worker if the next worker was killed
while it loaded, which counts as a failed start.
"""
FAULTS = {
    "kill": 10,
    "stop": 4,
    "hang": 1,
    "kill_guardian": 1,
    "kill_standby": 1,
    "unload": 3,
    "unload_all": 1,
    "edit_policy": 2,
    "edit_command": 2,
    "edit_invalid": 1,
    "edit_models": 2,
    "fill_disk": 2,
    "step_clock": 2,
    "idle_connections": 2,
}
"""Relative frequency of each fault."""


def _models() -> dict[str, Any]:
    return {
        "bard": demo("bard", "--parallel 4", ttl=20),
        "alice": demo("alice", "--parallel 2", ttl=20),
        EXTERNAL: fake(EXTERNAL, ttl=20),
        "extra": fake("extra", ttl=1),
    }


def _text(models: dict[str, Any]) -> str:
    """Return a configuration with capacity for two workers, so that models swap all the time."""
    return config(
        models,
        max_resident=2,
        max_turn=2,
        hang_timeout=3,
        drain_timeout=5,
        warm_standby=True,
        stop_grace=3,
    )


@dataclass
class Faults:
    """Injector of faults into a running swapd, one after the other."""

    swapd: Swapd
    chance: random.Random
    disk: Path | None
    clock: SteppedClock | None
    over: threading.Event
    thrown: Counter[str] = field(default_factory=Counter)
    _models: dict[str, Any] = field(default_factory=_models)
    _stopped: list[int] = field(default_factory=list)
    _which: int = 0
    _number: float = 0.0

    def throw_until(self, end: float) -> None:
        """Inject faults at intervals of up to 1.5 s until `end`; then undo the lasting ones."""
        while now() < end:
            self.over.wait(self.chance.uniform(0.1, 1.5))
            name = self.chance.choices([*FAULTS], [*FAULTS.values()])[0]
            self._which, self._number = self.chance.randrange(12), self.chance.random()
            getattr(self, f"_{name}")()
            self.thrown[name] += 1
        for pid in self._stopped:
            _signal(pid, signal.SIGCONT)
        self._models = _models()
        self._write()

    def _worker(self) -> int | None:
        running = self.swapd.running()
        return running[self._which % len(running)]["pid"] if running else None

    def _child(self, word: str) -> int | None:
        """Return a child of swapd with this word in its command."""
        for child in psutil.Process(self.swapd.process.pid).children():
            try:
                if word in child.cmdline():
                    return child.pid
            except psutil.NoSuchProcess:
                continue
        return None

    def _kill(self) -> None:
        _signal(self._worker(), signal.SIGKILL)

    def _stop(self) -> None:
        pid = self._worker()
        _signal(pid, signal.SIGSTOP)
        self.over.wait(self._number)
        _signal(pid, signal.SIGCONT)

    def _hang(self) -> None:
        """Stop a worker for good: swapd detects it, or stops or kills it to free capacity."""
        pid = self._worker()
        if pid is not None:
            _signal(pid, signal.SIGSTOP)
            self._stopped.append(pid)

    def _kill_guardian(self) -> None:
        _signal(self._child("swapd-guardian"), signal.SIGKILL)

    def _kill_standby(self) -> None:
        _signal(self._child("workers.spare"), signal.SIGKILL)

    def _unload(self) -> None:
        name = (*BUILTIN, EXTERNAL)[self._which % 3]
        self.swapd.http.post("/unload", params={"model": name})

    def _unload_all(self) -> None:
        self.swapd.http.get("/unload")

    def _write(self) -> None:
        self.swapd.config.write_text(_text(self._models))

    def _edit_policy(self) -> None:
        self._models[(*BUILTIN, EXTERNAL)[self._which % 3]]["ttl"] = 1 + int(self._number * 20)
        self._write()

    def _edit_command(self) -> None:
        self._models[(*BUILTIN, EXTERNAL)[self._which % 3]]["env"] = [f"CHAOS={self._number}"]
        self._write()

    def _edit_invalid(self) -> None:
        self.swapd.config.write_text(
            ("models: {", "", "models:\n  x:\n    cmdd: y\n")[self._which % 3]
        )

    def _edit_models(self) -> None:
        if self._models.pop("extra", None) is None:
            self._models["extra"] = fake("extra", ttl=1)
        self._write()

    def _fill_disk(self) -> None:
        if self.disk is not None:
            filling = fill(self.disk)
            self.over.wait(2 * self._number)
            filling.unlink()

    def _step_clock(self) -> None:
        """Step the clock by up to a year, forward or back."""
        if self.clock is not None:
            self.clock.step(int((self._number - 0.5) * 2 * STEP))

    def _idle_connections(self) -> None:
        """Open connections that send nothing or half a request, and close them."""
        with ExitStack() as stack:
            for i in range(10):
                address = ("127.0.0.1", self.swapd.port)
                one = stack.enter_context(socket.create_connection(address))
                if i % 2:
                    one.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent")
            self.over.wait(self._number)


def _signal(pid: int | None, number: signal.Signals) -> None:
    """Signal the whole process group, as a container or control group would."""
    if pid is not None:
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return


@dataclass
class Holdings:
    """Resources held by swapd, without its logs."""

    descriptors: int
    bytes: int

    @classmethod
    def of(cls, swapd: Swapd) -> Holdings:
        process = psutil.Process(swapd.process.pid)
        # Logs are opened when there is something to write.
        logs = sum(file.path.endswith(".log") for file in process.open_files())
        return cls(process.num_fds() - logs, process.memory_info().rss)


@dataclass
class Outcome:
    """Result of a run."""

    tally: Tally
    thrown: Counter[str]
    before: Holdings
    after: Holdings
    left: list[int]
    status: int
    log: str

    def faults(self) -> list[str]:
        """Return the violated expectations; empty if all hold."""
        tally, found = self.tally, []
        ended = tally.count("answered", "rejected", "cancelled", *MAY_BREAK_OFF)
        if tally.sent != ended:
            found.append("the tally does not balance")
        if tally.wrong:
            found.append(f"wrong answers: {tally.wrong[:3]}")
        if self.after.descriptors > self.before.descriptors:
            found.append(f"descriptors: {self.before.descriptors} -> {self.after.descriptors}")
        if self.after.bytes > self.before.bytes * 1.3 + 8e6:
            found.append(f"memory: {self.before.bytes} -> {self.after.bytes}")
        if self.left:
            found.append(f"processes are left: {self.left}")
        if self.status != 0:
            found.append(f"swapd ended with {self.status}")
        if "Traceback" in self.log:
            found.append("a traceback in the log")
        return found

    def __str__(self) -> str:
        thrown = ", ".join(f"{n} {name}" for name, n in sorted(self.thrown.items()))
        return (
            f"{self.tally}\nthrown: {thrown}\n"
            f"swapd: {self.before.descriptors} -> {self.after.descriptors} descriptors,"
            f" {self.before.bytes / 2**20:.1f} -> {self.after.bytes / 2**20:.1f} MiB"
        )


def chaos(home: Path, seconds: float, seed: int) -> Outcome:
    """Run once."""
    with ExitStack() as stack:
        state = home / ".swapd"
        disk = stack.enter_context(small_disk(state, DISK_KIB)) if can_mount() else None
        clock = SteppedClock(home) if can_step() else None
        environ = clock.environ if clock is not None else {}
        swapd = stack.enter_context(Swapd(home, _text(_models()), **environ))
        tally, over = Tally(), threading.Event()
        _learn(swapd, tally)
        before = _at_rest(swapd)
        run_id = environment_variable(_any_worker(swapd), RUN_ID)
        clients = [Client(swapd.port, tally, f"{seed}/{i}", over) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        faults = Faults(swapd, random.Random(seed), disk, clock, threading.Event())
        faults.throw_until(now() + seconds)
        over.set()
        for client in clients:
            client.join()
        after = _at_rest(swapd, before)
        swapd.process.send_signal(signal.SIGTERM)
        status = swapd.process.wait(timeout=30)
        left = [
            pid
            for pid in psutil.pids()
            if alive(pid) and environment_variable(pid, RUN_ID) == run_id
        ]
        log = swapd.log() + (home / "output").read_text()
        return Outcome(tally, faults.thrown, before, after, left, status, log)


def _learn(swapd: Swapd, tally: Tally) -> None:
    """Request everything once without faults, to record the expected answers."""
    for model in (EXTERNAL, "extra"):
        swapd.ask(model)
    asker = Client(swapd.port, tally, "first", threading.Event())
    for question in QUESTIONS:
        end, text = asker.play(Plan(question, 1, False, "read", 0))
        assert end == "answered", end
        assert text is not None
        tally.answers[question] = text


def _any_worker(swapd: Swapd) -> int:
    swapd.ask("bard", max_tokens=1)
    return int(swapd.worker("bard")["pid"])


def _at_rest(swapd: Swapd, before: Holdings | None = None) -> Holdings:
    """Unload all; return the resources of idle swapd, after a wait until they match `before`."""
    eventually(lambda: not any(w["busy"] or w["waiting"] for w in swapd.running()), within=30)
    swapd.http.get("/unload")
    eventually(lambda: not swapd.running(), within=30)
    end = now() + 10.0
    while before and now() < end and Holdings.of(swapd).descriptors > before.descriptors:
        threading.Event().wait(0.1)
    return Holdings.of(swapd)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = chaos(Path(folder), given.seconds, given.seed)
        print(f"seed {given.seed}, {given.seconds:g} s: {outcome}")
        for fault in outcome.faults():
            print(f"!! {fault}", file=sys.stderr)
        if outcome.faults():
            print(outcome.log[-6000:], file=sys.stderr)
    return 1 if outcome.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
