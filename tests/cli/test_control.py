"""Commands run by a user: ./model in a separate data directory."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec

from swapd.process.ports import free_port
from tests.cli.user import User
from tests.daemon import ROOT, alive, eventually


def test_a_first_visit(user: User) -> None:
    """Start, query both models, check the status, stop: no process is left."""
    started = user.types("start")
    assert started.returncode == 0, started.stderr
    url = f"http://127.0.0.1:{user.port}"
    assert f"swapd runs at {url}" in started.stdout
    assert re.search(r"^models  alice, bard$", started.stdout, re.MULTILINE)
    log = re.search(r"^log     (.*)$", started.stdout, re.MULTILINE)
    assert log and Path(log.group(1)).is_file()
    curl = re.search(r"^try     (curl .*)$", started.stdout, re.MULTILINE)
    assert curl
    pasted = subprocess.run(
        ["sh", "-c", f"{curl.group(1)} -sS"], capture_output=True, text=True, check=True
    )
    assert msgspec.json.decode(pasted.stdout)["model"] == "bard"
    body = (
        '{"model":"alice","stream":true,"max_tokens":9,"messages":[{"role":"user","content":"hi"}]}'
    )
    streamed = subprocess.run(
        ["curl", "-sSN", f"{url}/v1/chat/completions", "-d", body],
        capture_output=True,
        text=True,
        check=True,
    )
    assert streamed.stdout.rstrip().endswith("data: [DONE]")

    looked = user.types("status")
    assert looked.returncode == 0
    assert "✓ bard: ready" in looked.stdout
    assert "✓ alice: ready" in looked.stdout
    output = msgspec.json.decode(user.types("status", "--json").stdout)
    assert output["running"] is True
    assert {w["model"] for w in output["workers"]} == {"bard", "alice"}

    again = user.types("start")
    assert again.returncode == 0
    assert again.stdout == f"swapd runs already at {url} (pid {output['pid']})\n"

    stopped = user.types("stop")
    # A slow stop prints its reason before.
    assert (stopped.returncode, stopped.stdout.splitlines()[-1:]) == (0, ["swapd has stopped"])
    assert user.processes() == []
    assert list((user.home / "user").iterdir()) == []
    after = user.types("status")
    assert (after.returncode, after.stdout) == (3, "✗ swapd is not running\n")
    assert user.types("stop").stdout == "swapd is not running\n"


def test_a_slow_stop_reports_its_reason(user: User) -> None:
    user.says("start")
    pid = msgspec.json.decode(user.says("status", "--json"))["pid"]
    os.kill(pid, signal.SIGSTOP)
    with user.at_terminal("stop") as terminal:
        terminal.expect_exact("waiting for running requests to end; ")
        terminal.expect_exact("stop --now does not wait for them")
    with user.at_terminal("stop", "--now") as terminal:
        terminal.expect_exact("waiting for the workers to exit")
        os.kill(pid, signal.SIGCONT)
        terminal.expect_exact("swapd has stopped")


def test_a_start_that_fails_shows_the_log_and_leaves_nothing(user: User) -> None:
    with socket.create_server(("127.0.0.1", user.port)):
        failed = user.types("start")
    assert failed.returncode == 1
    assert f"can't listen on 127.0.0.1 port {user.port}: Address already in use" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert user.processes() == []
    assert user.types("start").returncode == 0


def test_a_start_with_a_broken_configuration_reports_the_line(user: User) -> None:
    user.types("sync")
    _, _, rest = user.config.read_text().partition("\n")
    user.config.write_text(f"# mine\n{rest}maxresident: 1\n")
    output = user.fails("start")
    line = len(user.config.read_text().splitlines())
    assert f"config.yaml:{line}: maxresident: unknown key; did you mean max_resident?" in output


def test_sync_reports_changes_and_then_none(user: User) -> None:
    first = user.types("sync")
    assert first.returncode == 0
    assert re.search(r"^added +bard$", first.stdout, re.MULTILINE)
    assert first.stdout.rstrip().endswith("config.yaml changed")
    again = user.types("sync")
    assert again.stdout.rstrip().endswith("config.yaml unchanged")
    custom = user.home / "swapd/custom_models.yaml"
    custom.write_text("max_resident: 1\nmodels:\n  bard:\n    ttl: 5\n")
    changed = user.types("sync")
    assert re.search(r"^changed +bard$", changed.stdout, re.MULTILINE)
    custom.write_text("models:\n  bard:\n    tll: 5\n")
    before = (user.home / "swapd/config.yaml").read_bytes()
    broken = user.types("sync")
    assert broken.returncode == 1
    assert "custom_models.yaml:3: models.bard.tll: unknown key; did you mean ttl?" in broken.stderr
    assert (user.home / "swapd/config.yaml").read_bytes() == before


def test_a_file_that_sync_did_not_write_is_left_alone(user: User) -> None:
    (user.home / "swapd").mkdir()
    config = user.home / "swapd/config.yaml"
    config.write_text("models: {}\n")
    refused = user.types("sync")
    assert refused.returncode == 1
    assert "was not written by sync" in refused.stderr
    assert config.read_text() == "models: {}\n"
    assert user.types("sync", "--force").returncode == 0


def test_a_handwritten_configuration_is_used_in_place(user: User) -> None:
    (user.home / "mine.yaml").write_text(
        f"models:\n  mine:\n    cmd: ${{worker}} --model {ROOT}/demo/bard.gguf\n"
    )
    started = user.types("start", "--config", "mine.yaml")
    assert started.returncode == 0, started.stderr
    assert re.search(r"^models  mine$", started.stdout, re.MULTILINE)
    before = msgspec.json.decode(user.says("status", "--json"))["pid"]
    assert re.search(r"^models  mine$", user.says("restart"), re.MULTILINE)
    assert msgspec.json.decode(user.says("status", "--json"))["pid"] != before
    missing = user.types("serve", "--config", "none.yaml")
    assert missing.returncode == 1
    assert missing.stderr == "swapd: there is no none.yaml, so no configuration\n"


def test_a_restart_with_a_broken_configuration_stops_nothing(user: User) -> None:
    mine = user.home / "mine.yaml"
    mine.write_text("models: {}\n")
    user.says("start", "--config", str(mine))
    before = msgspec.json.decode(user.says("status", "--json"))["pid"]
    mine.write_text("models: [\n")
    output = user.fails("restart")
    assert output.startswith("swapd: swapd was not stopped, since it could not start again: ")
    assert str(mine) in output
    mine.unlink()
    assert "was not stopped" in user.fails("restart")
    assert msgspec.json.decode(user.says("status", "--json"))["pid"] == before


def test_a_restart_from_another_shell_keeps_the_port(user: User) -> None:
    user.custom.parent.mkdir(parents=True)
    user.custom.write_text(f"port: {free_port()}\n")
    user.says("start")
    del user.environ["SWAPD_PORT"]
    assert f"swapd runs at http://127.0.0.1:{user.port} " in user.says("restart")


def test_it_starts_with_all_standard_descriptors_closed(user: User) -> None:
    command = f"exec {ROOT}/model start <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], env=user.environ, timeout=60, check=False)
    assert done.returncode == 0
    assert msgspec.json.decode(user.says("status", "--json"))["running"] is True
    asked = {"model": "bard", "prompt": "A", "max_tokens": 2}
    url = f"http://127.0.0.1:{user.port}/v1/completions"
    assert httpx.post(url, json=asked, trust_env=False).status_code == 200
    user.says("stop")
    user.types("sync")
    for words in ("serve", "status"):
        alone = ["sh", "-c", f"exec {sys.executable} -m swapd {words} <&- >&- 2>&-"]
        with subprocess.Popen(alone, env=user.environ) as process:
            if words == "serve":
                eventually(lambda: user.types("status").returncode == 0)
                process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == (0 if words == "serve" else 3)


def test_in_the_foreground_ctrl_c_ends_it(user: User) -> None:
    user.types("sync")
    serving = subprocess.Popen(
        [str(ROOT / "model"), "serve"], env=user.environ, stderr=subprocess.PIPE, text=True
    )
    assert serving.stderr is not None
    assert "swapd serves 2 models" in serving.stderr.readline()
    serving.send_signal(signal.SIGINT)
    assert serving.wait(timeout=20) == 0
    assert "swapd has ended" in serving.stderr.read()
    serving.stderr.close()


def test_ctrl_c_while_it_is_still_importing_is_no_traceback() -> None:
    code = """
