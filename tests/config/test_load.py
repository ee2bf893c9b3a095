"""Meaning of valid configurations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swapd.config.load import load
from tests.config.reading import RAM, WORKER, model, read
from tests.gguf.gguf_files import write_gguf

BUILTIN = "models: {bard: {cmd: '${worker} -m bard.gguf"


def test_the_builtin_worker_chooses_its_port() -> None:
    spec = model(BUILTIN + " -c 512 -np 4'}}")
    given = ("-m", "bard.gguf", "-c", "512", "-np", "4")
    added = ("--alias", "bard", "--host", "127.0.0.1", "--port", "0")
    assert spec.launch.argv == (*WORKER, *given, *added)
    assert (spec.launch.builtin, spec.launch.proxy, spec.serving.slots, spec.launch.context) == (
        True,
        "",
        4,
        512,
    )


def test_a_port_or_host_in_the_command_is_preserved() -> None:
    assert model(BUILTIN + " --port 99'}}").launch.argv[-4:] == ("--port", "99", "--alias", "bard")
    assert model(BUILTIN + " --port=99'}}").launch.argv[-3:] == ("--port=99", "--alias", "bard")
    assert model(BUILTIN + " --host=::1'}}").launch.argv[-5:] == (
        "--host=::1",
        "--alias",
        "bard",
        "--port",
        "0",
    )


def test_missing_keys_have_their_defaults() -> None:
    spec = model("models: {m: {cmd: 'serve ${PORT}'}}")
    assert (spec.launch.builtin, spec.launch.proxy) == (False, "http://127.0.0.1:${PORT}")
    assert (
        spec.serving.slots,
        spec.serving.max_queue,
        spec.launch.context,
        spec.serving.need_bytes,
    ) == (10, 64, 0, 0)
    assert (spec.serving.ttl, spec.serving.start_timeout, spec.serving.stop_grace) == (0, 120, 5)
    assert (spec.launch.check_endpoint, spec.presentation.aliases, spec.presentation.unlisted) == (
        "/health",
        (),
        False,
    )
    assert (spec.serving.pinned, spec.serving.preload) == (False, False)


@pytest.mark.parametrize(
    ("cmd", "more", "slots"),
    [
        ("${worker} -m a", "", 1),
        ("${worker} --parallel=3", "", 3),
        ("${worker} -np 3", "concurrencyLimit: 2", 2),
        ("${worker} -np 3", "concurrencyLimit: 5", 3),
        ("/opt/llama-server --port ${PORT}", "", 1),
        ("/opt/llama-server --port ${PORT} --parallel 4", "", 4),
        ("/opt/llama-server --port ${PORT} -np -1", "", 1),
        ("/opt/llama-server --port ${PORT}", "concurrencyLimit: 7", 7),
        ("vllm -np 3 --port ${PORT}", "", 10),
        ("vllm --port ${PORT}", "concurrencyLimit: 7", 7),
    ],
)
def test_slots_follow_the_command_and_the_concurrency_limit(
    cmd: str, more: str, slots: int
) -> None:
    assert model(f"models: {{m: {{cmd: '{cmd}', {more}}}}}").serving.slots == slots


@pytest.mark.parametrize(
    ("top", "section", "ttl"),
    [("", "", 0), ("ttl: 9", "", 9), ("globalTTL: 8", "", 8), ("ttl: 9", "ttl: -1", 9),
     ("ttl: 9", "ttl: 0", 0), ("ttl: 9", "ttl: 3.5", 3.5), ("ttl: 9", "ttl:", 9)],
)  # fmt: skip
def test_the_ttl_of_a_model_overrides_the_default(top: str, section: str, ttl: float) -> None:
    assert model(f"{top}\nmodels:\n  m:\n    cmd: x ${{PORT}}\n    {section}").serving.ttl == ttl


@pytest.mark.parametrize(
    ("top", "section", "grace"),
    [("", "", 5), ("unloadTimeout: 7", "", 7), ("stop_grace: 8", "", 8),
     ("stop_grace: 8", "unloadTimeout: 3", 3), ("", "stop_grace: 0", 0),
     ("", "unloadTimeout: 0", 5)],
)  # fmt: skip
def test_the_stop_grace_of_a_model_overrides_the_default(
    top: str, section: str, grace: float
) -> None:
    assert (
        model(f"{top}\nmodels:\n  m:\n    cmd: x ${{PORT}}\n    {section}").serving.stop_grace
        == grace
    )


def test_a_file_from_llama_swap_loads() -> None:
    loaded = read(LLAMA_SWAP, {"HOME": "/home/me", "KEY": "k", "SWAP_KEY": "s"})
    models = loaded.catalog.models
    assert list(models) == ["big", "docker", "hidden", "on", "123"]
    big = models["big"]
    assert big.launch.argv == (
        "/opt/llama/llama-server", "--port", "${PORT}", "--model", "/home/me/models/big.gguf",
        "--ctx-size", "16384", "--temp", "0.70",
    )  # fmt: skip
    assert (big.launch.builtin, big.serving.slots, big.launch.context) == (False, 1, 16384)
    assert (big.presentation.title, big.presentation.description) == ("Big big", "thinks")
    assert big.launch.env == (("CUDA_VISIBLE_DEVICES", "0,1"), ("EMPTY", ""))
    assert big.serving.drop_params == ("temperature", "top_p")
    assert big.serving.upstream_name == "org/big"
    assert big.presentation.aliases == ("gpt-4o", "42")
    assert (big.serving.ttl, big.serving.start_timeout, big.launch.check_endpoint) == (
        60,
        500,
        "/ready",
    )
    assert big.presentation.metadata == {
        "port": "${PORT}", "temperature": 0.7, "note": "big has 16384", "list": [1, 0.7, True],
        "nested": {"c": ["big", False]},
    }  # fmt: skip
    docker = models["docker"]
    assert docker.launch.argv[:5] == ("docker", "run", "--name", "docker", "-p")
    assert docker.launch.argv[-1] == "/models/a model.gguf"
    assert docker.serving.stop_argv == ("docker", "stop", "docker", "${PID}")
    assert (docker.launch.check_endpoint, docker.serving.ttl) == ("", 300)
    assert (models["hidden"].presentation.unlisted, models["hidden"].launch.proxy) == (
        True,
        "http://10.0.0.2:8999",
    )
    assert [name for name, spec in models.items() if spec.serving.preload] == ["big"]
    assert [name for name, spec in models.items() if not spec.serving.send_loading_state] == ["big"]
    assert loaded.settings.log_level == "debug"
    assert loaded.settings.include_aliases is True
    ineffective = {w.key for w in loaded.warnings if "has no effect yet" in w.message}
    assert ineffective == {
        "startPort", "peers", "captureBuffer",
        "metricsMaxInMemory", "logToStdout", "logTimeFormat",
        "models.big.filters.setParams", "models.big.filters.setParamsByID", "models.big.timeouts",
    }  # fmt: skip


LLAMA_SWAP = r"""
healthCheckTimeout: 500
logLevel: debug
logTimeFormat: ""
logToStdout: proxy
metricsMaxInMemory: 1000
captureBuffer: 15
startPort: 10001
sendLoadingState: true
includeAliasesInList: true
globalTTL: 300
macros:
  "server": >
    /opt/llama/llama-server
    --port ${PORT}
  "default_ctx": 4096
  "ctx_args": "--ctx-size ${default_ctx}"
  "dir": "${env.HOME}/models"
