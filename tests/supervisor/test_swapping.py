"""Loading, eviction and unloading of workers, tested from outside with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from swapd.system.aio import now
from tests.daemon import Swapd, alive, answer_text, chat, config, error_of, eventually
from tests.fixtures import Gate, demo, fake


def test_with_max_resident_1_one_worker_runs_at_a_time(home: Path) -> None:
    models = {"bard": demo("bard"), "alice": demo("alice")}
    with Swapd(home, config(models, max_resident=1)) as swapd:
        pids: list[int] = []
        for name in ("bard", "alice", "bard"):
            assert answer_text(swapd.ask(name))
            (worker,) = swapd.running()
            assert worker["model"] == name
            assert [alive(pid) for pid in pids] == [False] * len(pids)
            pids.append(worker["pid"])
        assert len(set(pids)) == 3


def test_twenty_requests_for_a_cold_model_start_it_once(home: Path) -> None:
    with Swapd(home, config({"bard": demo("bard", "--parallel 4")})) as swapd:
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: answer_text(swapd.ask("bard")), range(20)))
        assert len(set(answers)) == 1
        assert 'swapd_starts_total{model="bard"} 1.0' in swapd.http.get("/metrics").text


def test_two_loaded_models_respond_independently(both: Swapd, home: Path) -> None:
    through = {name: answer_text(both.ask(name, max_tokens=24)) for name in ("bard", "alice")}
    assert both.states() == {"bard": "ready", "alice": "ready"}
    assert through["bard"] != through["alice"]
    with Swapd(
        home, config({"bard": demo("bard", "--parallel 4"), "alice": demo("alice")})
    ) as other:
        for name, text in through.items():
            other.ask(name, max_tokens=1)
            worker = other.worker(name)["proxy"]
            alone = other.http.post(f"{worker}/v1/chat/completions", json=chat(name, max_tokens=24))
            assert answer_text(alone) == text


def test_idle_workers_are_stopped_after_their_ttl(home: Path, gate: Callable[[str], Gate]) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}", ttl=2)}
    with Swapd(home, config(models)) as swapd:
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("a", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            begun = now()
            # Longer than the ttl, with the worker checked all the time.
            eventually(lambda: [swapd.worker("a")["state"]] == ["ready"] and now() > begun + 3, 6)
            words.open_for_good()
            assert [line for line in lines if line][-1] == "data: [DONE]"
            ended = now()
        pid = swapd.worker("a")["pid"]
        eventually(lambda: not alive(pid), 6)
        assert 2.0 <= now() - ended <= 4.0


def test_memory_pressure_evicts_idle_workers_and_no_busy_one(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    words = gate("words")
    models = {
        "a": fake("a"),
        "b": fake("b"),
        "c": fake("c", f"--word-gate {words.path}"),
    }
    memory = {"threshold": 1, "interval": 0.3}
    with Swapd(home, config(models, memory=memory, policy="lru")) as swapd:
        with swapd.http.stream("POST", "/v1/chat/completions", json=chat("c", stream=True)) as r:
            words.let()
            lines = r.iter_lines()
            next(lines)
            swapd.ask("a")
            swapd.ask("b")
            swapd.until(lambda states: states == {"c": "ready"})
            words.open_for_good()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        swapd.until(lambda states: states == {})
        log = swapd.log()
        gone = [
            line.split("INFO")[1].split(":")[0].strip()
            for line in log.splitlines()
            if "memory pressure" in line
        ]
        assert gone == ["a", "b", "c"]


async def test_a_disconnect_during_a_load_stops_the_worker(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    load = gate("load")
    with Swapd(home, config({"a": fake("a", f"--load-gate {load.path}")})) as swapd:
        async with aiohttp.ClientSession(swapd.url) as session:
            asking = asyncio.ensure_future(  # noqa: TID251
                session.post("/v1/chat/completions", json=chat("a"))
            )
            await asyncio.to_thread(load.open)
            pid = swapd.worker("a")["pid"]
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        swapd.until(lambda states: states == {})
        assert not alive(pid)
        assert "no request waits for it any more" in swapd.log()


def test_a_disconnect_during_a_stream_frees_the_slot(both: Swapd) -> None:
    """Use alice, which has one slot: the second request needs the first one's."""
    body = chat("alice", max_tokens=900, ignore_eos=True, stream=True)
    with both.http.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        assert next(lines)
        assert both.worker("alice")["busy"] == 1
    eventually(lambda: both.worker("alice")["busy"] == 0)
    url = "/upstream/alice/slots"
    eventually(lambda: [s["is_processing"] for s in both.http.get(url).json()] == [False])
    assert answer_text(both.ask("alice"))


