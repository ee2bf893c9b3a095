"""LoRA adapters: chosen by each request, loaded at their first use, never mixed up."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.workers.conftest import Start
from tests.workers.engine.alike import differs_by_rounding
from tests.workers.engine.test_prefix_reuse import SPEECH, cached, text_of
from tests.workers.process import ROOT, WorkerProcess
from workers.engine.batch_scheduler import ROTATION_STEPS
from workers.flags import FlagError, parse

ALICE = ROOT / "demo" / "alice-lora.gguf"
FLAGS = ("--parallel", "4", "--ctx-size", "4096", "--flash-attn", "off", "--alias", "bard")
BODY: dict[str, Any] = {"prompt": "The king", "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def worker(bard_gguf: Path) -> Iterator[WorkerProcess]:
    """bard, with alice for an adapter."""
    process = WorkerProcess(bard_gguf, *FLAGS, "--adapter", f"alice={ALICE}")
    yield process
    process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten equal adapters in ten files."""
    for number in range(10):
        shutil.copy(ALICE, tmp_path / f"a{number}.gguf")
    return tmp_path


def test_an_adapter_is_chosen_by_the_models_name(worker: WorkerProcess) -> None:
    plain = worker.text(**BODY)
    alice = worker.text(**BODY, model="bard:alice")
    assert alice != plain
    assert worker.text(**BODY, model="alice") == alice, "as vLLM's clients write it"
    assert worker.text(**BODY, model="another:alice") == alice, "under any name of the model"
    assert worker.text(**BODY, lora=[{"id": 0, "scale": 1.0}]) == alice
    assert worker.text(**BODY, model="bard:alice", lora=[]) == plain
    assert worker.text(**BODY, lora=[{"id": 0, "scale": 0}]) == plain
    assert worker.text(**BODY, model="bard") == plain
    assert worker.text(**BODY, model="qwen:7b") == plain


def test_an_adapter_can_be_applied_by_halves(worker: WorkerProcess) -> None:
    texts = {worker.text(**BODY, lora=[{"id": 0, "scale": scale}]) for scale in (0.0, 0.5, 1.0)}
    assert len(texts) == 3


def test_cached_tokens_belong_to_their_adapter(worker: WorkerProcess) -> None:
    body = {**BODY, "prompt": SPEECH}
    worker.post("/v1/completions", body)
    alice = worker.post("/v1/completions", {**body, "model": "bard:alice"})
    assert cached(alice) == 0
    again = worker.post("/v1/completions", {**body, "model": "bard:alice"})
    assert cached(again) > 0
    assert text_of(again) == text_of(alice)


def test_adapters_are_listed(worker: WorkerProcess) -> None:
    plain, alice = worker.ask("/v1/models")[1]["data"]
    assert (alice["id"], alice["parent"], alice["root"]) == ("bard:alice", plain["id"], str(ALICE))
    assert worker.ask("/lora-adapters")[1] == [
        {"id": 0, "name": "alice", "path": str(ALICE), "scale": 0.0}
    ]


def test_a_comma_in_a_name_is_no_separator(
    start: Start, bard_gguf: Path, tmp_path: Path, worker: WorkerProcess
) -> None:
    odd = tmp_path / "a, b:c.gguf"
    odd.symlink_to(ALICE)
    plain = worker.text(**BODY, lora=[{"id": 0, "scale": 1.0}])
    for flag in (("--lora", str(odd)), ("--lora-scaled", f"{odd}:1.0")):
        assert start(bard_gguf, *FLAGS, *flag).text(**BODY) == plain


def test_unknown_adapters_and_those_of_another_model(
    worker: WorkerProcess, start: Start, tiny_gguf: Path
) -> None:
    status, answer = worker.ask("/v1/completions", {**BODY, "model": "bard:bob"})
    assert (status, answer["error"]["param"]) == (404, "model")
    assert answer["error"]["message"] == "bard has no adapter 'bob'; there are: alice."
    status, answer = worker.ask("/v1/completions", {**BODY, "lora": [{"id": 7, "scale": 1}]})
    assert (status, answer["error"]["message"]) == (404, "There is no adapter 7.")
    other = start(tiny_gguf, "--adapter", f"alice={ALICE}", "--adapter", "gone=/gone.gguf")
    for name, reason in (("alice", "wrong base model"), ("gone", "No such file")):
        status, answer = other.ask("/v1/completions", {**BODY, "model": name})
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
        assert reason in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]
    assert other.text(**BODY) is not None


def test_adapters_rotate_and_every_answer_is_its_own(start: Start, bard_gguf: Path) -> None:
    """Adapters A and B and none, three tenants, 60 requests at once."""
    worker = start(
        bard_gguf, *FLAGS, "--adapter", f"a={ALICE}", "--lora-scaled", f"{ALICE}:0.5",
        "--lora-init-without-apply",
    )  # fmt: skip
    sets: list[dict[str, Any]] = [
        {"lora": []},
        {"model": "bard:a"},
        {"lora": [{"id": 0, "scale": 0.5}]},
    ]
    prompts = ["The king", "Good night,", "My lord,", "O, what a", "Enter"]
    bodies = [
        {**BODY, "prompt": prompt, "user": f"tenant {tenant}", **one}
        for tenant in range(3)
        for one in sets
        for prompt in prompts
    ]
    bodies += bodies[:15]
    alone = {str({**body, "user": ""}): worker.text(**body) for body in bodies[:15]}
    changes = worker.metric("adapter_changes_total")
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: worker.text(**body), bodies))
    changes = worker.metric("adapter_changes_total") - changes
    for body, other in zip(bodies, together, strict=True):
        expected = alone[str({**body, "user": ""})]
        assert other == expected or differs_by_rounding(worker, body, other), (body, other)
    assert changes > 10, "the adapters rotated"
    assert 0 < worker.metric("adapter_wait_steps_max") <= ROTATION_STEPS * (len(sets) - 1)