apiKeys:
  - "${env.SWAP_KEY}"
x-docker: &docker
  checkEndpoint: none
  ttl: -1
models:
  "big":
    macros:
      "default_ctx": 16384
      "temp": 0.70
    cmd: |
      # that's ${no} macro
      ${server} \
      --model ${dir}/big.gguf
      ${ctx_args} --temp ${temp}
    name: "Big ${MODEL_ID}"
    description: thinks
    env:
      - "CUDA_VISIBLE_DEVICES=0,1"
      - "EMPTY="
    aliases: [gpt-4o, 42]
    checkEndpoint: /ready
    ttl: 60
    useModelName: org/big
    filters:
      stripParams: "temperature, top_p, "
      setParams: {temperature: 0.7}
      setParamsByID: {"${MODEL_ID}:high": {a: 1}}
    metadata:
      port: ${PORT}
      temperature: ${temp}
      note: "${MODEL_ID} has ${default_ctx}"
      list: [1, "${temp}", true]
      nested: {c: ["${MODEL_ID}", false]}
    concurrencyLimit: 0
    sendLoadingState: false
    timeouts: {connect: 30}
  "docker":
    <<: *docker
    proxy: "http://127.0.0.1:${PORT}"
    cmd: |
      docker run --name ${MODEL_ID}
      -p ${PORT}:8080
      --model '/models/a model.gguf'
    cmdStop: docker stop ${MODEL_ID} ${PID}
  "hidden":
    unlisted: yes
    cmd: llama-server --port 8999
    proxy: http://10.0.0.2:8999
    aliases:
  on: {cmd: "a ${PORT}"}
  123: {cmd: "a ${PORT}"}
groups:
  g: {swap: false, members: [big, docker]}
