"""Bad input: one sentence, the right status, and a worker that continues."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from swapd.system.aio import now
from tests.workers.process import WorkerProcess
from workers.flags import FlagError, parse

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f"}}
LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}

TABLE: list[tuple[str, object, str, str | None]] = [
    (CHAT, b"{not json", "not valid JSON", None),
    (CHAT, b"", "not valid JSON", None),
    (CHAT, b"\xff\xfe", "not valid JSON", None),
    (CHAT, b'{"messages": [{"content": ' + b"[" * 100_000, "not valid JSON", None),
    (CHAT, [], "Expected `object`, got `array`", None),
    (CHAT, {}, "missing required field `messages`", "messages"),
    (CHAT, {"messages": []}, "must not be empty", "messages"),
    (CHAT, {"messages": ["Hi"]}, "Expected `object`, got `str`", "messages"),
    (CHAT, {"messages": [{"content": "Hi"}]}, "must have a `role`", "messages"),
    (CHAT, {"messages": [{"role": "forbidden"}]}, "this role is forbidden", "messages"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "reads text only, not 'image_url'",
        "messages",
    ),
    (CHAT, {"messages": HI, "max_tokens": -1}, "must be 0 or more", "max_tokens"),
    (CHAT, {"messages": HI, "max_completion_tokens": -5}, "0 or more", "max_completion_tokens"),
    (CHAT, {"messages": HI, "max_tokens": "ten"}, "Expected `int | null`", "max_tokens"),
    (CHAT, {"messages": HI, "temperature": -1}, "must be 0 or more", "temperature"),
    (CHAT, {"messages": HI, "temperature": "hot"}, "Expected `", "temperature"),
    (CHAT, {"messages": HI, "top_p": 1.5}, "must be 1 or less", "top_p"),
    (CHAT, {"messages": HI, "repeat_penalty": 0}, "above 0", "repeat_penalty"),
    (CHAT, {"messages": HI, "n": 0}, "`n` must be 1 or more", "n"),
    (CHAT, {"messages": HI, "n": 129}, "`n` must be 128 or less", "n"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "needs `logprobs: true`", "top_logprobs"),
    (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 21}, "20 or less", "top_logprobs"),
    (TEXT, {"prompt": "a", "logprobs": -1}, "0 or more", "logprobs"),
    (TEXT, {"prompt": "a", "n": 2, "best_of": 3}, "`best_of` must be `n`", "best_of"),
    (TEXT, {"prompt": "a", "suffix": "b"}, "can't infill", "suffix"),
    (TEXT, {"prompt": ["a"] * 100, "n": 100}, "More than 256", "n"),
    (CHAT, {"messages": HI, "top_k": 10**12}, "too large", "top_k"),
    (CHAT, {"messages": HI, "logit_bias": {"99999999": 1}}, "no token", "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": {"king": 1}}, "no token", "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": [["king", True], [-5, 1]]}, "no token", "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": {"9" * 5000: 1}}, "no token", "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": {"٣": 1}}, "no token", "logit_bias"),
    (CHAT, {"messages": HI, "logit_bias": [["a", 1]] * 999}, "more members", "logit_bias"),
    (CHAT, {"messages": HI, "stop": ["x"] * 129}, "has more than 128", "stop"),
    (CHAT, {"messages": HI, "samplers": "k" * 65}, "has more than 64", "samplers"),
    (
        CHAT,
        {"messages": HI, "dry_sequence_breakers": ["x"] * 33},
        "has more than 32",
        "dry_sequence_breakers",
    ),
    (CHAT, {"messages": HI, "samplers": ["temprature"]}, "mean temperature?", "samplers"),
    (CHAT, {"messages": HI, "samplers": "kz"}, "no sampler 'z'", "samplers"),
    (CHAT, {"messages": HI, "mirostat": 3}, "must be 2 or less", "mirostat"),
    (CHAT, {"messages": HI, "xtc_probability": 1.5}, "1 or less", "xtc_probability"),
    (CHAT, {"messages": HI, "dry_multiplier": -1}, "0 or more", "dry_multiplier"),
    (CHAT, {"messages": HI, "dry_sequence_breakers": "x"}, "Expected", "dry_sequence_breakers"),
    (CHAT, {"messages": HI, "stop": 5}, "Expected `", "stop"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "must be a `function`", "tools"),
    (CHAT, {"messages": HI, "tools": [TOOL, TOOL]}, "Two tools have the name 'f'", "tools"),
    (CHAT, {"messages": HI, "tools": [TOOL]}, "template does not support tools", "tools"),
    (CHAT, {"messages": HI, "tool_choice": "required"}, "no `tools` to call", "tool_choice"),
    (
        CHAT,
        {"messages": HI, "tools": [TOOL], "tool_choice": "maybe"},
        "must be none, auto, required",
        "tool_choice",
    ),
    (
        CHAT,
        {"messages": HI, "tools": [TOOL], "tool_choice": {"function": {"name": "g"}}},
        "no tool 'g'",
        "tool_choice",
    ),
    (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        "must have a `function`",
        "messages",
    ),
    (TEXT, {"prompt": "a", "grammar": 'root ::= "a" b'}, "there is no rule b", "grammar"),
    (TEXT, {"prompt": "a", "grammar": "root ::= root"}, "begins with itself", "grammar"),
    (TEXT, {"prompt": "a", "grammar": 'root ::= "\\q"'}, "The grammar can't be used", "grammar"),
    (TEXT, {"prompt": "a", "json_schema": {"type": "x"}}, "no type 'x'", "json_schema"),
    (TEXT, {"prompt": "a", "json_schema": LOOP}, "begins with itself", "json_schema"),
    (
        TEXT,
        {"prompt": "a", "json_schema": {"$ref": "#/" + "9" * 5000}},
        "The reference",
        "json_schema",
    ),
    (TEXT, {"prompt": "a", "json_schema": {}, "grammar": "x"}, "exclude", "json_schema"),
    (CHAT, {"messages": HI, "response_format": {"type": "xml"}}, "text, json", "response_format"),
    (
        CHAT,
        {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {}}},
        "has no schema",
        "response_format",
    ),
    (
        CHAT,
        {"messages": HI, "response_format": {"type": "json_object", "schema": {"not": {}}}},
        "can't enforce `not`",
        "response_format",
    ),
    (TEXT, {}, "missing required field `prompt`", "prompt"),
    (TEXT, {"prompt": []}, "must not be empty", "prompt"),
    (TEXT, {"prompt": ""}, "is empty", "prompt"),
    (TEXT, {"prompt": ["a", ""]}, "is empty", "prompt"),
    (TEXT, {"prompt": ["a"] * 257}, "more than 256 texts", "prompt"),
    (TEXT, {"prompt": [5, 10**9]}, "a token id that the model does not", "prompt"),
    (TEXT, {"prompt": [-1]}, "a token id that the model does not", "prompt"),
    (TEXT, {"prompt": "x " * 5_000_000}, "the context holds", None),
    (EMBED, {"input": []}, "must not be empty", "input"),
    (EMBED, {"input": [""]}, "must not be empty", "input"),
    (EMBED, {"input": "x " * 5000}, "at most 512 are computed at once", None),
    (EMBED, {"input": "x", "encoding_format": "hex"}, "float or base64", "encoding_format"),
    (EMBED, {"input": "x", "dimensions": 1}, "have 64 numbers", "dimensions"),
    ("/completion", {}, "missing required field `prompt`", "prompt"),
    ("/completion", {"prompt": {"a": 1}}, "must be text or tokens", "prompt"),
    ("/completion", {"prompt": [[True]]}, "must be text or tokens", "prompt"),
    ("/completion", {"prompt": "a", "n_predict": -2}, "must be -1 or more", "n_predict"),
    ("/completion", {"prompt": "a", "n_probs": -1}, "must be 0 or more", "n_probs"),
    ("/infill", {"input_prefix": "a"}, "missing required field `input_suffix`", "input_suffix"),
    ("/infill", {"input_prefix": "a", "input_suffix": "b"}, "can't infill", "suffix"),
    ("/v1/rerank", {"query": "a", "documents": ["b"]}, "can't rank", None),
    ("/detokenize", {"tokens": [-7]}, "a token id that the model does not", "tokens"),
    ("/tokenize", {"content": 5}, "Expected `str`", "content"),
    ("/apply-template", {"messages": [{"role": "forbidden"}]}, "is forbidden", "messages"),
]


@pytest.mark.parametrize(
    ("path", "body", "sentence", "param"), TABLE, ids=lambda value: str(value)[:40]
)
def test_a_bad_body_gets_400(
    tiny: WorkerProcess, path: str, body: object, sentence: str, param: str | None
) -> None:
    status, answer = tiny.ask(path, body)
    error: dict[str, Any] = answer["error"]
    assert status == 400, answer
    assert sentence in error["message"]
    assert "Traceback" not in error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 500
    assert error["param"] == param
    assert set(error) >= {"message", "type", "param", "code"}


def test_an_unknown_path_a_wrong_method_and_too_large_a_body(tiny: WorkerProcess) -> None:
    status, answer = tiny.ask("/v1/nothing")
    assert (status, answer["error"]["message"]) == (404, "There is no /v1/nothing here.")
    status, answer = tiny.ask("/v1/completions")
    assert status == 405
    assert answer["error"]["message"] == "/v1/completions takes POST, not GET."
    status, answer = tiny.ask("/tokenize", b" " * (64 * 1024 * 1024 + 1))
    assert (status, answer["error"]["type"]) == (413, "invalid_request_error")
    assert tiny.ask("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no model: name a GGUF file with --model"),
        (["-m"], "-m needs a value"),
        (["-m", "x", "--port", "high"], "--port high: invalid literal"),
        (["-m", "x", "--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["-m", "x", "--temp", "-1"], "--temp -1: must be from 0"),
        (["-m", "x", "-np", "0"], "-np 0: must be from 1 to 256"),
        (["-m", "x", "-np", "9", "-b", "8"], "--batch-size must be at least --parallel"),
        (["-m", "x", "-ctk", "f15"], "-ctk f15: must be one of f32, f16"),
        (["-m", "x", "--chat-template-file", "none"], "none: No such file or directory"),
        (["-m", "x", "--chat-template-kwargs", "[]"], "must be a JSON object"),
        (["-m", "x", "--paralell", "2"], "unknown flag --paralell; did you mean --parallel?"),
        (["-m", "x", "--samplers", "top_k;temprature"], "did you mean temperature?"),
        (["-m", "x", "--mirostat", "3"], "--mirostat 3: must be from 0 to 2"),
        (["-m", "x", "--dry-multiplyer", "3"], "did you mean --dry-multiplier?"),
        (["-m", "x", "extra"], "unknown flag extra"),
        (["-m", "x", "-l", "5"], "-l 5: must be TOKEN+BIAS or TOKEN-BIAS"),
        (["-m", "x", "-j", "{"], "-j {: Expecting property name"),
        (["-m", "x", "-j", "{}", "--grammar", "x"], "choose one"),
        (["-m", "x", "--grammer", "x"], "did you mean --grammar?"),
    ],
)
def test_invalid_flags(arguments: list[str], sentence: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(arguments)
    assert sentence in str(caught.value)


def test_flags_of_llama_server() -> None:
    line = (
        "-m a/b.gguf --host 0.0.0.0 --port 1 -c 99 -np 3 -t 5 -tb 6 -b 64 -ub 32 -ngl all"
        " --no-mmap --mlock -fa --jinja -ctk q8_0 -a me -cb --metrics --temp 0.5 --top-k 3"
        " --top-p 0.4 --min-p 0.1 --top-nsigma 2 --typical 0.9 --repeat-penalty 1.1"
        " --repeat-last-n 5 --presence-penalty 0.2 --frequency-penalty -0.3 --seed 4 -n 12"
    )
    settings = parse(line.split())
    assert (settings.name, settings.host, settings.ctx_size) == ("me", "0.0.0.0", 99)
    assert (settings.threads, settings.threads_batch, settings.n_gpu_layers) == (5, 6, -1)
    assert (settings.mmap, settings.mlock, settings.flash_attn) == (False, True, "on")
    assert settings.sampling.top_n_sigma == 2
    assert settings.sampling.frequency_penalty == -0.3
    assert parse(["-m", "a/b.gguf"]).name == "b"


def test_samplers_by_flags() -> None:
    line = (
        "-m x --samplers dry;temp --xtc-probability 0.5 --xtc-threshold 0.2 --mirostat 2"
        " --mirostat-ent 4 --mirostat-lr 0.2 --dynatemp-range 0.3 --dynatemp-exp 2"
        " --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n 99"
        " --dry-sequence-breaker \\n --dry-sequence-breaker ;"
    )
    sampling = parse(line.split()).sampling
    assert sampling.samplers == ("dry", "temperature")
    assert (sampling.xtc_probability, sampling.xtc_threshold) == (0.5, 0.2)
    assert (sampling.mirostat, sampling.mirostat_tau, sampling.mirostat_eta) == (2, 4, 0.2)
    assert (sampling.dynatemp_range, sampling.dynatemp_exponent) == (0.3, 2)
    assert (sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length) == (0.8, 2, 3)
    assert sampling.dry_penalty_last_n == 99
    assert sampling.dry_sequence_breakers == ("\n", ";")
    assert parse(["-m", "x", "--sampler-seq", "tk"]).sampling.samplers == ("temperature", "top_k")


HOLDING_UP: list[tuple[str, object]] = [
    ("/tokenize", {"content": "a b " * 50_000, "with_pieces": True}),
    ("/detokenize", {"tokens": [65] * 200_000}),
    ("/completion", {"prompt": [["a", 65] * 30_000]}),
    (EMBED, {"input": [[65] * 4] * 30_000 + [""]}),
]


@pytest.mark.parametrize(("path", "body"), HOLDING_UP, ids=[path for path, _ in HOLDING_UP])
def test_long_work_on_a_body_is_done_off_the_event_loop(
    tiny: WorkerProcess, path: str, body: object
) -> None:
    """Check that other requests are answered meanwhile, without waiting for most of it."""
    longest, began = 0.0, now()
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(tiny.ask, path, body)
        while not long.done():
            asked = now()
            assert tiny.ask("/health")[0] == 200
            longest = max(longest, now() - asked)
        long.result()
    assert longest < 0.6 * (now() - began)


@pytest.mark.parametrize("name", ["repeat_last_n", "dry_penalty_last_n"])
def test_a_penalty_range_beyond_the_context_takes_no_memory(tiny: WorkerProcess, name: str) -> None:
    """Check that llama.cpp does not allocate memory for the given range: 8 GB."""
    extra = {"repeat_penalty": 1.1, "dry_multiplier": 0.5, name: 2**31 - 1}
    tiny.text(prompt="a", max_tokens=1)
    assert tiny.grows_by(lambda: tiny.text(prompt="a", max_tokens=3, **extra)) < 100_000_000
