"""Constrained output: answers that follow any schema or grammar."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from jsonschema_rs import is_valid

from tests.workers.conftest import Start
from tests.workers.engine.test_engine import Bench, Reader
from tests.workers.process import TIMEOUT, WorkerProcess
from workers.engine.sequence import Failed, Sequence
from workers.llama import sampler
from workers.llama.detokenizer import TextOutput
from workers.llama.sampler import Grammar, GrammarConstraint
from workers.settings import Sampling

NAMES = st.sampled_from(["a", "ab", "b", "name", 'quo"ted', "ümläut", "x y", "", "back\\slash"])
WORDS = st.text(max_size=6)
PATTERNS = ["^[a-z]{2,5}$", r"^\d{3}-\d{4}$", r"^(on|off)\w?$", r'^"[^"\\]{1,3}"$', r"^a.b\.$"]


@st.composite
def between(draw: st.DrawFn, low: int, high: int) -> tuple[int, int]:
    """Draw two bounds, the lower one first."""
    least = draw(st.integers(low, high))
    return least, draw(st.integers(least, high))


@st.composite
def scalars(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a schema for a scalar of bounded length."""
    kind = draw(st.sampled_from(["integer", "number", "string", "boolean", "null", "enum", "re"]))
    if kind == "enum":
        value = st.one_of(
            WORDS, st.integers(), st.booleans(), st.none(), st.lists(WORDS, max_size=2)
        )
        return {"enum": draw(st.lists(value, min_size=1, max_size=4))}
    if kind == "re":
        return {"type": "string", "pattern": draw(st.sampled_from(PATTERNS))}
    if kind == "string":
        least, most = draw(between(0, 8))
        return {"type": kind, "minLength": least, "maxLength": most}
    schema: dict[str, Any] = {"type": kind}
    if kind in {"integer", "number"}:
        least, most = draw(between(-2000, 2000))
        schema |= draw(
            st.sampled_from(
                [{}, {"minimum": least}, {"maximum": most}, {"minimum": least, "maximum": most}]
            )
        )
        if kind == "number" and draw(st.booleans()):
            schema |= {"exclusiveMinimum": least - 1}
    return schema