hooks: {on_startup: {preload: [big]}}
peers: {p: {proxy: "http://192.168.1.23", models: [a]}}
"""


def test_other_spellings_of_llama_swap_are_accepted() -> None:
    loaded = read(
        "models:\n  a:\n    cmd: x ${PORT}\n    filters: {strip_params: 'top_p, top_k'}\n"
        "    aliases:\n      - {id: gpt-4o-mini, name: GPT, unlisted: false}\n"
        "      - {id: 4}\n      - b\n"
    )
    spec = loaded.catalog.models["a"]
    assert spec.serving.drop_params == ("top_p", "top_k")
    assert spec.presentation.aliases == ("gpt-4o-mini", "4", "b")
    assert [str(warning) for warning in loaded.warnings] == [
        "config.yaml:6: models.a.aliases[0].name: has no effect yet: its id alone counts",
        "config.yaml:6: models.a.aliases[0].unlisted: has no effect yet: its id alone counts",
    ]


def test_a_section_overrides_merged_sections_and_the_first_merged_one_the_next() -> None:
    spec = model(
        "x-a: &a {ttl: 1, context: 1}\nx-b: &b {ttl: 2, context: 2, need: 2kB}\n"
        "models:\n  m:\n    ttl: 0\n    <<: [*a, *b]\n    cmd: x ${PORT}"
    )
    assert (spec.serving.ttl, spec.launch.context, spec.serving.need_bytes) == (0, 1, 2000)


def test_limits_and_settings_are_read() -> None:
    loaded = read(
        "host: 0.0.0.0\nport: 80\nmax_body: 1.5 MiB\ndrain_timeout: 3\nmax_resident: 2\n"
        "max_queued: 7\nmemory: {budget: 25%, threshold: 80.5, interval: 2}\nmodels: {}"
    )
    limits, settings = loaded.catalog.limits, loaded.settings
    assert (limits.max_resident, limits.max_queued) == (2, 7)
    assert (limits.budget_bytes, limits.threshold_percent) == (RAM // 4, 80.5)
    assert limits.interval == 2
    assert (settings.host, settings.port) == ("0.0.0.0", 80)
    assert (settings.max_body_bytes, settings.drain_timeout) == (3 * 2**19, 3)


def test_the_environment_overrides_the_file() -> None:
    text = "host: a\nport: 1\nmodels: {}"

    def address(**env: str) -> tuple[str, int]:
        settings = read(text, env).settings
        return settings.host, settings.port

    assert address() == ("a", 1)
    assert address(LLAMA_SWAP_PORT="2") == ("a", 2)
    assert address(LLAMA_SWAP_PORT="2", SWAPD_PORT="3", SWAPD_HOST="b") == ("b", 3)
    assert address(SWAPD_PORT="", SWAPD_HOST="") == ("a", 1)


def test_variables_are_substituted_in_values_of_every_type() -> None:
    env = {"N": "7", "T": "yes", "S": "1 GiB"}
    loaded = read("max_resident: ${env.N}\nincludeAliasesInList: ${env.T}\nmodels: {}", env)
    assert loaded.catalog.limits.max_resident == 7
    assert loaded.settings.include_aliases is True
    assert (
        model("models: {m: {cmd: 'a ${PORT}', need: '${env.S}'}}", env).serving.need_bytes == 2**30
    )


def config(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_the_need_without_metadata_is_the_size_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x" * 1000)
    for i in (1, 2):
        (tmp_path / f"s-0000{i}-of-00002.gguf").write_bytes(b"x" * 300)
    path = config(
        tmp_path,
        "models:\n"
        f"  a: {{cmd: '${{worker}} --model {tmp_path}/a.gguf'}}\n"
        "  beside: {cmd: '${worker} -m a.gguf'}\n"
        "  parts: {cmd: 'llama-server -m s-00001-of-00002.gguf --port ${PORT}'}\n"
        "  given: {cmd: '${worker} -m a.gguf', need: 5kB}\n"
        "  none: {cmd: '${worker} -m missing.gguf'}\n"
        "  other: {cmd: 'python -m a.gguf ${PORT}'}\n",
    )
    loaded = load(path, {}, worker_command=WORKER, total_memory=RAM)
    needs = {name: spec.serving.need_bytes for name, spec in loaded.catalog.models.items()}
    assert needs == {"a": 1000, "beside": 1000, "parts": 600, "given": 5000, "none": 0, "other": 0}


def test_a_file_over_the_budget_reserves_all_of_it_with_a_warning(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    path = config(tmp_path, "memory: {budget: 1 KiB}\nmodels: {a: {cmd: '${worker} -m a.gguf'}}")
    loaded = load(path, {}, worker_command=WORKER, total_memory=RAM)
    assert loaded.catalog.models["a"].serving.need_bytes == 1024
    [warning] = loaded.warnings
    assert "more than memory.budget, 1 KiB: it will run alone, if it runs" in str(warning)


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodels: {}\n")
    assert not load(path, {}, worker_command=WORKER, total_memory=RAM).catalog.models


def test_loading_needs_neither_numpy_nor_gguf() -> None:
    code = (
        "import sys, swapd.config.load, swapd.config.env, swapd.config.diff;"
        "print({'numpy', 'gguf'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"
