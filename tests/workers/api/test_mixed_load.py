"""Mixed requests at the same time, with disconnects: the worker answers each and keeps running."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import eventually
from tests.workers.chat.test_tools import MESSAGES, TEMPLATES
from tests.workers.conftest import Start
from tests.workers.engine.test_prefix_reuse import SPEECH
from tests.workers.process import ROOT, WorkerProcess
from workers.chat.output_parser import Dialect

ADAPTERS = 6
RECURSIVE = {
    "type": "object",
    "properties": {"a": {"$ref": "#"}, "b": {"type": "array", "items": {"$ref": "#/properties/a"}}},
}
TOOL = {"type": "function", "function": {"name": 'f"<', "parameters": RECURSIVE}}
Ask = tuple[str, dict[str, Any] | list[Any]]


def made_up(dice: random.Random, identity: str) -> Ask:
    """Return a request that changes shared state (adapters, slots, cache), or a forged one."""
    adapter, slot, file = dice.randrange(ADAPTERS), dice.randrange(5), dice.choice("ab")
    body: dict[str, Any] = {
        "prompt": dice.choice([SPEECH, "x", "The king " * dice.randrange(1, 150)]),
        "max_tokens": dice.randrange(0, 50),
        "stream": dice.random() < 0.5,
        "model": dice.choice(["bard", f"bard:a{adapter}"]),
        "deterministic": dice.random() < 0.1,
    }
    forged = ",".join(str(dice.choice([5, 400, -1, 99999])) for _ in range(dice.randrange(1, 4)))
    chat = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL], "max_tokens": 20}
    others: list[Ask] = [
        ("/v1/load_lora_adapter", {"lora_name": f"a{adapter}", "lora_path": f"a{adapter}.gguf"}),
        ("/v1/unload_lora_adapter", {"lora_name": f"a{adapter}"}),
        ("/lora-adapters", [{"id": adapter, "scale": dice.choice([0, 0.5])}]),
        (f"/slots/{slot}?action=save", {"filename": file}),
        (f"/slots/{slot}?action=restore", {"filename": file}),
        (f"/slots/{slot}?action=erase", {}),
        ("/v1/chat/completions", {**chat, "tool_choice": dice.choice(["auto", "required"])}),
        ("/v1/completions", {**body, "json_schema": RECURSIVE}),
        ("/v1/completions", {**body, "model": "bard", "logprobs": 5, "echo": True, "n": 3}),
        ("/v1/completions", {**body, "lora": [{"id": adapter, "scale": -1}] * 2}),
        ("/v1/completions", {**body, "stop": dice.choice(["", [""], ["a", ""]]), "max_tokens": -1}),
        ("/v1/completions", {**body, "prompt": [400] * dice.choice([1023, 1024, 800])}),
        ("/v1/embeddings", {"input": [SPEECH] * dice.randrange(1, 9)}),
        (
            "/resume/v1/completions",
            {
                "request": {**body, "stream": True},
                "resume": [f"{'0' * 32}.1.1.{identity};{forged}"],
            },
        ),
    ]
    return dice.choice([*others, *[("/v1/completions", body)] * 6])


def ask(worker: WorkerProcess, number: int, identity: str) -> int:
    """Send one of these; two in five disconnect before or in the answer."""
    dice = random.Random(number)
    path, body = made_up(dice, identity)
    connection = worker.connect()
    try:
        connection.request("POST", path, json.dumps(body))
        if dice.random() < 0.4:
            if dice.random() < 0.5:
                connection.getresponse().read(dice.randrange(1, 500))
            return 0
        response = connection.getresponse()
        data = response.read()
        assert response.status < 500, (path, body, data)
        return response.status
    finally:
        connection.close()


@pytest.mark.timeout(120)
def test_all_at_once(start: Start, bard_gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    for number in range(ADAPTERS):
        shutil.copy(ROOT / "demo" / "alice-lora.gguf", folder / f"a{number}.gguf")
    worker = start(
        bard_gguf, "-np", "4", "-c", "1024", "--adapters", str(folder), "--max-loras", "2",
        "--slot-save-path", str(tmp_path / "kv"), "--spec-lookup", "--alias", "bard",
        "--chat-template", TEMPLATES[Dialect.HERMES] + MESSAGES,
    )  # fmt: skip
    connection = worker.connect()
    first = {"prompt": "a", "max_tokens": 1, "stream": True}
    headers = {"X-Swapd-Resumable": "1"}
    connection.request("POST", "/v1/completions", json.dumps(first), headers)
    identity = connection.getresponse().read().decode().split(";")[0].split(".")[-1]
    connection.close()
    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(lambda number: ask(worker, number, identity), range(120)))
    assert {200, 400, 409} <= {*statuses}
    eventually(
        lambda: worker.metric("requests_processing") + worker.metric("requests_deferred") == 0, 30
    )
    assert worker.metric('requests_total{end="failed"}') == 0
    assert worker.text(prompt="The king", max_tokens=3)
    worker.process.terminate()
    status, errors = worker.close()
    assert (status, "Traceback" in errors) == (0, False), errors
