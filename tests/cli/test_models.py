"""Models and workers: list, show, ps, stats, load, unload, bench, logs."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pexpect  # type: ignore[import-untyped]
import pytest

from tests.cli.user import User
from tests.daemon import ROOT, config, eventually
from tests.gguf.gguf_files import write_gguf

pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")


def test_list_counts_and_filters(user: User) -> None:
    folder = user.home / "models/pub/Qwen-Tiny"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "demo/bard.gguf", folder / "Qwen-Tiny-Q4_K_M.gguf")
    user.environ["MIN_MODEL_AGE_SECONDS"] = "0"
    lines = user.says("list").splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "QUANT", "CTX", "SOURCE", "STATE"]
    assert [line.split()[0] for line in lines[1:-1]] == ["alice", "bard", "ls/qwen-tiny:q4_k_m"]
    assert lines[-1] == "3 models"
    (folder / "Damaged.gguf").write_bytes(b"GGUF")
    damaged = user.says("list").splitlines()
    assert damaged[:-2] == lines[:-1]
    assert re.fullmatch(rf"✗ {folder}/Damaged.gguf is cut short: .*", damaged[-2])
    assert damaged[-1] == "3 models"
    assert "can't be used" in user.fails("show", "ls/qwen-tiny:damaged")
    (folder / "Damaged.gguf").unlink()
    filtered = user.says("ls", "QWEN").splitlines()
    assert len(filtered) == 3
    assert filtered[-1] == "1 of 3 models match 'QWEN'"
    assert user.says("list", "nothing") == "0 of 3 models match 'nothing'\n"
    (output,) = msgspec.json.decode(user.says("list", "tiny", "--json"))
    assert output["name"] == "ls/qwen-tiny:q4_k_m"
    assert output["aliases"] == ["qwen-tiny:q4_k_m"]
    assert output["size"] == (ROOT / "demo/bard.gguf").stat().st_size
    assert output["state"] == "unloaded"


def test_unserved_models_are_marked(user: User) -> None:
    user.environ["MIN_MODEL_AGE_SECONDS"] = "0"
    user.says("sync")
    shutil.copy(ROOT / "demo/bard.gguf", user.home / "models/late.gguf")
    output = user.says("list").splitlines()
    assert [line for line in output if line.endswith("not served yet")] == [output[3]]
    assert "late" in output[3]
    assert output[-1].startswith("models not served yet are served after ") and output[-1].endswith(
        " sync"
    )
    assert "not served yet: run" in user.says("show", "late.gguf")
    states = {m["name"]: m["state"] for m in msgspec.json.decode(user.says("list", "--json"))}
    assert sorted(states.values()) == ["not served yet", "unloaded", "unloaded"]
    started = user.says("start")  # Which syncs before.
    assert re.search("^added .*late", started, re.MULTILINE)
    assert "not served" not in user.says("list")
    user.custom.write_text("ttl: soon\n")
    user.says("stop")
    again = user.types("start")
    assert again.returncode == 0
    assert "custom_models.yaml:1: ttl: must be seconds" in again.stderr


def test_the_models_are_those_of_the_configuration_in_use(user: User) -> None:
    mine = user.home / "mine.yaml"
    own = {"cmd": f"${{worker}} --model {ROOT}/demo/bard.gguf --ctx-size 512", "need": "1 GiB"}
    mine.write_text(
        config(
            {
                "mine": own,
                "gone": {"cmd": "${worker} --model gone.gguf"},
                "theirs": {"cmd": "x --model org/name --port ${PORT}"},
            }
        )
    )
    user.says("start", "--config", str(mine))
    lines = user.says("list").splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["mine", "3", "MiB", "Q8_0", "512", "config.yaml"],
        ["theirs", "config.yaml"],
    ]
    assert lines[3:] == [
        f"✗ {user.home}/gone.gguf cannot be read: No such file or directory",
        "2 models",
    ]
    assert "there is no model bard; there are: mine, theirs" in user.fails("show", "bard")
    assert re.search("^architecture +llama$", user.says("show", "mine"), re.MULTILINE)
    user.says("load", "mine")
    assert re.search("^mine .* ready$", user.says("list"), re.MULTILINE)
    assert user.says("config", "path") == f"{mine}\n"
    assert user.says("config", "show") == mine.read_text()
    assert user.says("config", "check") == f"✓ {mine}: 3 models\n"
    assert f"✓ {mine} can be used" in user.types("doctor").stdout
    user.says("stop")
    assert "bard" in user.says("list")


def test_list_sees_what_changed(user: User) -> None:
    assert "2 models" in user.says("list")
    user.config.write_text(config({"one": {"cmd": "x --port ${PORT}"}}))
    assert user.says("list").splitlines()[-1] == "1 model"
    user.config.write_text("models: [")
    output = user.fails("list")
    assert "config.yaml:2: is not valid YAML" in output


def test_500_files_are_listed_in_half_a_second(user: User) -> None:
    small = write_gguf(user.home / "small.gguf")
    for i in range(498):
        folder = user.home / f"models/pub/model-{i}"
        folder.mkdir(parents=True)
        shutil.copy(small, folder / f"model-{i}-Q4_K_M.gguf")
    user.environ["MIN_MODEL_AGE_SECONDS"] = "0"
    assert user.says("list").splitlines()[-1] == "500 models"
    assert user.takes("list") < 0.5


def test_show_prints_all_data(served: User) -> None:
    output = served.says("show", "bard")
    for pattern in (
        r"^name +bard$",
        rf"^file +{re.escape(str(ROOT))}/demo/bard.gguf$",
        r"^architecture +llama$",
        r"^context +1,024$",
        r"^time to live +30 min$",
        r"^command .* -m workers.serve --model .*bard.gguf --ctx-size 1024",
    ):
        assert re.search(pattern, output, re.MULTILINE), pattern
    assert msgspec.json.decode(served.says("show", "Bard", "--json"))["name"] == "bard"
    assert served.fails("show", "brad") == "swapd: there is no model brad; did you mean bard?\n"
    assert "there are: alice, bard" in served.fails("show", "../../etc/passwd")


def test_load_list_unload(served: User) -> None:
    assert served.says("load", "alice") == "alice is ready\n"
    assert "alice" in served.says("ps")
    assert re.search(r"^alice .* ready$", served.says("list"), re.MULTILINE)
    stats = served.says("stats").splitlines()
    assert stats[1].split() == ["MODEL", "CTX", "SLOTS", "STATE"]
    row = next(line.split() for line in stats if line.startswith("alice"))
    assert row == ["alice", "1,024", "1", "ready"]
    assert any(line.startswith("TOTAL") for line in stats)
    assert re.search(r"^System Memory: [\d.]+% used \(.* / .*\)", stats[-1])
    output = msgspec.json.decode(served.says("stats", "--json"))
    assert output["memory"]["total"] > output["memory"]["used"] > 0
    with served.at_terminal("ps", "--watch") as watch:
        watch.expect("alice +ready")
        assert served.says("unload", "alice") == "unloaded alice\n"
        eventually(lambda: not re.search("^alice", served.says("ps"), re.MULTILINE))
        watch.sendintr()
        watch.wait()
        assert watch.exitstatus == 130
    assert served.says("unload", "alice") == "alice is not loaded\n"
    assert "there is no model 'alcie'" in served.fails("load", "alcie")
    assert "there is no model 'alcie'" in served.fails("unload", "alcie")
    assert "is no name of a model" in served.fails("unload", "", status=2)
    assert "is no name of a model" in served.fails("unload", " ", status=2)


def test_commands_that_need_swapd_report_that_it_does_not_run(user: User) -> None:
    for words in (("ps",), ("stats",), ("load", "bard"), ("unload",), ("bench", "bard")):
        assert user.fails(*words, status=3) == "swapd: swapd is not running\n"


def test_bench_measures(served: User) -> None:
    output = served.says("bench", "bard", "--requests", "2", "--tokens", "8")
    assert re.search(r"^bard: ready after \d+\.\d\d s$", output, re.MULTILINE)
    rows = [line.split() for line in output.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2", "median"]
    measured = msgspec.json.decode(served.says("bench", "bard", "--tokens", "8", "--json"))
    assert len(measured["requests"]) == 3
    assert all(0 < run["first_token_seconds"] < 10 for run in measured["requests"])
    assert all(1 <= run["tokens"] <= 8 for run in measured["requests"])


def test_logs_of_swapd_and_of_a_model(served: User) -> None:
    served.says("load", "bard")
    assert "bard: ready after" in served.says("logs")
    assert len(served.says("logs", "-n", "1").splitlines()) == 1
    assert "there is no model brad" in served.fails("logs", "brad")
    with served.at_terminal("logs", "--follow") as following:
        following.expect("swapd serves 2 models")
        served.says("unload", "bard")
        following.expect("bard: stopping pid")
        following.sendintr()


def test_a_list_for_programs_shows_no_secrets(user: User) -> None:
    user.config.parent.mkdir(parents=True)
    user.config.write_text("models: {a: {cmd: 'server --api-key s3cret --port ${PORT}'}}\n")
    output = user.says("list", "--json")
    assert "--api-key ***" in output
    assert "s3cret" not in output + user.says("show", "a", "--json")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no disk that is always full")
def test_output_that_cannot_be_written_is_one_sentence(served: User) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{ROOT}/model list >/dev/full"],
        env=served.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "swapd: standard output: No space left on device\n"
    assert done.returncode == 1


def test_an_early_end_of_the_reader_is_no_error(served: User) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{ROOT}/model list --json | true"],
        env=served.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_commands_and_names_also_behind_a_colon(user: User) -> None:
    user.environ["MIN_MODEL_AGE_SECONDS"] = "0"
    for quant in ("Q4_K_M", "Q8_0"):
        user.home.joinpath("models/pub/Eye").mkdir(parents=True, exist_ok=True)
        write_gguf(user.home / f"models/pub/Eye/Eye-{quant}.gguf", tokens=len(quant))
    # What is shown is for the shell that asks.
    asked = ["bash", "-c", f"{ROOT}/model --show-completion; :"]
    shown = subprocess.run(asked, env=user.environ, capture_output=True, text=True, check=True)
    (user.home / "rc").write_text(f"PS1='$ '\nbind 'set bell-style none'\n{shown.stdout}")
    shell = pexpect.spawn(
        "bash",
        ["--noprofile", "--rcfile", str(user.home / "rc"), "-i"],
        env={**user.environ, "TERM": "dumb", "PATH": f"{ROOT}:{user.environ['PATH']}"},
        encoding="utf-8",
        timeout=20,
        dimensions=(30, 200),
    )
    shell.delaybeforesend = None
    try:
        for typed, made in {
            "model sho": "model show ",
            "model show b": "model show bard ",
            "model show ls/e": "model show ls/eye:q",
            "model show ls/eye:": "model show ls/eye:q",
            "model show ls/eye:q4": "model show ls/eye:q4_k_m ",
            "model run eye:q8": "model run eye:q8_0 ",
        }.items():
            shell.expect_exact("$ ")
            shell.send(typed + "\t")
            shell.expect_exact(made)
            shell.send("\x15\r")  # The line is not meant.
    finally:
        shell.close(force=True)
