"""Tools over HTTP: the official client, worker processes, and a template of each dialect.

The demo models call no tools by themselves. Their output is forced with a grammar that admits one
answer only; a required call is forced by the worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from jsonschema_rs import is_valid

from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf
from workers.chat.output_parser import MARKERS, Dialect
from workers.chat.tools import dialect_of
from workers.grammar.gbnf import literal

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "description": "Ends it."}},
]
MESSAGES = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}CALL{% endfor %}{% endfor %}"
)
TEMPLATES = {
    Dialect.HERMES: "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}",
    Dialect.TAGS: "{% for t in tools or [] %}{{ t.function.name }}<function=x>{% endfor %}",
    Dialect.LLAMA: "{% if tools %}ipython parameters {{ tools[0].function | tojson }}{% endif %}"
    "{# <|python_tag|> #}",
    Dialect.MISTRAL: "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[TOOL_CALLS]{% endif %}",
    Dialect.MISTRAL_NAMED: "{% if tools %}{{ tools | tojson }}[TOOL_CALLS]x[ARGS]{% endif %}",
}
ASK: dict[str, Any] = {
    "model": "x",
    "messages": [{"role": "user", "content": "How is the weather?"}],
    "tools": TOOLS,
    "max_tokens": 400,
}


@pytest.fixture(scope="module", params=list(Dialect), ids=lambda dialect: dialect.name)
def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Dialect, WorkerProcess]]:
    """Start a random model with a dialect's markers as control tokens, and its template."""
    folder: Path = tmp_path_factory.mktemp("tools")
    control = ("[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
    template = TEMPLATES[request.param] + MESSAGES + "{% if thinks %}<think>\n{% endif %}"
    model = write_random_gguf(
        folder / "m.gguf", context=8192, control=control, chat_template=template
    )
    process = WorkerProcess(model, "--ctx-size", "8192", "--parallel", "2")
    yield request.param, process
    process.kill()


@pytest.fixture
def client(worker: tuple[Dialect, WorkerProcess]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{worker[1].port}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def streamed(client: openai.OpenAI, **ask: Any) -> tuple[str, str, list[dict[str, str]], str]:
    """Join a stream as a client does: (content, reasoning, calls, finish reason)."""
    content = reasoning = reason = ""
    calls: list[dict[str, str]] = []
    for chunk in client.chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                assert call.index == len(calls)
                assert call.function.name
                calls.append({"id": call.id, "name": call.function.name, "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments or ""
        reason = choice.finish_reason or reason
    return content, reasoning, calls, reason


SAID = {
    Dialect.HERMES: '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn", "days": 3}}\n'
    '</tool_call>\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>',
    Dialect.TAGS: "<tool_call>\n<function=weather>\n<parameter=city>\nBonn\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=stop>\n</function>\n</tool_call>",
    Dialect.LLAMA: '{"name": "weather", "parameters": {"city": "Bonn", "days": 3}}; '
    '{"name": "stop", "parameters": {}}',
    Dialect.MISTRAL: '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bonn", "days": 3}}, '
    '{"name": "stop", "arguments": {}}]',
    Dialect.MISTRAL_NAMED: '[TOOL_CALLS]weather[ARGS]{"city": "Bonn", "days": 3}'
    "[TOOL_CALLS]stop[ARGS]{}",
}


def exactly(text: str) -> dict[str, Any]:
    """Return the request fields that force this text."""
    return {"extra_body": {"grammar": f"root ::= {literal(text)}"}}


def test_calls_are_streamed(worker: tuple[Dialect, WorkerProcess], client: openai.OpenAI) -> None:
    content, _, calls, reason = streamed(client, **ASK, **exactly(SAID[worker[0]]))
    assert [call["name"] for call in calls] == ["weather", "stop"]
    assert [json.loads(call["arguments"]) for call in calls] == [{"city": "Bonn", "days": 3}, {}]
    assert len({call["id"] for call in calls}) == 2
    assert (content, reason) == ("", "tool_calls")


def test_calls_are_answered_whole(
    worker: tuple[Dialect, WorkerProcess], client: openai.OpenAI
) -> None:
    choice = client.chat.completions.create(**ASK, **exactly(SAID[worker[0]])).choices[0]
    calls = choice.message.tool_calls or []
    assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
        ("weather", {"city": "Bonn", "days": 3}),
        ("stop", {}),
    ]
    assert choice.message.content is None
    assert choice.finish_reason == "tool_calls"


def test_a_required_call_is_made(client: openai.OpenAI) -> None:
    """Use a model that generates nonsense."""
    named = {"type": "function", "function": {"name": "weather"}}
    for seed in range(3):
        *_, calls, reason = streamed(client, **ASK, tool_choice=named, seed=seed)
        assert [call["name"] for call in calls] == ["weather"]
        if reason == "tool_calls":
            assert is_valid(SCHEMA, json.loads(calls[0]["arguments"]))
        else:
            assert reason == "length"
        names = {call["name"] for call in streamed(client, **ASK, tool_choice="required")[2]}
        assert names <= {"weather", "stop"}
        assert len(names) == 1


def test_a_free_call_follows_its_schema(
    worker: tuple[Dialect, WorkerProcess],
) -> None:
    """Use a model that generates nonsense, with a bias towards the marker of a call."""
    dialect, process = worker
    marker, *others = process.post("/tokenize", {"content": MARKERS[dialect][0]})["tokens"]
    if others:
        pytest.skip("the marker is several tokens here, which a bias can't force")
    ask = {**ASK, "logit_bias": {marker: 8.0}, "parallel_tool_calls": False, "temperature": 1.5}
    called = []
    for seed in range(6):
        choice = process.post("/v1/chat/completions", {**ask, "seed": seed})["choices"][0]
        if choice["finish_reason"] == "tool_calls":
            called += choice["message"]["tool_calls"]
            assert MARKERS[dialect][0] not in (choice["message"]["content"] or "")
    assert called
    for call in called:
        arguments = json.loads(call["function"]["arguments"])
        schema = SCHEMA if call["function"]["name"] == "weather" else {"type": "object"}
        assert is_valid(schema, arguments), arguments


def test_reasoning_comes_before_a_required_call(
    worker: tuple[Dialect, WorkerProcess],
) -> None:
    ask = {**ASK, "tool_choice": "required", "chat_template_kwargs": {"thinks": True}}
    ask["logit_bias"] = [["<", 6], ["/think>", 6]]
    choice = worker[1].post("/v1/chat/completions", {**ask, "max_tokens": 3000})["choices"][0]
    assert choice["message"]["reasoning_content"]
    assert choice["finish_reason"] == "length" or choice["message"]["tool_calls"]


def test_text_that_is_no_call_is_content(client: openai.OpenAI) -> None:
    text = "<tool_call> [TOOL_CALLS is how one begins, {or this."
    content, _, calls, reason = streamed(client, **ASK, **exactly(text))
    assert (content, calls, reason) == (text, [], "stop")


def test_no_tools_no_calls(worker: tuple[Dialect, WorkerProcess]) -> None:
    dialect, process = worker
    ask = {**ASK, "tool_choice": "none", "grammar": f"root ::= {literal(SAID[dialect])}"}
    choice = process.post("/v1/chat/completions", ask)["choices"][0]
    assert choice["message"]["content"] == SAID[dialect]
    assert "tool_calls" not in choice["message"]


def test_reasoning_is_separated(client: openai.OpenAI) -> None:
    text = "<think>\nIs it 4 < 5?\n</think>\n\nYes."
    plain = {key: value for key, value in ASK.items() if key != "tools"}
    assert streamed(client, **plain, **exactly(text))[:2] == ("Yes.", "Is it 4 < 5?")
    choice = client.chat.completions.create(**plain, **exactly(text)).choices[0]
    assert choice.message.content == "Yes."
    assert choice.message.model_dump()["reasoning_content"] == "Is it 4 < 5?"


def test_constrained_output_is_not_parsed_as_reasoning(
    worker: tuple[Dialect, WorkerProcess],
) -> None:
    ask = {**ASK, "tools": [], "chat_template_kwargs": {"thinks": True}}
    ask["json_schema"] = {"const": 7}
    message = worker[1].post("/v1/chat/completions", ask)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "7"}


def test_the_template_gets_tools_calls_and_results(
    worker: tuple[Dialect, WorkerProcess],
) -> None:
    dialect, process = worker
    called = {"id": "a1b2c3d4e", "type": "function"}
    called["function"] = {"name": "weather", "arguments": '{"city": "Bonn"}'}  # type: ignore[assignment]
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "How?"}]},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "Fine."},
    ]
    prompt = process.post("/apply-template", {"messages": messages, "tools": TOOLS})["prompt"]
    assert prompt.endswith("<|user|>How?<|assistant|>CALL<|tool|>Fine.")
    assert "weather" in prompt
    assert dialect_of(TEMPLATES[dialect]) is dialect


def test_logprobs_have_every_token_of_a_call(client: openai.OpenAI) -> None:
    text = '{"name": "stop", "parameters": {}} and so on'
    tokens, content = [], ""
    for chunk in client.chat.completions.create(**ASK, **exactly(text), logprobs=True, stream=True):
        content += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs:
            tokens += [one.token for one in chunk.choices[0].logprobs.content or []]
    assert "".join(tokens) == text
    assert content in {text, "and so on"}


def test_templates_of_known_families() -> None:
    """Recognize them by typical text; the rest of the template does not matter."""
    assert dialect_of("{{ messages }}") is None
    assert dialect_of("{% if tools %}{{ tools }}{% endif %}") is None
    assert dialect_of("tools ... <|python_tag|>") is Dialect.LLAMA