def test_a_request_waits_for_a_slot_and_not_for_the_model(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}", slots=1)}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(2) as pool:
        first = pool.submit(swapd.ask, "a", max_tokens=1)
        second = pool.submit(swapd.ask, "a", max_tokens=1)
        eventually(lambda: swapd.running() and swapd.worker("a")["waiting"] == 1)
        assert swapd.worker("a")["busy"] == 1
        # Requests without a slot do not wait for those with one.
        assert swapd.http.get("/upstream/a/health").json()["name"] == "a"
        words.open_for_good()
        assert answer_text(first.result()) == answer_text(second.result()) == "a0 "


def test_unloading_by_hand_lets_a_busy_worker_finish(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}"), "b": fake("b")}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(1) as pool:
        swapd.ask("b")
        asked = pool.submit(swapd.ask, "a", max_tokens=2)
        words.let()
        swapd.until(lambda states: states.get("a") == "ready")
        pids = {w["model"]: w["pid"] for w in swapd.running()}
        answer = swapd.http.get("/unload").json()
        assert sorted(answer["unloaded"]) == ["a", "b"]
        assert not alive(pids["b"])
        assert swapd.states() == {"a": "draining"}
        words.open_for_good()
        assert answer_text(asked.result()) == "a0 a1 "
        swapd.until(lambda states: states == {})
        assert swapd.http.post("/unload?model=unknown").status_code == 404


def test_load_and_unload_accept_a_body_and_reject_unknown_fields(home: Path) -> None:
    with Swapd(home, config({"a": fake("a"), "b": fake("b")})) as swapd:
        for name in "ab":
            assert swapd.http.post("/load", json={"model": name}).json()["loaded"] == name
        for path in ("/unload?modl=a", "/unload?model=", "/unload?model=a&model=b"):
            assert swapd.http.post(path).status_code == 400, path
            assert swapd.http.get(path).status_code == 400, path
        for body in ({"modl": "a"}, {"model": ""}, {"model": None}, ["a"], "a"):
            assert swapd.http.post("/unload", json=body).status_code == 400, body
            assert swapd.http.post("/load", json=body).status_code == 400, body
        assert swapd.http.post("/unload", content=b"model=a").status_code == 400
        message = error_of(swapd.http.post("/unload?modl=a"))["message"]
        assert message == "/unload has no parameter 'modl'; did you mean model?"
        assert error_of(swapd.http.post("/load"))["message"].startswith("name the model to load")
        assert swapd.states() == {"a": "ready", "b": "ready"}
        assert swapd.http.post("/unload", json={"model": "a"}).json()["unloaded"] == ["a"]
        assert swapd.states() == {"b": "ready"}


def test_unloading_a_worker_that_ignores_sigterm_delays_no_other_model(home: Path) -> None:
    models = {"a": fake("a", "--deaf", stop_grace=600), "b": fake("b")}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(1) as pool:
        swapd.ask("a")
        pid = swapd.worker("a")["pid"]
        unloading = pool.submit(swapd.http.post, "/unload?model=a")
        swapd.until(lambda states: states == {"a": "stopping"})
        # Once with a start and once without.
        assert [swapd.ask("b").status_code for _ in range(2)] == [200, 200]
        assert alive(pid)
        assert not unloading.done()
        os.kill(pid, signal.SIGKILL)
        assert unloading.result().json()["unloaded"] == ["a"]
        assert swapd.states() == {"b": "ready"}


def test_the_least_recently_used_worker_is_evicted(home: Path) -> None:
    models = {name: fake(name) for name in "abc"}
    with Swapd(home, config(models, max_resident=2, policy="lru")) as swapd:
        for name in "abac":
            swapd.ask(name)
        assert sorted(swapd.states()) == ["a", "c"]


