"""Settings of custom_models.yaml, from the file to the worker's command."""

# Messages stay on one line, so that they can be searched for.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swapd.config.errors import ConfigError
from swapd.domain.models import ModelSpec
from swapd.gguf.llama_flags import LlamaFlags
from swapd.gguf.memory_estimate import MemoryFactors, estimate, fitting_context
from tests.gguf.gguf_files import write_gguf
from tests.library.stores import Machine

GIB = 2**30


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.put("models/m/m-7b.gguf", made.alice)
    made.put("demo/bard.gguf", made.bard)
    return made


def load_custom(machine: Machine, text: str) -> dict[str, ModelSpec]:
    (machine.home / "custom_models.yaml").write_text(text)
    report = machine.sync()
    assert report.warnings == ()
    return dict(machine.load().catalog.models)


def sync_warnings(machine: Machine, text: str) -> list[str]:
    (machine.home / "custom_models.yaml").write_text(text)
    return [str(warning) for warning in machine.sync().warnings]


def test_every_setting_reaches_the_worker(machine: Machine) -> None:
    for name in ("a lora.gguf", "b.gguf", "t.jinja", "p.gguf"):
        machine.put(f"home/{name}", b"x")
    machine.put("b.gguf", b"x")
    spec = load_custom(
        machine,
        """
models:
  m:7b:
    sampler_args: --temp 0.5
    ctx_size: 700
    adapters: {alice: a lora.gguf, bob: ../b.gguf}
    mmproj: p.gguf
    jinja: true
    chat_template_file: t.jinja
    chat_template_kwargs: {enable_thinking: false, name: "it's"}
    pinned: true
    preload: true
    metadata: {made: by me}
    aliases: [em]
""",
    )["ls/m:7b"]
    home = machine.home
    assert spec.launch.argv[3:-6] == (
        "--model", str(machine.models / "m/m-7b.gguf"), "--ctx-size", "700", "--parallel", "1",
        "--slot-save-path", ".swapd/kv",
        "--adapter", f"alice={home}/a lora.gguf", "--adapter", f"bob={home}/../b.gguf",
        "--jinja", "--chat-template-file", f"{home}/t.jinja",
        "--chat-template-kwargs", json.dumps({"enable_thinking": False, "name": "it's"}),
        "--temp", "0.5",
    )  # fmt: skip
    assert (spec.serving.pinned, spec.serving.preload, spec.presentation.aliases) == (
        True,
        True,
        ("em", "m:7b"),
    )
    assert spec.presentation.metadata == {
        "made": "by me", "adapters": ["alice", "bob"], "mmproj": f"{home}/p.gguf",
    }  # fmt: skip


def test_another_model_of_the_same_file_has_separate_settings(machine: Machine) -> None:
    models = load_custom(
        machine,
        """
models:
  m:7b: {sampler_args: --temp 1, ttl: 5}
  short: {base_model: LS/M-7B.gguf, ctx_size: 512}
  poet: {base_model: bard, ttl: 9}
  served: {base_model: 'm:7b', cmd: 'x ${PORT} ${MODEL_PATH}'}
""",
    )
    assert list(models) == ["bard", "ls/m:7b", "ls/served", "ls/short", "poet"]
    short, base = models["ls/short"], models["ls/m:7b"]
    assert short.launch.argv[4] == base.launch.argv[4] == str(machine.models / "m/m-7b.gguf")
    assert (
        "--temp" in short.launch.argv,
        short.serving.ttl,
        base.serving.ttl,
        short.launch.context,
    ) == (False, 1800, 5, 512)
    assert (
        short.presentation.aliases,
        models["poet"].presentation.aliases,
        models["poet"].serving.ttl,
    ) == (("short",), (), 9)
    assert models["ls/served"].launch.argv[-1] == base.launch.argv[4]


def test_a_section_may_be_named_by_an_alias(machine: Machine) -> None:
    machine.ollama.add("registry.ollama.ai/library/gemma3/27b", machine.bard + b"1", "27.4B")
    assert (
        load_custom(machine, "models: {'gemma3:27b': {ttl: 5}}")["ls/gemma3:27.4b-q8_0"].serving.ttl
        == 5
    )
    assert sync_warnings(
        machine, "models:\n  gemma3:27b: {ttl: 5}\n  gemma3:27.4b-q8_0: {ttl: 6}"
    ) == [
        "custom_models.yaml:2: models.gemma3:27b: means gemma3:27.4b-q8_0, which has a section already"
    ]


