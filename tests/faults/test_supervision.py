"""Workers that fail in every way, and other workers that are not affected."""

from __future__ import annotations

import http.server
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec

from swapd.process.orphans import PidFile
from tests.daemon import Swapd, alive, answer_text, config, error_of
from tests.disk import fill, small_disk
from tests.fixtures import demo, fake


class _Answers(http.server.BaseHTTPRequestHandler):
    """Handler that answers 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def _other_server(port: int) -> Iterator[None]:
    """Answer 200 on this port, from another process than the worker."""
    with http.server.HTTPServer(("127.0.0.1", port), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_an_answer_counts_only_if_the_worker_holds_its_port(home: Path) -> None:
    """The worker reports its port and then never listens; this process does instead."""
    fifo = home / "fifo"
    os.mkfifo(fifo)
    quiet = {"cmd": f"sh -c 'echo $1 > {fifo}; exec sleep 600' -- ${{PORT}}"}
    models = {"quiet": quiet, "a": fake("a")}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(1) as pool:
        pending = pool.submit(swapd.ask, "quiet")
        with _other_server(int(fifo.read_text())):
            answer = pending.result()
            assert answer.status_code == 503
            message = error_of(answer)["message"]
            assert message.endswith(f"is held by another process, pid {os.getpid()}")
            assert answer_text(swapd.ask("a"))
        assert swapd.states() == {"a": "ready"}


def test_a_full_disk_stops_logging_but_not_serving(home: Path) -> None:
    """swapd's folder is a small disk: filled while it runs, full when it starts, and freed."""
    with small_disk(home / ".swapd", 256) as disk:
        chatty = fake("a")
        chatty["cmd"] = f"sh -c 'seq 3000; exec \"$@\"' -- {chatty['cmd']}"
        models = {"bard": demo("bard"), "a": chatty}
        with Swapd(home, config(models)) as swapd:
            filling = fill(disk)
            for name in models:
                assert answer_text(swapd.ask(name))
            page = msgspec.json.decode((disk / "workers.json").read_bytes(), type=PidFile)
            assert {record.pid for record in page.workers} > swapd.pids(), "and the warm standby"
            filling.unlink()
            swapd.http.post("/unload")
            assert answer_text(swapd.ask("a"))
            printed = (disk / "logs/model-a.log").read_text()
            assert "lines are missing here: No space left on device" in printed
            pids = [w["pid"] for w in swapd.running()]
            fill(disk)
            swapd.process.send_signal(signal.SIGTERM)
            assert swapd.process.wait(timeout=20) == 0
            assert not any(alive(pid) for pid in pids)
        with Swapd(home, config(models)) as swapd:
            assert answer_text(swapd.ask("a"))


def test_a_start_succeeds_with_damaged_state(home: Path) -> None:
    state = home / ".swapd"
    state.mkdir()
    for name in ("workers.json", "lock"):
        (state / name).write_bytes(b'{"run_id": "x", "wor\x00\xff')
    with Swapd(home, config({"a": fake("a")})) as swapd:
        assert answer_text(swapd.ask("a"))
        assert "workers.json is damaged" in swapd.log()
        assert (state / "workers.json.damaged").exists()