def composed(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return schemas composed of `inner` ones."""
    return st.one_of(objects(inner), arrays(inner), unions(inner))


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Draw an object with required and optional members in any order."""
    members = draw(st.dictionaries(NAMES, inner, max_size=4))
    required = [name for name in members if draw(st.booleans())]
    closed = draw(st.sampled_from([{}, {"additionalProperties": False}]))
    return {"type": "object", "properties": members, "required": required, **closed}


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Draw an array, perhaps with `prefixItems`."""
    least, most = draw(between(0, 3))
    schema = {"type": "array", "items": draw(inner), "minItems": least, "maxItems": most}
    first = draw(st.lists(inner, max_size=2))
    return {**schema, "prefixItems": first} if first else schema


@st.composite
def unions(draw: st.DrawFn, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    """Draw a union."""
    return {"anyOf": draw(st.lists(inner, min_size=1, max_size=3))}


@seed(20260)
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=st.recursive(scalars(), composed, max_leaves=8), draw=st.integers(0, 2**31))
def test_an_answer_to_a_random_schema_validates(
    bard: WorkerProcess, schema: dict[str, Any], draw: int
) -> None:
    extra = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": schema, "strict": True},
    }
    body = {"prompt": "The king", "response_format": extra, "seed": draw, "temperature": 1.3}
    choice = bard.post("/v1/completions", {**body, "max_tokens": 900})["choices"][0]
    if choice["finish_reason"] == "stop":
        assert is_valid(schema, json.loads(choice["text"])), choice["text"]
    else:
        assert len(choice["text"]) > 500, "what is cut short must have been long"


LINKED = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"enum": [1, 2]}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
        }
    },
    "allOf": [{"$ref": "#/$defs/node"}, {"required": ["next"]}],
}
OPEN = {
    "type": "object",
    "properties": {"a": {"const": 1}, "ab": {"const": 2}},
    "additionalProperties": {"type": "boolean"},
    "minProperties": 1,
}


@pytest.mark.parametrize("schema", [LINKED, OPEN], ids=["linked", "open"])
def test_references_and_open_objects(tiny: WorkerProcess, schema: dict[str, Any]) -> None:
    body: dict[str, Any] = {"prompt": "O", "json_schema": schema, "max_tokens": 150}
    body["logit_bias"] = {str(ord('"')): 4, str(ord("}")): 4}  # otherwise its strings rarely end
    ended = 0
    for number in range(16):
        choice = tiny.post("/v1/completions", {**body, "seed": number})["choices"][0]
        if choice["finish_reason"] == "stop":
            assert is_valid(schema, json.loads(choice["text"])), choice["text"]
            ended += 1
    assert ended > 5


def test_json_object_is_an_object(bard: WorkerProcess) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 300, "temperature": 1}
    extra: dict[str, Any] = {"response_format": {"type": "json_object"}}
    ended = 0
    for number in range(6):
        choice = bard.post("/v1/chat/completions", {**body, **extra, "seed": number})["choices"][0]
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
            ended += 1
    schema = {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"]}
    extra = {"response_format": {"type": "json_object", "schema": schema}}
    text = bard.post("/v1/chat/completions", {**body, **extra})["choices"][0]["message"]["content"]
    assert json.loads(text) == {"ok": True}


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_follows_its_grammar(bard: WorkerProcess, streamed: bool) -> None:
    body: dict[str, Any] = {"prompt": "The king", "max_tokens": 50, "temperature": 0}
    body["grammar"] = 'root ::= ("7" | "é♜") " of " [x-z]{3} "\\n"? # done'
    if streamed:
        with bard.stream("/v1/completions", body) as chunks:
            choices = [chunk["choices"][0] for chunk in chunks]
        text, reason = "".join(c["text"] for c in choices), choices[-1]["finish_reason"]
    else:
        choice = bard.post("/v1/completions", body)["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert text.rstrip("\n") in {f"{a} of {x}" for a in ("7", "é♜") for x in _three("xyz")}
    assert reason == "stop"


def _three(letters: str) -> list[str]:
    return [a + b + c for a in letters for b in letters for c in letters]


def test_a_grammar_does_not_change_an_answer_that_follows_it(bard: WorkerProcess) -> None:
    body = {"prompt": "The king", "max_tokens": 24, "seed": 4, "temperature": 1.1}
    free = bard.text(**body)
    assert bard.text(**body, grammar="root ::= [^\\x00]*") == free
    greedy = {**body, "temperature": 0}
    assert bard.text(**greedy, grammar="root ::= [^\\x00]*") == bard.text(**greedy)


def test_bytes_of_no_character_are_not_drawn(tiny: WorkerProcess) -> None:
    """Use a model with a token for each byte; the text is valid UTF-8 all the same."""
    body = {"prompt": "go", "max_tokens": 120, "temperature": 3, "top_k": 0, "min_p": 0, "top_p": 1}
    for number in range(4):
        text = tiny.text(**body, seed=number, grammar="root ::= [^a-z]{40}")
        assert "\ufffd" not in text
        assert len(text) <= 40


def test_an_answer_ends_if_no_token_can_follow(tiny: WorkerProcess) -> None:
    body = {"prompt": "go", "max_tokens": 50, "temperature": 0, "grammar": 'root ::= "abc"'}
    banned = {**body, "logit_bias": {str(ord("b")): False}}
    choice = tiny.post("/v1/completions", banned)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a", "stop")
    forever = tiny.post("/v1/completions", {**body, "ignore_eos": True})["choices"][0]
    assert (forever["text"], forever["finish_reason"]) == ("abc", "stop")


def test_half_a_surrogate_is_no_beginning_of_a_character(tiny: WorkerProcess) -> None:
    """Use a model with a token for each byte; after such a half no token could follow."""
    bias = {str(0xED): 30, str(0xA0): 30, str(0xBF): 20}
    body = {"prompt": "O", "grammar": "root ::= .{3}", "logit_bias": bias, "temperature": 0}
    choice = tiny.post("/v1/completions", {**body, "max_tokens": 20})["choices"][0]
    assert (len(choice["text"]), choice["finish_reason"]) == (3, "stop")
    assert "\ufffd" not in choice["text"]


async def test_a_grammar_that_takes_too_long_for_a_token_ends_its_answer(
    bard_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(bard_gguf, slots=2, cells=1024)
    grammar = Grammar.compile('root ::= "a"+', bench.model, bench.log)
    reader = Reader()
    monkeypatch.setattr(sampler, "SLOWEST", 0.0)
    bench.engine.submit(
        Sequence(
            0, [1, 2], 9, Sampling(), TextOutput([]), reader, True,
            asyncio.get_running_loop().time(), constraint=GrammarConstraint(grammar),
        )
    )  # fmt: skip
    await asyncio.wait_for(reader.ended.wait(), TIMEOUT)
    assert isinstance(reader.end, Failed)
    assert (reader.end.status, "too ambiguous" in reader.end.message) == (400, True)
    assert bench.engine.slots == [None, None]


def test_a_constraint_by_flag_applies_unless_a_request_has_another(
    start: Start, tiny_gguf: Path
) -> None:
    worker = start(tiny_gguf, "--grammar", 'root ::= "ab" "c"{2}', "--ctx-size", "256")
    body: dict[str, Any] = {"prompt": "go", "max_tokens": 9, "temperature": 0}
    chat = {"messages": [{"role": "user", "content": "Hi"}], **body}
    assert worker.text(**body) == "abcc"
    assert worker.post("/completion", body)["content"] == "abcc"
    text = worker.post("/v1/chat/completions", chat)["choices"][0]["message"]["content"]
    assert text == "abcc"
    assert worker.text(**body, grammar='root ::= "x"') == "x"
    assert worker.text(**body, json_schema={"const": 5}) == "5"
    bound = start(tiny_gguf, "--json-schema", '{"enum": [12, 13]}', "--logit-bias", "51+90")
    assert bound.text(**body) == "13", "51 is the token of a 3"
    assert bound.text(**body, logit_bias={"50": 90}) == "12", "as llama-server, instead of it"


def test_flags_that_are_checked_after_loading(start: Start, tiny_gguf: Path) -> None:
    for flag, sentence in (
        (("--grammar", "root ::= x"), "there is no rule x."),
        (("--json-schema", '{"type": "x"}'), "--json-schema: "),
        (("--logit-bias", "99999+1"), "--logit-bias: the model has no token 99999"),
    ):
        error = start(tiny_gguf, *flag).first["error"]
        assert error.startswith(flag[0])
        assert sentence in error


def test_a_worker_that_ignores_eos(start: Start, tiny_gguf: Path) -> None:
    worker = start(tiny_gguf, "--ignore-eos")
    end = worker.ask("/v1/models")[1]["data"][0]["meta"]["n_vocab"] - 2
    body = {"prompt": "go", "max_tokens": 9, "logit_bias": {str(end): 90}}
    for extra, count in (({}, 9), ({"ignore_eos": False}, 1)):
        usage = worker.post("/v1/completions", {**body, **extra})["usage"]
        assert usage["completion_tokens"] == count