def test_more_adapters_than_the_limit_of_loaded_ones(
    start: Start, bard_gguf: Path, folder: Path
) -> None:
    worker = start(bard_gguf, *FLAGS, "--adapters", str(folder), "--max-loras", "2")
    alice = worker.text(**BODY, model="bard:a0")
    with ThreadPoolExecutor(10) as pool:
        names = [f"bard:a{number}" for number in range(10)]
        texts = list(pool.map(lambda name: worker.text(**BODY, model=name), names))
    assert sum(text == alice for text in texts) >= 9
    assert worker.metric("adapter_load_seconds_count") >= 10
    status, answer = worker.ask(
        "/v1/completions", {**BODY, "lora": [{"id": n, "scale": 1} for n in range(3)]}
    )
    assert (status, answer["error"]["message"]) == (400, "At most 2 adapters can be used.")
    shutil.copy(ALICE, folder / "new.gguf")
    assert worker.text(**BODY, model="bard:new") == alice, "the folder is read again"


def test_loading_and_unloading_by_endpoint(start: Start, bard_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    shutil.copy(ALICE, folder / "a.gguf")
    worker = start(bard_gguf, *FLAGS, "--adapters", str(folder))
    load = {"lora_name": "late", "lora_path": str(folder / "a.gguf")}
    for _ in range(2):
        connection = worker.connect()
        connection.request("POST", "/v1/load_lora_adapter", str(load).replace("'", '"'))
        assert b"Success" in connection.getresponse().read()
        connection.close()
    assert worker.metric("adapter_load_seconds_count") == 1
    assert worker.text(**BODY, model="bard:late") != worker.text(**BODY)
    status, answer = worker.ask("/v1/load_lora_adapter", {**load, "lora_path": "other.gguf"})
    assert (status, answer["error"]["message"]) == (400, "Another adapter is called 'late'.")
    status, _ = worker.ask("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "no.gguf"})
    assert status == 404
    (folder / "bad.gguf").write_bytes(b"GGUF")
    bad = {"lora_name": "x", "lora_path": "bad.gguf"}
    assert worker.ask("/v1/load_lora_adapter", bad)[0] == 400
    for outside in (str(ALICE), "../adapters/../../x.gguf", "/dev/zero"):
        elsewhere = {"lora_name": "x", "lora_path": outside}
        status, answer = worker.ask("/v1/load_lora_adapter", elsewhere)
        assert (status, answer["error"]["param"]) == (403, "lora_path")
    assert worker.ask("/v1/completions", {**BODY, "model": "bard:" + "x" * 500})[0] == 404
    assert worker.ask("/v1/completions", {**BODY, "model": "bard:../a\0"})[0] == 404
    assert worker.ask("/v1/load_lora_adapter", {"lora_name": "a:b", "lora_path": "x"})[0] == 400
    connection = worker.connect()
    connection.request("POST", "/v1/unload_lora_adapter", '{"lora_name": "late"}')
    assert b"Success" in connection.getresponse().read()
    connection.close()
    assert worker.ask("/v1/completions", {**BODY, "model": "bard:late"})[0] == 404
    assert worker.ask("/v1/unload_lora_adapter", {"lora_name": "late"})[0] == 404
    assert [one["name"] for one in worker.ask("/lora-adapters")[1]] == ["a", "bad"]


def test_lora_flags_as_llama_server_has_them(start: Start, bard_gguf: Path) -> None:
    worker = start(bard_gguf, *FLAGS, "--lora", str(ALICE))
    alice = worker.text(**BODY)
    assert worker.ask("/lora-adapters")[1][0]["scale"] == 1.0
    assert worker.ask("/lora-adapters", [{"id": 0, "scale": 0.0}]) == (200, {"success": True})
    plain = worker.text(**BODY)
    assert plain != alice
    assert worker.ask("/lora-adapters", [{"id": 5, "scale": 1.0}])[0] == 404
    worker.ask("/lora-adapters", [{"id": 0, "scale": 1.0}])
    assert worker.text(**BODY) == alice


def test_adapter_flags() -> None:
    line = "-m x --adapter a=b.gguf --adapter c=d=e --lora f,g --lora-scaled h:0.5 --adapters i"
    settings = parse(line.split())
    assert settings.adapter_paths == (("a", "b.gguf"), ("c", "d=e"))
    assert settings.loras == (("f", 1.0), ("g", 1.0), ("h", 0.5))
    assert (settings.adapters, settings.max_loras) == ("i", 8)
    for wrong in ("--adapter a", "--adapter =b", "--adapter a:b=c", "--lora-scaled x"):
        with pytest.raises(FlagError):
            parse(["-m", "x", *wrong.split()])
