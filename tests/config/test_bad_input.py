"""Error messages and warnings for invalid configurations, with their line numbers."""

# Messages stay on one line, so that they can be searched for.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

import pytest

from swapd.config.errors import ConfigError
from swapd.config.load import load
from tests.config.reading import RAM, WORKER, faults, read

BARD = "models:\n  bard:\n    cmd: serve --port ${PORT}\n"
FAULTS = [
    (
        BARD + "    ttll: 3",
        "config.yaml:4: models.bard.ttll: unknown key; did you mean ttl?",
    ),
    ("prot: 1\n" + BARD, "config.yaml:1: prot: unknown key; did you mean port?"),
    ("qqqqq: 1\n" + BARD, "config.yaml:1: qqqqq: unknown key"),
    (
        "memory: {budget: 1 GiB, thresold: 3}\n" + BARD,
        "config.yaml:1: memory.thresold: unknown key; did you mean threshold?",
    ),
    (
        BARD + "    filters:\n      strip_parms: a",
        "config.yaml:5: models.bard.filters.strip_parms: unknown key; did you mean stripParams?",
    ),
    (
        BARD + "    cmd: other --port ${PORT}",
        "config.yaml:4: models.bard.cmd: is given twice; the first is in line 3",
    ),
    (
        BARD + "  bard:\n    cmd: other --port ${PORT}",
        "config.yaml:4: models.bard: is given twice; the first is in line 2",
    ),
    ("models:\n\tbard: {}", "config.yaml:2: a tab is used where YAML requires spaces"),
    ("- a", "config.yaml:1: must be a section of keys and values"),
    ("just text", "config.yaml:1: must be a section of keys and values"),
    ("", "config.yaml:1: models: missing; a configuration without models has models: {}"),
    ("models:", "config.yaml:1: models: missing; a configuration without models has models: {}"),
    ("models: 3", "config.yaml:1: models: must be a section with a model's name as each key"),
    ("models:\n  bard: serve", "config.yaml:2: models.bard: must be a section with at least cmd"),
    ("models:\n  bard: {ttl: 3}", "config.yaml:2: models.bard: has no cmd, the command that serves it"),
    ("models:\n  ' ': {cmd: x}", "config.yaml:2: models. : a model's name cannot be empty"),
    ("port: 99999\n" + BARD, "config.yaml:1: port: must be a port, 1 to 65535, not 99999"),
    ("port: '80 '\n" + BARD, "config.yaml:1: port: must be a port, 1 to 65535, not '80 '"),
    ("ttl: soon\n" + BARD, "config.yaml:1: ttl: must be seconds, 0 or more, not soon"),
    ("ttl: -1\n" + BARD, "config.yaml:1: ttl: must be seconds, 0 or more, not -1"),
    ("ttl: .inf\n" + BARD, "config.yaml:1: ttl: must be a finite number"),
    ("ttl: !!int many\n" + BARD, "config.yaml:1: ttl: many cannot be read as a number"),
    ("ttl: !mine 3\n" + BARD, "config.yaml:1: ttl: the tag !mine is not supported"),
    ("ttl: 1\nglobalTTL: 2\n" + BARD, "config.yaml:2: globalTTL: means the same as ttl; give one of them"),
    ("max_queue: 0\n" + BARD, "config.yaml:1: max_queue: must be a whole number, 1 or more, not 0"),
    ("max_resident: -2\n" + BARD, "config.yaml:1: max_resident: must be a whole number, 0 or more, not -2"),
    ("max_resident: [2]\n" + BARD, "config.yaml:1: max_resident: must be a whole number, 0 or more, not a list"),
    ("logLevel: loud\n" + BARD, "config.yaml:1: logLevel: must be debug, info, warn or error, not loud"),
    ("memory: 8 GiB\n" + BARD, "config.yaml:1: memory: must be a section, not 8 GiB"),
    ("memory:\n  threshold: 101\n" + BARD, "config.yaml:2: memory.threshold: must be a percentage, 0 to 100, not 101"),
    ("memory:\n  interval: 0\n" + BARD, "config.yaml:2: memory.interval: must be seconds, more than 0, not 0"),
    (
        "memory:\n  budget: lots\n" + BARD,
        "config.yaml:2: memory.budget: must be a size like 8 GiB, 8 GB, 512 MiB or 80%, or a number of bytes, not lots",
    ),
    (
        "memory:\n  budget: 120%\n" + BARD,
        "config.yaml:2: memory.budget: must be a size like 8 GiB, 8 GB, 512 MiB or 80%, or a number of bytes, not 120%",
    ),
    (
        "max_body: 50%\n" + BARD,
        "config.yaml:1: max_body: must be a size like 8 GiB, 8 GB, 512 MiB, or a number of bytes, not 50%",
    ),
    (
        "memory: {budget: 1 GiB}\n" + BARD + "    need: 1.5 GiB",
        "config.yaml:5: models.bard.need: 1.5 GiB is more than memory.budget, 1 GiB",
    ),
    (BARD + "    ttl: -2", "config.yaml:4: models.bard.ttl: must be seconds, 0 for never or -1 for the default, not -2"),
    (BARD + "    aliases: b", "config.yaml:4: models.bard.aliases: must be a list of names, or of sections with an id, not b"),
    (BARD + "    aliases:\n      - b\n      - {ids: c}", "config.yaml:6: models.bard.aliases[1].ids: is not a key of an alias, which has an id"),
    (BARD + "    aliases:\n      - {name: c}", "config.yaml:5: models.bard.aliases[0]: an alias cannot be empty"),
    (BARD + "    filters: {stripParams: a, strip_params: b}", "config.yaml:4: models.bard.filters.strip_params: means the same as stripParams; give one of them"),
    (BARD + "    aliases: [bard]", "config.yaml:4: models.bard.aliases[0]: bard is the name of a model"),
    (BARD + "    aliases: [b, b]", "config.yaml:4: models.bard.aliases[1]: b already stands for bard"),
    (BARD + "    aliases: ['']", "config.yaml:4: models.bard.aliases[0]: an alias cannot be empty"),
    (
        BARD + "    aliases: [x]\n  alice:\n    cmd: a --port ${PORT}\n    aliases:\n      - x",
        "config.yaml:8: models.alice.aliases[0]: x already stands for bard",
    ),
    (BARD + "    env: [PATH]", "config.yaml:4: models.bard.env[0]: must be NAME=value, not 'PATH'"),
    (BARD + "    proxy: here", "config.yaml:4: models.bard.proxy: must be a URL like http://127.0.0.1:8080, not here"),
    (
        BARD + "    proxy: http://a:99999",
        "config.yaml:4: models.bard.proxy: must be a URL like http://127.0.0.1:8080, not http://a:99999",
    ),
    (
        BARD + "    checkEndpoint: ready",
        "config.yaml:4: models.bard.checkEndpoint: must be a path like /health, or none, not ready",
    ),
    (
        "models:\n  bard:\n    cmd: serve",
        "config.yaml:3: models.bard.cmd: does not use ${PORT}, so proxy must say where the worker answers",
    ),
    (
        "models:\n  bard:\n    cmd: serve\n    proxy: http://h:${PORT}",
        "config.yaml:4: models.bard.proxy: uses ${PORT}, but cmd does not, so the worker does not get the port",
    ),
    (
        "models:\n  bard:\n    cmd: serve 'it",
        "config.yaml:3: models.bard.cmd: cannot be split into words: a quote is never closed",
    ),
    ("models:\n  bard:\n    cmd: '# nothing'", "config.yaml:3: models.bard.cmd: holds no command"),
    ("models:\n  bard:\n    cmd: [a, {b: c}]", "config.yaml:3: models.bard.cmd[1]: must be text, not a section"),
    ('models:\n  bard:\n    cmd: ["${PORT}", "a\\0b"]', "config.yaml:3: models.bard.cmd: holds a NUL character"),
    ("models:\n  bard:\n    cmd: a ${PROT}", "config.yaml:3: models.bard.cmd: undefined macro ${PROT}; did you mean ${PORT}?"),
    ("models:\n  bard:\n    cmd: a ${PID} ${PORT}", "config.yaml:3: models.bard.cmd: ${PID} has no meaning here"),
    (
        "models:\n  bard:\n    cmd: a${worker}",
        "config.yaml:3: models.bard.cmd: ${worker} stands for several words, so it must stand alone",
    ),
    ("models:\n  bard:\n    cmd: a ${env.HOM}", "config.yaml:3: models.bard.cmd: the environment has no HOM; did you mean HOME?"),
    (
        "models:\n  bard:\n    cmd: a ${HOME}",
        "config.yaml:3: models.bard.cmd: undefined macro ${HOME}; did you mean ${env.HOME}?",
    ),
    ("host: ${env.X}\n" + BARD, "config.yaml:1: host: the environment has no X"),
    (
        "macros:\n  a: ${b}\n  b: ${a}\nmodels:\n  bard: {cmd: '${a} ${PORT}'}",
        "config.yaml:5: models.bard.cmd: macro a refers to itself",
    ),
    (
        "macros: {a: 'it''s'}\nmodels:\n  bard: {cmd: '${a} ${PORT}'}",
        "config.yaml:3: models.bard.cmd: macro a: a quote is never closed",
    ),
    (
        "macros: {PORT: 3}\n" + BARD,
        "config.yaml:1: macros.PORT: ${PORT} has a meaning of its own and cannot be a macro",
    ),
    ("macros: {a b: 3}\n" + BARD, "config.yaml:1: macros.a b: a macro's name is 1 to 63 of A-Z a-z 0-9 _ -"),
    ("macros: {a: [3]}\n" + BARD, "config.yaml:1: macros.a: must be text, a number or true or false"),
    (
        "models:\n  bard:\n    cmd: ${worker} --parallel many",
        "config.yaml:3: models.bard.cmd: --parallel must be a whole number, not many",
    ),
    ("models:\n  bard:\n    cmd: ${worker} -np 0", "config.yaml:3: models.bard.cmd: --parallel must be 1 or more"),
    (BARD + "    metadata: {a: '${nope}'}", "config.yaml:4: models.bard.metadata: undefined macro ${nope}"),
    (BARD + "    <<: 3", "config.yaml:4: models.bard: << merges sections, nothing else"),
    (BARD + "    ? [a]\n    : 3", "config.yaml:4: models.bard: a key must be plain text"),
    ("x: &a {b: *a}\n" + BARD, "config.yaml:1: x.b: a YAML alias refers to a section that contains it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), FAULTS, ids=[s[1][:70] for s in FAULTS])
def test_an_error_names_its_line_and_key(text: str, sentence: str) -> None:
    assert sentence in faults(text, {"HOME": "/home/me"})


@pytest.mark.parametrize("text", ["models: {a: [}", "models: {a: *b}", "models: 'a", "a: b: c"])
def test_invalid_yaml_is_reported_with_its_line(text: str) -> None:
    [sentence] = faults("port: 1\n" + text)
    assert sentence.startswith("config.yaml:2: is not valid YAML near column ")


def test_an_unset_variable_is_a_single_error() -> None:
    assert faults("port: ${env.X}\n" + BARD) == ["config.yaml:1: port: the environment has no X"]


def test_all_errors_are_reported_at_once() -> None:
    text = "prot: 1\nmemory: {budget: x}\n" + BARD + "    ttl: x\n    aliases: [bard]\n    ttl: 3"
    assert [line.split(": ")[:2] for line in faults(text)] == [
        ["config.yaml:1", "prot"],
        ["config.yaml:2", "memory.budget"],
        ["config.yaml:6", "models.bard.ttl"],
        ["config.yaml:7", "models.bard.aliases[0]"],
        ["config.yaml:8", "models.bard.ttl"],
    ]


@pytest.mark.parametrize("deep", ["[" * 100_000, "- " * 100_000, "{a: " * 5_000])
def test_deep_nesting_is_rejected_without_a_crash(deep: str) -> None:
    assert faults("models:\n  " + deep) == ["config.yaml:2: sections are nested more than 64 deep"]


def test_yaml_aliases_that_expand_to_billions_are_rejected() -> None:
    levels = ["x-0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"x-{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    found = faults("\n".join([*levels, BARD]))
    assert "too many values" in found[0]


def test_macros_that_expand_to_billions_are_rejected() -> None:
    macros = {f"m{i}": f"${{m{i + 1}}} ${{m{i + 1}}}" for i in range(60)} | {"m60": ""}
    lines = [f"  {name}: '{text}'" for name, text in macros.items()]
    text = "\n".join(["macros:", *lines, "models:", "  bard: {cmd: 'a ${m0} ${PORT}'}"])
    assert faults(text) == ["config.yaml:64: models.bard.cmd: its macros stand for too many others"]


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"SWAPD_PORT": "x"}, "environment: SWAPD_PORT: must be a port, 1 to 65535, not x"),
        ({"LLAMA_SWAP_PORT": "0"}, "environment: LLAMA_SWAP_PORT: must be a port, 1 to 65535, not 0"),
    ],
)  # fmt: skip
def test_an_invalid_variable_is_reported(env: dict[str, str], sentence: str) -> None:
    assert faults(BARD, env) == [sentence]


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(path, {}, worker_command=WORKER, total_memory=RAM)
        return str(caught.value)

    assert message(tmp_path / "a.yaml") == "a.yaml: cannot be read: No such file or directory"
    assert message(tmp_path) == f"{tmp_path.name}: cannot be read: Is a directory"
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert message(tmp_path / "b.yaml") == "b.yaml: is not text in UTF-8"


WARNED = [
    ("startPort: 5800\n" + BARD, "config.yaml:1: startPort: has no effect yet: "),
    (BARD + "    timeouts: {connect: 3}", "config.yaml:4: models.bard.timeouts: has no effect yet"),
    (
        BARD + "    filters:\n      setParams: {a: 1}",
        "config.yaml:5: models.bard.filters.setParams: has no effect yet",
    ),
    (
        BARD + "    filters: {stripParams: 'model, top_p'}",
        "config.yaml:4: models.bard.filters.stripParams: model stays in every request",
    ),
    (
        BARD + "    metadata: {a: '${PORT}'}",
        "config.yaml:4: models.bard.metadata: ${PORT} stays as written",
    ),
    (
        "models:\n  bard:\n    cmd: ${worker}\n    proxy: http://a",
        "config.yaml:4: models.bard.proxy: has no effect: the built-in worker reports its address",
    ),
]


@pytest.mark.parametrize(("text", "start"), WARNED, ids=[w[1][:60] for w in WARNED])
def test_a_key_without_effect_gives_one_warning(text: str, start: str) -> None:
    [warning] = read(text).warnings
    assert str(warning).startswith(start)
