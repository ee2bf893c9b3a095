"""Model names in requests: spellings, paths and adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.daemon import ROOT, Swapd, answer_text, config, error_of
from tests.fixtures import demo, fake


@pytest.mark.parametrize("name", ["bard", "BARD", "ls/bard", "bard.gguf", "bard:latest"])
def test_a_model_is_found_by_its_usual_spellings(both: Swapd, name: str) -> None:
    assert answer_text(both.ask(name)) == answer_text(both.ask("bard"))


def test_an_ambiguous_name_is_rejected(home: Path) -> None:
    models = {"gemma3:1b": fake("small"), "gemma3:4b": fake("large")}
    with Swapd(home, config(models)) as swapd:
        refused = swapd.ask("gemma3")
        assert refused.status_code == 404
        message = error_of(refused)["message"]
        assert message == "gemma3 could mean any of gemma3:1b, gemma3:4b; say which"
        assert answer_text(swapd.ask("gemma3-4B")).startswith("large")


def test_names_with_slashes_and_colons_work_in_paths(home: Path) -> None:
    with Swapd(home, config({"ls/gemma3:1b": fake("g")})) as swapd:
        assert swapd.http.get("/upstream/ls/gemma3:1b/health").json()["name"] == "g"
        assert swapd.http.get("/upstream/ls/gemma3%3A1b/health").json()["name"] == "g"
        assert swapd.http.get("/v1/models/ls/gemma3:1b").json()["id"] == "ls/gemma3:1b"


def test_an_adapter_is_selected_after_a_colon(home: Path) -> None:
    entry = demo(
        "bard", f"--adapter alice={ROOT}/demo/alice-lora.gguf", metadata={"adapters": ["alice"]}
    )
    with Swapd(home, config({"bard": entry})) as swapd:
        base, other = (
            answer_text(swapd.ask("bard", max_tokens=24)),
            answer_text(swapd.ask("bard:alice", max_tokens=24)),
        )
        assert base != other
        assert answer_text(swapd.ask("bard", max_tokens=24)) == base
        listed = {m["id"]: m for m in swapd.http.get("/v1/models").json()["data"]}
        assert listed["bard:alice"]["parent"] == "bard"
        for name in ("ls/bard:alice", "BARD:alice", "bard:ALICE", "bard:latest:alice"):
            assert answer_text(swapd.ask(name, max_tokens=24)) == other, name
        misspelt = error_of(swapd.ask("bard:alce"))["message"]
        assert misspelt.startswith("there is no model 'bard:alce' (did you mean 'bard:alice'?)")
        assert swapd.ask("bard:carol").status_code == 404
        assert len(swapd.running()) == 1