def test_a_memory_budget_uses_estimates_first_and_then_measurements(home: Path) -> None:
    """Use models with a configured need of 400 MiB that then hold less than 50 MiB."""
    models = {name: fake(name, need="400 MiB") for name in "ab"}
    memory = {"budget": "410 MiB", "threshold": 0}
    with Swapd(home, config(models, memory=memory)) as swapd:
        swapd.ask("a")
        eventually(lambda: 2**20 < swapd.worker("a")["bytes"] < 50 * 2**20)
        assert swapd.worker("a")["devices"] == [], "only built-in workers report them"
        swapd.ask("b")
        assert swapd.states() == {"b": "ready"}
        eventually(lambda: swapd.worker("b")["bytes"] < 50 * 2**20)
        swapd.ask("a")
        assert sorted(swapd.states()) == ["a", "b"]
    with Swapd(home, config(models, memory=memory)) as again:
        # The measurements are loaded at the start.
        again.ask("a")
        again.ask("b")
        assert sorted(again.states()) == ["a", "b"]
    (home / ".swapd/learned.json").write_text("{")
    models["a"]["cmd"] += " --words 4"
    with Swapd(home, config(models, memory=memory)) as anew:
        assert "learned.json is damaged" in anew.log()
        anew.ask("b")
        anew.ask("a")
        assert "makes room for a" in anew.log()


@pytest.mark.long
def test_a_request_for_too_much_memory_waits_and_is_then_rejected(home: Path) -> None:
    models = {"a": fake("a", need="900000 GiB"), "b": fake("b")}
    memory = {"budget": "1000000 GiB", "threshold": 0}
    with Swapd(home, config(models, memory=memory)) as swapd:
        swapd.ask("b")
        rejected = swapd.ask("a")
        error = error_of(rejected)
        assert (rejected.status_code, error["code"]) == (503, "insufficient_memory")
        assert "are missing, which other programs hold" in error["message"]
        assert rejected.headers["retry-after"] == "10"
        assert swapd.states() == {"b": "ready"}


def test_a_full_queue_rejects_requests_with_a_retry_time(
    home: Path, gate: Callable[[str], Gate]
) -> None:
    words = gate("words")
    models = {"a": fake("a", f"--word-gate {words.path}", slots=1, max_queue=1)}
    with Swapd(home, config(models)) as swapd, ThreadPoolExecutor(2) as pool:
        served = [pool.submit(swapd.ask, "a", max_tokens=1)]
        swapd.until(lambda states: states == {"a": "ready"})
        eventually(lambda: swapd.worker("a")["busy"] == 1)
        served.append(pool.submit(swapd.ask, "a", max_tokens=1))
        eventually(lambda: swapd.worker("a")["waiting"] == 1)
        rejected = swapd.ask("a", stream=True)
        assert rejected.status_code == 429
        assert int(rejected.headers["Retry-After"]) >= 1
        assert rejected.json()["error"]["code"] == "queue_full"
        words.open_for_good()
        assert [answer_text(one.result()) for one in served] == ["a0 ", "a0 "]


def test_a_worker_that_ignores_sigterm_delays_the_next_by_its_grace_only(home: Path) -> None:
    models = {"a": fake("a", "--deaf", stop_grace=0.5), "b": fake("b")}
    with Swapd(home, config(models, max_resident=1)) as swapd:
        swapd.ask("a")
        pid = swapd.worker("a")["pid"]
        begun = now()
        swapd.ask("b")
        assert 0.5 <= now() - begun < 4.0
        assert not alive(pid)


def test_continuous_requests_do_not_starve_another_model(
    home: Path,
) -> None:
    models = {"a": fake("a", slots=2), "b": fake("b")}
    with Swapd(home, config(models, max_resident=1)) as swapd, ThreadPoolExecutor(4) as pool:
        done = threading.Event()

        def keep_asking(_: int) -> int:
            count = 0
            while not done.is_set():
                answer_text(swapd.ask("a", max_tokens=1))
                count += 1
            return count

        busy = [pool.submit(keep_asking, i) for i in range(3)]
        swapd.until(lambda states: states.get("a") == "ready")
        assert answer_text(swapd.ask("b")) == "b0 b1 b2 b3 b4 b5 b6 b7 "
        done.set()
        assert all(one.result() > 0 for one in busy)
