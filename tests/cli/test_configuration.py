"""Settings, configuration files and the doctor; and that bad input leaves everything as it was."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from tests.cli.user import User
from tests.daemon import ROOT

CUSTOM = """\
# mine
models:
  bard:  # the poet
    ttl: 60  # a minute
"""


def test_set_keeps_comments_and_syncs(user: User) -> None:
    user.says("sync")
    user.custom.write_text(CUSTOM)
    user.says("sync")
    output = user.says("set", "bard", "ttl=5", "sampler_args=--temp 0.5")
    assert f"{user.custom}: models.bard changed" in output
    assert re.search(r"^changed +bard$", output, re.MULTILINE)
    text = user.custom.read_text()
    assert "# mine" in text and "bard:  # the poet" in text
    assert "ttl: 5  # a minute" in text
    assert "--temp 0.5" in user.config.read_text()
    assert "models.bard unchanged" in user.says("set", "bard", "ttl=5")
    user.says("set", "BARD", "sampler_args=")
    assert "--temp 0.5" not in user.config.read_text()


BAD_WORDS = [
    (("set", "bard", "tll=5"), 1, "tll: unknown key; did you mean ttl?"),
    (("set", "bard", "ttl=soon"), 1, "models.bard.ttl: must be seconds"),
    (("set", "brad", "ttl=5"), 1, "there is no model named brad; did you mean bard?"),
    (("set", "bard", "ttl"), 2, "ttl is no setting: it must be key=value"),
    (("set", "bard"), 2, "KEY=VALUE"),
    (("rm", "bard"), 1, "bard comes with swapd"),
    (("show", "brad"), 1, "did you mean bard?"),
    (("start", "--config", "none.yaml"), 1, "there is no none.yaml, so no configuration"),
    (("start", "--config", "/"), 1, "/ is no file, so no configuration"),
    (("config", "chek"), 2, "no such command 'chek'; did you mean 'check'? see {} config --help"),
    (("config", "check", "none.yaml"), 1, "there is no none.yaml"),
    (("shwo", "bard"), 2, "no such command 'shwo'; did you mean 'show'? see {} --help"),
    (("stop", "--nwo"), 2, "no such option: --nwo; did you mean --now? see {} stop --help"),
    (("logs", "-n", "x"), 2, "'--lines' / '-n' must be a whole number; see {} logs --help"),
    (("logs", "-n", "-1"), 2, "'--lines' / '-n' must be 0 or more; "),
    (("start", "--port", "0"), 2, "'--port' must be from 1 to 65535; "),
    (("start", "--port", "99999"), 2, "'--port' must be from 1 to 65535; "),
    (("list", "a", "b"), 2, "unexpected argument b; see {} list --help"),
    (("show",), 2, "missing argument 'NAME'; see {} show --help"),
    (("show", ""), 1, "there is no model ''; there are: alice, bard"),
    (("set", "bard", "foo=1"), 1, "foo: unknown key; config.example.yaml lists all keys"),
    (
        ("set", "unknown", "ttl=1"),
        1,
        "no model named unknown; a model of your own needs cmd or base",
    ),
    (("config", "check", "/"), 1, "/ can't be read: Is a directory"),
    (("simulate", "--hours", "0"), 2, "'--hours' must be 0.01 or more"),
    (("simulate", "--trace", "none.csv"), 1, "none.csv: No such file or directory"),
    (("pull", "file:///etc/passwd"), 1, "an address begins with https:// or http://"),
    (("run", "bard", "x", "--temp", "hot"), 2, "'--temp' must be a number"),
    (("pull", "hf:x"), 1, "it must be hf:owner/repo[:quant]"),
]


def test_bad_arguments_are_reported_in_a_sentence_and_change_nothing(user: User) -> None:
    user.says("sync")
    user.custom.write_text(CUSTOM)
    before = user.files()
    for words, status, says in BAD_WORDS:
        output = user.fails(*words, status=status)
        assert says.format(ROOT / "model") in output, words
        assert len(output.splitlines()) == 1, words
        assert user.files() == before, words
    assert user.processes() == []


def test_bad_yaml_is_reported_and_changes_nothing(user: User) -> None:
    user.says("sync")
    for text, says in [
        ("models:\n\tbard: {}\n", "custom_models.yaml:2: a tab is used where"),
        ("models:\n  bard: {}\n  bard: {}\n", "custom_models.yaml:3: "),
        ("models:\n  bard: {ttl: [1]}\n", "models.bard.ttl: must be seconds"),
        ("max_residents: 1\n", "unknown key; did you mean max_resident?"),
    ]:
        user.custom.write_text(text)
        before = user.files()
        assert says in user.fails("sync")
        assert says in user.fails("set", "bard", "ttl=1")
        assert user.files() == before
    assert says in user.fails("config")


def test_config_prints_path_text_and_check(user: User) -> None:
    assert f"there is no {user.config}" in user.fails("config", "show")
    user.says("sync")
    assert user.says("config", "path") == f"{user.config}\n"
    assert user.says("config", "show") == user.config.read_text()
    assert user.says("config", "check").splitlines() == [
        f"✓ {user.config}: 2 models",
        f"✓ {user.custom}: not there, and not needed",
    ]
    mine = user.home / "mine.yaml"
    mine.write_text("models:\n  one:\n    cmd: x --port ${PORT}\n    tll: 1\n")
    assert "mine.yaml:4: models.one.tll: unknown key; did you mean ttl?" in user.fails(
        "config", "check", "mine.yaml"
    )
    mine.write_text(mine.read_text().replace("tll", "ttl"))
    assert user.says("config", "check", "mine.yaml") == "✓ mine.yaml: 1 model\n"


def test_check_and_doctor_read_the_files_that_a_start_needs(user: User) -> None:
    cmd = "${worker} --model m.gguf --adapter alice=alice.gguf --lora bard.gguf"
    folder = user.config.parent
    folder.mkdir()
    shutil.copy(ROOT / "demo/bard.gguf", folder)
    tls = {"cert": "cert.pem", "key": "key.pem"}
    text = msgspec.json.encode({"tls": tls, "models": {"m": {"cmd": cmd}}}).decode()
    (folder / "cert.pem").write_text("no certificate")
    (folder / "key.pem").write_text("no key")
    user.config.write_text(text)
    sentences = (
        f"models.m: the adapter {folder}/alice.gguf is not there",
        f"models.m: {folder}/bard.gguf is no adapter but a GGUF of type model",
        f"tls: {folder}/cert.pem and {folder}/key.pem must be a certificate and its key in PEM",
    )
    checked, looked = user.fails("config", "check"), user.types("doctor")
    assert looked.returncode == 1
    for sentence in sentences:
        assert sentence in checked
        assert sentence in looked.stdout
    shutil.copy(ROOT / "demo/alice-lora.gguf", folder / "alice.gguf")
    shutil.copy(ROOT / "demo/alice-lora.gguf", folder / "bard.gguf")
    user.config.write_text(msgspec.json.encode({"models": {"m": {"cmd": cmd}}}).decode())
    assert "1 model" in user.says("config", "check")


def test_config_prints_the_resulting_settings(user: User) -> None:
    (user.home / "swapd").mkdir()
    (user.home / "swapd/.env").write_text("DEFAULT_CTX_SIZE=512\nMODEL_FOLDERS=/not/here\n")
    user.custom.write_text("max_resident: 3\nmemory: {threshold: 0}\napiKeys: [very-secret]\n")
    output = user.says("config")
    user.says("sync")
    assert user.says("config").splitlines()[2:] == output.splitlines()[2:]
    for pattern in (
        rf"^listens at +127.0.0.1, port {user.port}$",
        r"^workers at once +3$",
        r"^idle workers +stopped when others need their memory$",
        rf"^LM Studio +{user.home}/models$",
        r"^folders +/not/here \(not there\)$",
        r"^context +512 tokens",
    ):
        assert re.search(pattern, output, re.MULTILINE), (pattern, output)
    assert re.search("^keys +[a-z]", output, re.MULTILINE) and "secret" not in output
    assert "none: requests" not in output


def test_editors_find_the_schema_of_what_sync_writes(user: User) -> None:
    user.says("sync")
    first, second = user.config.read_text().splitlines()[:2]
    assert first.startswith("# Written by swapd sync")
    address = second.removeprefix("# yaml-language-server: $schema=")
    schema = msgspec.json.decode(Path(unquote(urlsplit(address).path)).read_bytes())
    assert schema["title"] == "swapd: config.yaml"
    for name in ("custom_models.yaml", "config.example.yaml"):
        output = (ROOT / name).read_text().splitlines()[0]
        assert (ROOT / output.removeprefix("# yaml-language-server: $schema=")).is_file()


def test_the_doctor_finds_nothing_and_then_everything(user: User) -> None:
    user.says("start")
    output = user.says("doctor")
    assert f"✓ swapd runs at http://127.0.0.1:{user.port}" in output
    assert re.search(r"^✓ llama.cpp by llama-cpp-python \d", output, re.MULTILINE)
    assert re.search(r"^✓ .*GPU", output, re.MULTILINE)
    assert "✗" not in output
    user.says("stop")
    folder = user.home / "models/pub/gone"
    folder.mkdir(parents=True)
    (folder / "gone.gguf").symlink_to(user.home / "nowhere.gguf")
    user.custom.write_text("tll: 1\n")
    sick = user.types("doctor")
    assert sick.returncode == 1
    assert "custom_models.yaml:1: tll: unknown key" in sick.stdout
    user.custom.unlink()
    sick = user.types("doctor")
    assert re.search(r"^✗ .*gone.gguf is a link to .*nowhere.gguf", sick.stdout, re.MULTILINE)
    assert f"✓ swapd does not run; its port {user.port} is free" in sick.stdout
    findings = msgspec.json.decode(user.types("doctor", "--json").stdout)
    assert [f["says"] for f in findings if not f["well"]] == [
        line[2:] for line in sick.stdout.splitlines() if line.startswith("✗")
    ]


def test_the_doctor_names_the_owner_of_the_port(user: User) -> None:
    import socket

    with socket.create_server(("127.0.0.1", user.port)):
        for _ in range(2):  # With and without a configuration.
            output = user.types("doctor")
            assert output.returncode == 1
            assert f"✗ port {user.port} is taken by pid {os.getpid()}" in output.stdout
            user.says("sync")


def test_the_doctor_reports_a_missing_compiler(user: User) -> None:
    (user.home / "bin").mkdir()
    for name in ("python3", "sh", "dirname", "cksum", "cat", "readlink"):
        if found := shutil.which(name):
            (user.home / "bin" / name).symlink_to(found)
    user.environ["PATH"] = str(user.home / "bin")
    output = user.types("doctor")
    assert output.returncode == 1
    assert "✗ there is no C++ compiler" in output.stdout
