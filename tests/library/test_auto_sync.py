"""A running swapd follows changes of model files and custom_models.yaml."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ROOT, Swapd, answer_text, eventually


@pytest.fixture
def synced(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Swapd]:
    """A home with a generated configuration and a models folder that is empty as yet."""
    models = home / "models"
    models.mkdir()
    user = home / "user"
    user.mkdir()
    for name, value in {
        "HOME": user,
        "MODELS_DIR": models,
        "OLLAMA_MODELS": home / "none",
        "HF_HUB_CACHE": home / "none",
        "MIN_MODEL_AGE_SECONDS": "0.2",
        "SWAPD_HOME": home,
    }.items():
        monkeypatch.setenv(name, str(value))
    subprocess.run([sys.executable, "-m", "swapd", "sync"], check=True, capture_output=True)
    with Swapd(home, (home / "config.yaml").read_text()) as swapd:
        yield swapd


def _names(swapd: Swapd) -> set[str]:
    return {m["id"] for m in swapd.http.get("/v1/models").json()["data"]}


def test_a_file_put_into_the_models_folder_is_served(synced: Swapd, home: Path) -> None:
    assert _names(synced) == {"alice", "bard"}
    assert answer_text(synced.ask("bard"))
    pid = synced.worker("bard")["pid"]
    folder = home / "models/poet"
    folder.mkdir()
    shutil.copy(ROOT / "demo/bard.gguf", folder / "poet-q8.gguf")
    eventually(lambda: len(_names(synced)) == 3, within=20)
    (new,) = _names(synced) - {"alice", "bard"}
    assert new.startswith("ls/poet")
    assert answer_text(synced.ask(new))
    assert synced.worker("bard")["pid"] == pid
    log = synced.log()
    assert f"sync: added   {new}" in log


def test_custom_models_are_applied_and_a_broken_file_changes_nothing(
    synced: Swapd, home: Path
) -> None:
    assert answer_text(synced.ask("bard"))
    pid = synced.worker("bard")["pid"]
    (home / "custom_models.yaml").write_text("models:\n  bard:\n    ttl: 77\n")
    eventually(lambda: synced.worker("bard")["ttl"] == 77, within=20)
    assert synced.worker("bard")["pid"] == pid
    (home / "custom_models.yaml").write_text("models:\n  bard:\n    tll: 77\n")
    eventually(lambda: "custom_models.yaml:3: models.bard.tll: unknown key" in synced.log(), 20)
    assert synced.worker("bard")["ttl"] == 77


def test_a_conversation_outlives_the_swap_of_its_model(synced: Swapd, home: Path) -> None:
    (home / "custom_models.yaml").write_text("max_resident: 1\n")
    eventually(lambda: "configuration reloaded" in synced.log(), within=20)
    story = [{"role": "user", "content": "Tell of the king who lost his crown at sea. " * 6}]
    output: dict[str, list[dict[str, Any]]] = {}
    for model in ("bard", "alice", "bard"):
        answer = synced.ask(model, messages=story).json()
        assert [worker["model"] for worker in synced.running()] == [model]
        output.setdefault(model, []).append(answer)
    first, again = output["bard"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    reused = again["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reused == first["usage"]["prompt_tokens"] - 1
    stored = [path for path in (home / ".swapd/kv").iterdir() if path.is_dir()]
    assert {path.stat().st_mode & 0o077 for path in stored} == {0}


def test_a_handwritten_configuration_is_left_alone(home: Path) -> None:
    config = "models: {}\n"
    with Swapd(home, config) as swapd:
        (home / "custom_models.yaml").write_text("max_resident: 1\nmodels: {}\n")
        os.kill(swapd.process.pid, 1)
        eventually(lambda: "configuration reloaded" in swapd.log())
        assert (home / "config.yaml").read_text() == config
