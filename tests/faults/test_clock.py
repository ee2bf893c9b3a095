"""Steps of the time of day, by a year forward and back, change only displayed dates."""

from __future__ import annotations

import re
import threading
from pathlib import Path

from tests.clock import SteppedClock
from tests.daemon import Swapd, answer_text, chat, config
from tests.fixtures import GateMaker, demo, fake

YEAR = 365 * 86400


def test_nothing_depends_on_the_time_of_day(home: Path, gate: GateMaker) -> None:
    clock, word = SteppedClock(home), gate("word")
    load = gate("load")
    models = {
        "bard": demo("bard", ttl=600),
        "slow": fake("slow", f"--word-gate {word.path}", ttl=600, hang_timeout=600),
        "late": fake("late", f"--load-gate {load.path}"),
    }
    text = config(models, client_timeout=600, max_turn=600)
    with Swapd(home, text, **clock.environ) as swapd:
        answer = answer_text(swapd.ask("bard"))
        pids = []

        def ask() -> None:
            body = chat("slow", stream=True, max_tokens=3)
            with swapd.http.stream("POST", "/v1/chat/completions", json=body) as stream:
                lines.extend(stream.iter_lines())

        lines: list[str] = []
        asking = threading.Thread(target=ask)
        asking.start()
        word.let()
        for step in (YEAR, -YEAR, 0):
            clock.step(step)
            assert answer_text(swapd.ask("bard")) == answer
            pids.append(swapd.pids())
            assert 0 <= swapd.http.get("/health").json()["uptime_seconds"] < 1000
        word.open_for_good()
        asking.join()
        assert lines[-2:] == ["data: [DONE]", ""]
        assert pids[0] == pids[1] == pids[2]
        assert len(pids[0]) == 2
        # The load time is measured without the clock step.
        loading = threading.Thread(target=swapd.ask, args=("late",))
        loading.start()
        load.open()
        clock.step(-YEAR)
        load.close()
        loading.join()
        (took,) = re.findall(r"late: ready after (\S+) s", swapd.log())
        assert 0 <= float(took) < 1000
        years = {line[:4] for line in swapd.log().splitlines() if line[:2] == "20"}
        assert len(years) > 1, swapd.log()