def test_an_external_server_gets_the_projector(machine: Machine) -> None:
    projector = write_gguf(machine.models / "m/mmproj.gguf", arch="clip", tokenizer=False)
    for cmd in (
        "'x ${PORT} -m ${MODEL_PATH} --mmproj ${MMPROJ_PATH}'",
        "[x, '${PORT}', -m, '${MODEL_PATH}', --mmproj, '${MMPROJ_PATH}']",
    ):
        spec = load_custom(machine, f"models: {{'m:7b': {{cmd: {cmd}}}}}")["ls/m:7b"]
        assert spec.launch.argv[-2:] == ("--mmproj", str(projector))
        assert spec.presentation.metadata == {"mmproj": str(projector)}
    assert load_custom(machine, "models: {}")["ls/m:7b"].presentation.metadata == {
        "mmproj": str(projector)
    }


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("  a: {base_model: n}", "custom_models.yaml:2: models.a.base_model: no model named n was found"),
        ("  a: {base_model: bart}", "custom_models.yaml:2: models.a.base_model: no model named bart was found; did you mean bard?"),
        ("  a: {base_model: b}\n  b: {base_model: a}", "custom_models.yaml:2: models.a.base_model: b is no model that was found; name the one whose file it is"),
        ("  bard: {base_model: 'm:7b'}", "custom_models.yaml:2: models.bard.base_model: bard is itself a model that was found; an alias needs another name"),
        ("  bard: {chat_template_file: no.txt}", "custom_models.yaml:2: models.bard.chat_template_file: {home}/no.txt is no file"),
        ("  bard:\n    adapters:\n      a.b: no.gguf", "custom_models.yaml:4: models.bard.adapters.a.b: {home}/no.gguf is no file"),
        ("  bard: {cmd: 'x ${PORT}', jinja: true}", "custom_models.yaml:2: models.bard.jinja: has no effect beside cmd; write it there"),
        ("  bard: {cmd: 'x ${PORT}', mmproj: a}", "custom_models.yaml:2: models.bard.mmproj: has no effect beside cmd; write it there"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_gives_a_warning(
    machine: Machine, text: str, warning: str
) -> None:
    assert warning.replace("{home}", str(machine.home)) in sync_warnings(
        machine, "models:\n" + text
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{adapters: [a]}", "adapters: must be a section with a path for each adapter's name, not a list"),
        ("{adapters: {a: [b]}}", "adapters: must be a section with a path for each adapter's name, not a section"),
        ("{adapters: {'a=b': c}}", "adapters.a=b: an adapter's name is of A-Z a-z 0-9 _ . -"),
        ("{adapters: {a: '${env.NO}'}}", "adapters.a: the environment has no NO"),
        ("{mmproj: 'a${b}'}", "mmproj: is a path that a command line in config.yaml cannot hold"),
        ("{adapters: {a: \"b\\nc\"}}", "adapters.a: is a path that a command line in config.yaml cannot hold"),
        ("{chat_template_kwargs: 3}", "chat_template_kwargs: must be a section, not 3"),
        ("{chat_template_kwargs: {a: '${b}'}}", "cmd: undefined macro ${b}"),
        ("{jinja: maybe}", "jinja: must be true or false, not maybe"),
        ("{pinned: 3}", "pinned: must be true or false, not 3"),
        ("{base_modl: a}", "base_modl: unknown key; did you mean base_model?"),
        ("{cmd: 'x ${PORT} ${MMPROJ_PATH}'}", "cmd: ${MMPROJ_PATH} has no meaning here"),
    ],
)  # fmt: skip
def test_an_error_names_its_key_and_changes_no_file(
    machine: Machine, text: str, sentence: str
) -> None:
    path = machine.home / "custom_models.yaml"
    path.write_text(f"models:\n  bard: {text}")
    with pytest.raises(ConfigError) as caught:
        machine.sync()
    assert str(caught.value) == f"custom_models.yaml:2: models.bard.{sentence}"
    assert not (machine.home / "config.yaml").exists()
    assert list(machine.models.iterdir()) == [machine.models / "m"]


@pytest.mark.parametrize(
    ("gib", "context", "budget"),
    [
        (1, 8192, 80), (31, 4096, 80), (51, 2048, 80),
        # 4 GiB are left after file and process, at 1 MiB per token.
        (31, 4096, 36), (31, 3840, 35), (51, 2048, 54), (51, 1792, 53),
        # If not even the minimum context fits, it is not lowered.
        (31, 4096, 31), (51, 2048, 16),
    ],
)  # fmt: skip
def test_the_context_is_lowered_to_fit_the_budget(gib: int, context: int, budget: int) -> None:
    factors = MemoryFactors(gib * GIB, 131072, keys=2**18, values=2**18)

    def need(context: int) -> int:
        return estimate(factors, LlamaFlags(context))

    found = fitting_context(factors, 8192, budget * GIB, need)
    assert found == context
    if context % 2048:
        assert need(found) <= budget * GIB < need(found + 256)


@pytest.mark.parametrize("budget", ["0", "1 GiB", "80%"])
def test_the_context_of_huge_files_does_not_depend_on_the_budget(
    machine: Machine, budget: str
) -> None:
    for gib in (31, 51):
        path = write_gguf(machine.models / f"huge/huge-{gib}.gguf", context=131072)
        os.truncate(path, gib * GIB)
    (machine.home / "custom_models.yaml").write_text(f"memory: {{budget: {budget}}}")
    machine.sync()
    models = machine.load().catalog.models
    assert models["ls/huge:31"].launch.context == 4096
    assert models["ls/huge:51"].launch.context == 2048


def test_only_an_explicit_setting_raises_a_lowered_context(machine: Machine) -> None:
    write_gguf(machine.models / "wide/wide.gguf", context=131072, layers=2000)
    budget = "memory: {budget: 1 GiB}\n"
    lowered = load_custom(machine, budget)["ls/wide"]
    assert (lowered.launch.context, lowered.serving.need_bytes <= GIB) == (3840, True)
    (machine.home / "custom_models.yaml").write_text(budget + "models: {wide: {ctx_size: 8192}}")
    machine.sync()
    assert machine.load().catalog.models["ls/wide"].launch.context == 8192