import os, runpy, signal, sys
class Interrupted:
    def find_spec(self, name, *_):
        if name == "swapd.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupted())
runpy.run_module("swapd", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_killed_swapd_does_not_block_a_start(user: User) -> None:
    user.types("start")
    pid = msgspec.json.decode(user.types("status", "--json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    assert user.types("status").returncode == 3
    assert user.types("start").returncode == 0


def test_unknown_commands_and_options_are_reported(user: User) -> None:
    for words in (("strat",), ("start", "--prot", "1"), ("start", "--port", "x")):
        output = user.fails(*words, status=2)
        assert words[-1 if len(words) == 1 else 1] in output


SLOW = {"rich", "pydantic", "numpy", "gguf", "huggingface_hub", "aiohttp", "jinja2", "llama_cpp"}


def test_a_command_imports_what_it_uses(user: User) -> None:
    user.says("list")  # Fills the cache of GGUF headers.
    for words, slow in {
        ("--help",): SLOW | {"psutil", "yaml"},
        ("status",): SLOW | {"yaml"},
        ("ps",): SLOW | {"yaml"},
        ("logs",): SLOW | {"yaml"},
        ("list",): SLOW,
        ("show", "bard"): SLOW,
    }.items():
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "swapd", *words],
            env=user.environ,
            capture_output=True,
            text=True,
            check=False,
        )
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
        assert "typer" in imported
        assert not imported & slow, words


def test_it_starts_quickly(user: User) -> None:
    """Run it once before, since the first start may compile bytecode."""
    user.types("status")
    assert user.takes("status") < 0.3


def test_a_second_stop_waits_too_and_a_start_waits_for_both(user: User, tmp_path: Path) -> None:
    """A stream held open by a FIFO is finished despite two stops; then a start succeeds."""
    os.mkfifo(tmp_path / "words")
    fake = f"{sys.executable} -m tests.fake_worker --port ${{PORT}} --silent --name a"
    user.custom.parent.mkdir(exist_ok=True)
    user.config.write_text(
        f"models:\n  a:\n    cmd: {fake} --word-gate {tmp_path / 'words'} --outlive-stdin\n"
    )
    user.types("start")
    url = f"http://127.0.0.1:{user.port}"
    with (
        ThreadPoolExecutor(4) as pool,
        httpx.stream(
            "POST",
            f"{url}/v1/chat/completions",
            json={"model": "a", "stream": True, "messages": []},
            trust_env=False,
        ) as stream,
        (tmp_path / "words").open("wb", buffering=0) as words,
    ):
        words.write(b".")
        lines = stream.iter_lines()
        next(lines)
        stops = [pool.submit(user.types, "stop")]
        eventually(lambda: httpx.get(f"{url}/health", trust_env=False).status_code == 503)
        stops.append(pool.submit(user.types, "stop"))
        started = pool.submit(user.types, "start")
        # The second stop and the start have come to their wait when they say so.
        eventually(lambda: "closing" in (user.home / "swapd/.swapd/lock").read_text())
        assert "is shutting down" in user.says("status")
        assert msgspec.json.decode(user.says("status", "--json"))["closing"] is True
        words.close()
        assert [line for line in lines if line][-1] == "data: [DONE]"
        assert [stop.result().returncode for stop in stops] == [0, 0]
        assert started.result().returncode == 0
    assert user.types("status").returncode == 0


def test_a_file_in_the_folder_is_not_taken_for_a_module(user: User) -> None:
    for name in ("random.py", "re.py", "workers.py", "swapd.py"):
        (user.home / name).write_text("raise SystemExit('not this one')\n")
        (user.home / "swapd").mkdir(exist_ok=True)
        (user.home / "swapd" / name).write_text("raise SystemExit('not this one')\n")
    started = user.types("start")
    assert started.returncode == 0, started.stderr
    url = f"http://127.0.0.1:{user.port}/v1/completions"
    for name in ("bard", "alice", "bard"):
        answer = httpx.post(url, json={"model": name, "prompt": "A", "max_tokens": 2})
        assert answer.status_code == 200, answer.text


def test_a_data_directory_that_is_a_file_is_one_sentence(user: User) -> None:
    (user.home / "swapd").write_text("")
    for words in (("start",), ("status",), ("sync",), ("serve",)):
        output = user.types(*words)
        assert output.returncode != 0
        assert "Traceback" not in output.stderr
