"""Workers that fail in every way that a worker can, and others beside them that do not notice."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.doors.conftest import fake
from tests.swapd import Swapd, config, error_of, said


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def _stranger(port: int) -> Iterator[None]:
    """Somebody who answers 200 on this port."""
    with http.server.HTTPServer(("127.0.0.1", port), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_an_answer_counts_only_if_the_worker_holds_its_port(home: Path) -> None:
    """The worker tells us its port and then never listens; this very process does instead."""
    told = home / "told"
    os.mkfifo(told)
    quiet = {"cmd": f"sh -c 'echo $1 > {told}; exec sleep 600' -- ${{PORT}}"}
    models = {"quiet": quiet, "a": fake("a")}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(swapd.ask, "quiet")
        with _stranger(int(told.read_text())):
            answer = asked.result()
            assert answer.status_code == 503
            message = error_of(answer)["message"]
            assert message.endswith(f"is held by another process, pid {os.getpid()}")
            assert said(swapd.ask("a"))
        assert swapd.states() == {"a": "ready"}
