"""Streams that break at any event and are resumed by another worker: the parts equal the whole."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.workers.api.test_answers import FIM
from tests.workers.chat.test_tools import MESSAGES, TEMPLATES, TOOLS
from tests.workers.conftest import Start
from tests.workers.odd_gguf import write_recurrent_gguf, write_sliding_gguf
from tests.workers.process import ROOT, WorkerProcess
from tests.workers.random_gguf import write_random_gguf
from workers.chat.output_parser import Dialect
from workers.grammar.gbnf import literal

ASIDE = re.compile(
    r'"timings":\{[^}]*\}|"cached_tokens":\d+|"id_slot":-?\d+|"tokens_cached":\d+|"id":"[0-9a-f]{9}"'
)
"""Fields that may differ: timings, cache hits, and the random ids of calls."""
Event = tuple[str, str]
"""The `id:` line of an event, and its data."""


Pair = tuple[WorkerProcess, WorkerProcess]


@pytest.fixture(scope="module")
def pair(bard_gguf: Path) -> Iterator[Pair]:
    """Start two processes with the same model and flags.

    With flash attention, because then it makes no difference which cells of the cache are used.
    """
    flags = ("--parallel", "8", "--ctx-size", "8192", "--alias", "bard", "--flash-attn", "on")
    adapter = ("--adapter", f"alice={ROOT / 'demo' / 'alice-lora.gguf'}")
    workers = tuple(WorkerProcess(bard_gguf, *flags, *adapter) for _ in range(2))
    yield workers[0], workers[1]
    for worker in workers:
        worker.kill()


def events(worker: WorkerProcess, path: str, body: object, *, wanted: bool = True) -> list[Event]:
    """Return all events of a resumable stream."""
    status, data = post(worker, path, body, {"X-Swapd-Resumable": "1"} if wanted else {})
    assert status == 200, data
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, _, rest = event.partition("\n") if wanted else ("id: ", "", event)
        assert name.startswith("id: "), event
        assert rest.startswith("data: "), event
        found.append((name[4:], ASIDE.sub('"":0', rest[6:])))
    return found


def post(
    worker: WorkerProcess, path: str, body: object, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Send a request; return status and body."""
    connection = worker.connect()
    try:
        connection.request("POST", path, json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def rest_of(
    worker: WorkerProcess, path: str, body: dict[str, Any], sent: list[Event]
) -> list[Event]:
    """Return the events after those that were sent."""
    lines = [line for line, _ in sent]
    return events(worker, f"/resume{path}", {"request": body, "resume": lines})


def by_choice(found: list[Event]) -> dict[object, list[Event]]:
    """Group the events by answer, because the order between answers is not fixed."""
    sorted_out: dict[object, list[Event]] = {}
    for line, data in found:
        body = json.loads(data) if data != "[DONE]" else {}
        choices = body.get("choices") or [body]
        sorted_out.setdefault(choices[0].get("index"), []).append((line.split(";")[-1], data))
    return sorted_out


def made_up(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Return a request with random settings."""
    path = rng.choice(["/v1/chat/completions", "/v1/completions", "/completion"])
    text = rng.choice(["Who goes there?", "My lord,", "To be, or not to be"])
    body: dict[str, Any] = {"stream": True, "max_tokens": rng.choice([1, 12, 40, 40])}
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["prompt"] = text
    body["temperature"] = rng.choice([0, 0, 0.8, 1.5])
    variants: list[dict[str, Any]] = [
        {"seed": rng.randrange(1000)},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"typical_p": 0.6},
        {"repeat_penalty": 1.3, "frequency_penalty": 0.5},
        {"dry_multiplier": 2.0, "dry_allowed_length": 1},
        {"xtc_probability": 0.7, "xtc_threshold": 0.05},
        {"mirostat": 1},
        {"mirostat": 2, "temperature": 1.0},
        {"samplers": ["top_k", "adaptive_p"], "adaptive_target": 0.4},
        {"stop": ["the", "lord"]},
        {"logit_bias": {"20": 3.0}},
        {"stream_options": {"include_usage": True}},
        {"n": 3, "deterministic": True},  # otherwise co-batched requests affect rounding
        {"grammar": 'root ::= [a-z ,]{3,30} "."'},
        {"response_format": {"type": "json_object"}},
        {"deterministic": True},
        {"cache_prompt": False},
        {"ignore_eos": True},
        {"model": "bard:alice"},
        {"logprobs": True, "top_logprobs": 2} if "chat" in path else {"logprobs": 3, "echo": True},
    ]
    for extra in rng.sample(variants, rng.randrange(4)):
        body |= extra
    if "grammar" in body:
        body.pop("response_format", None)
    if path == "/completion" and "logprobs" in body:
        del body["logprobs"]
        body["n_probs"] = 3
    return path, body


@pytest.mark.parametrize("seed", range(80))
def test_a_broken_stream_is_resumed_by_another_worker(pair: Pair, seed: int) -> None:
    rng = random.Random(seed)
    path, body = made_up(rng)
    whole = events(pair[0], path, body)
    cut = rng.randrange(1, len(whole) + 1)
    rest = rest_of(pair[1], path, body, whole[:cut])
    if body.get("n", 1) == 1:
        assert rest == whole[cut:], (path, body, cut)
    else:
        assert by_choice(whole[:cut] + rest) == by_choice(whole), (path, body, cut)


def test_a_resumed_stream_can_be_resumed_again(pair: Pair) -> None:
    body = {"prompt": "The king", "stream": True, "max_tokens": 40, "temperature": 1.2}
    whole = events(pair[0], "/v1/completions", body)
    first = whole[:10]
    second = rest_of(pair[1], "/v1/completions", body, first)[:10]
    assert first + second + rest_of(pair[0], "/v1/completions", body, first + second) == whole


@pytest.mark.parametrize("flags", [(), ("--spec-lookup",)], ids=["plain", "guessing"])
def test_characters_of_several_tokens_and_drafts(
    start: Start, tiny_gguf: Path, flags: tuple[str, ...]
) -> None:
    flags = ("--parallel", "2", "--ctx-size", "4096", "--flash-attn", "on", *flags)
    one, other = start(tiny_gguf, *flags), start(tiny_gguf, *flags)
    body: dict[str, Any] = {"prompt": "Grüße, 世界!", "stream": True, "max_tokens": 90}
    variants: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 2.0, "top_k": 0, "seed": 3, "stop": ["\n\n", "abc"]},
        {"temperature": 1.0, "seed": 8, "grammar": "root ::= ([α-ω] | [一-龥] | [a-c] | [a-c])+"},
    ]
    for extra in variants:
        whole = events(one, "/v1/completions", body | extra)
        for cut in range(1, len(whole), max(len(whole) // 12, 1)):
            rest = rest_of(other, "/v1/completions", body | extra, whole[:cut])
            assert rest == whole[cut:], (extra, cut)


@pytest.mark.parametrize("write", [write_recurrent_gguf, write_sliding_gguf])
def test_caches_that_can_not_be_truncated(start: Start, tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "odd.gguf")
    flags = ("--parallel", "2", "--ctx-size", "512")
    one, other = start(path, *flags), start(path, *flags)
    body: dict[str, Any] = {"prompt": "a b c d e f", "stream": True, "max_tokens": 40}
    for extra in ({"temperature": 0}, {"temperature": 0.9, "seed": 4, "repeat_penalty": 1.2}):
        whole = events(one, "/v1/completions", body | extra)
        for cut in (1, len(whole) // 2, len(whole) - 2):
            rest = rest_of(other, "/v1/completions", body | extra, whole[:cut])
            assert rest == whole[cut:], (extra, cut)


def test_tool_calls_and_reasoning(start: Start, tmp_path: Path) -> None:
    model = write_random_gguf(
        tmp_path / "tools.gguf",
        context=8192,
        control=("<tool_call>", "</tool_call>", "<think>", "</think>"),
        chat_template=TEMPLATES[Dialect.HERMES] + MESSAGES,
    )
    flags = ("--ctx-size", "4096", "--flash-attn", "on")
    one, other = start(model, *flags), start(model, *flags)
    text = (
        "<think>\nIs it <tool_call>?\n</think>\n\nI look. <tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Köln", "days": 3}}\n</tool_call>\n<tool_call>\n'
        '{"name": "stop", "arguments": {}}\n</tool_call>'
    )
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "How is the weather?"}],
        "tools": TOOLS,
        "stream": True,
        "grammar": f"root ::= {literal(text)}",
        "logprobs": True,
        "temperature": 0,
        "cache_prompt": False,  # otherwise its chunks differ from the second time on
    }
    whole = events(one, "/v1/chat/completions", body)
    assert len(whole) > 30
    for cut in range(1, len(whole) + 1, 7):
        rest = rest_of(other, "/v1/chat/completions", body, whole[:cut])
        assert rest == whole[cut:], cut
    # and a free call, constrained from its marker on
    (mark,) = one.post("/tokenize", {"content": "<tool_call>"})["tokens"]
    free = {**body, "logit_bias": {mark: 9}, "temperature": 1.0, "seed": 5, "max_tokens": 90}
    del free["grammar"]
    whole = events(one, "/v1/chat/completions", free)
    assert any('"tool_calls":[{"index":0' in data for _, data in whole)
    for cut in range(1, len(whole) + 1, 11):
        assert rest_of(other, "/v1/chat/completions", free, whole[:cut]) == whole[cut:], cut


def test_infill(start: Start, tmp_path: Path) -> None:
    model = write_random_gguf(tmp_path / "fim.gguf", context=2048, control=FIM)
    flags = ("--ctx-size", "1024", "--flash-attn", "on")
    one, other = start(model, *flags), start(model, *flags)
    body: dict[str, Any] = {
        "input_prefix": "def f(", "input_suffix": "): pass", "prompt": "a",
        "input_extra": [{"filename": "x.py", "text": "import y"}], "stream": True, "n_predict": 40,
    }  # fmt: skip
    variants: list[dict[str, Any]] = [
        {"temperature": 0, "n_probs": 2, "return_tokens": True},
        {"seed": 7, "repeat_penalty": 1.2},
    ]
    for extra in variants:
        whole = events(one, "/infill", body | extra)
        assert len(whole) > 20
        for cut in range(1, len(whole) + 1, 5):
            assert rest_of(other, "/infill", body | extra, whole[:cut]) == whole[cut:], (extra, cut)


def test_many_streams_are_resumed_at_once_without_free_cells(start: Start, tiny_gguf: Path) -> None:
    flags = ("--ctx-size", "600", "--flash-attn", "on", "--parallel")
    one, other = start(tiny_gguf, *flags, "1"), start(tiny_gguf, *flags, "4")
    bodies = [
        {"prompt": f"Number {number}", "stream": True, "max_tokens": 250, "seed": number, **extra}
        for number in range(3)
        for extra in ({"temperature": 0}, {"temperature": 1.0, "repeat_penalty": 1.1})
    ]
    begun = [events(one, "/v1/completions", {**body, "ignore_eos": True}) for body in bodies]

    def go_on(number: int) -> list[Event]:
        body = {**bodies[number], "ignore_eos": True}
        return rest_of(other, "/v1/completions", body, begun[number][: 20 * number + 90])

    with ThreadPoolExecutor(len(bodies)) as pool:
        rests = list(pool.map(go_on, range(len(bodies))))
    for number, rest in enumerate(rests):
        assert rest[-1] == (".", "[DONE]")
        lines = [line for line, _ in begun[number][: 20 * number + 90] + rest[:-1]]
        tokens = [token for line in lines for token in re.findall(r"-?\d+", line.split(";")[-1])]
        assert len(tokens) == 250


def test_resuming_without_events_starts_from_the_beginning(pair: Pair) -> None:
    body = {"prompt": "The king", "stream": True, "max_tokens": 9, "temperature": 0}
    whole = events(pair[0], "/v1/completions", body)
    again = rest_of(pair[1], "/v1/completions", body, [])
    texts = [[json.loads(data)["choices"] for _, data in one[:-1]] for one in (whole, again)]
    assert texts[0] == texts[1]


def test_a_stream_has_ids_only_on_request(pair: Pair) -> None:
    body = {"prompt": "The king", "stream": True, "max_tokens": 9, "temperature": 0}
    with_ids = events(pair[0], "/v1/completions", body)
    without = events(pair[0], "/v1/completions", body, wanted=False)
    assert len(with_ids) == len(without) == 11


def test_a_worker_reports_that_it_can_resume(pair: Pair) -> None:
    assert pair[0].first["resumable"] is True


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["17"], 400),
        (["nonsense"], 400),
        (["HEAD;17", "HEAD;17"], 400),
        (["HEAD;999999"], 409),
        (["HEAD;-1", "5"], 409),
        (["HEAD;3=17"], 409),
        (["HEAD;17,17,17,17,17"], 409),
        (["HEAD;17", *["-"] * 20], 409),
        (["0123456789abcdef0123456789abcdef.1.1.abc;17"], 409),
    ],
    ids=str,
)  # fmt: skip
def test_a_stream_that_can_not_be_resumed_is_rejected(
    pair: Pair, lines: list[str], status: int
) -> None:
    body = {"prompt": "The king", "stream": True, "max_tokens": 4}
    head = events(pair[0], "/v1/completions", body)[0][0].split(";")[0]
    sent = [line.replace("HEAD", head) for line in lines]
    answer = post(pair[0], "/resume/v1/completions", {"request": body, "resume": sent})
    assert (answer[0], list(json.loads(answer[1]))) == (status, ["error"])


def test_an_answer_of_another_model_is_not_resumed(pair: Pair, start: Start) -> None:
    body = {"prompt": "The king", "stream": True, "max_tokens": 9}
    lines = [line for line, _ in events(pair[0], "/v1/completions", body)[:3]]
    asked = {"request": body, "resume": lines}
    status, answer = post(start(ROOT / "demo" / "alice.gguf"), "/resume/v1/completions", asked)
    assert (status, "with another model" in answer.decode()) == (409, True)


def test_tokens_that_the_grammar_does_not_admit_are_rejected(pair: Pair) -> None:
    body = {"prompt": "The king", "stream": True, "max_tokens": 9}
    sent = events(pair[0], "/v1/completions", body)[:2]
    strict = {**body, "grammar": 'root ::= "0"{9}'}
    lines = [line for line, _ in sent]
    status, answer = post(pair[0], "/resume/v1/completions", {"request": strict, "resume": lines})
    assert status == 409
    assert "grammar" in json.loads(answer)["error"]["message"]
