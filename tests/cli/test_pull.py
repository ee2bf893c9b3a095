"""Pull models from a local hub, from a URL and from Ollama's stand-in; remove them."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.hub import Hub, parts, running_hub
from tests.cli.user import User
from tests.daemon import ROOT, eventually
from tests.gguf.gguf_files import write_gguf

pytestmark = pytest.mark.filterwarnings("ignore:.*forkpty:DeprecationWarning")
BARD = (ROOT / "demo/bard.gguf").read_bytes()
ALICE = (ROOT / "demo/alice.gguf").read_bytes()


@pytest.fixture
def hub(user: User) -> Iterator[Hub]:
    with running_hub() as hub:
        user.environ["HF_ENDPOINT"] = hub.url
        user.environ["NO_PROXY"] = "127.0.0.1"
        yield hub


def _place(user: User, *steps: str) -> Path:
    return user.home.joinpath("models", *steps)


def test_a_model_of_the_hub_is_pulled_served_and_removed(user: User, hub: Hub) -> None:
    hub.add("pub/Tiny-GGUF", "Tiny-Q8_0.gguf", BARD)
    hub.add("pub/Tiny-GGUF", "README.md", b"# Tiny")
    user.says("start")
    output = user.says("pull", "hf:pub/Tiny-GGUF")
    file = _place(user, "pub", "Tiny-GGUF", "Tiny-Q8_0.gguf")
    assert file.read_bytes() == BARD
    assert parts(file) == []
    assert f"fetched  {file}" in output
    name = output.splitlines()[-1].split()[-1]
    assert user.says("list", "tiny").splitlines()[-1] == "1 of 3 models match 'tiny'"
    eventually(lambda: name in user.says("status"))  # It hears of the change by itself.
    assert user.says("run", name, "Who goes there?", "--max-tokens", "4").strip()
    assert "there already" in user.says("pull", "hf:pub/Tiny-GGUF")
    assert len(hub.ranges) == 1
    assert user.fails("rm", name) == "swapd: nothing was removed; --yes skips the question\n"
    assert file.exists()
    with user.at_terminal("rm", name) as asked:
        asked.expect(r"remove ls/.*\? \[y/N\] ")
        asked.sendline("y")
        asked.expect("removed ls/")
        asked.wait()
    assert not file.exists()
    assert not file.parent.parent.exists()
    assert _place(user).is_dir()
    eventually(lambda: name not in user.says("status"))


def test_several_quantisations_are_listed_and_one_is_chosen(user: User, hub: Hub) -> None:
    hub.add("pub/Many", "many-Q8_0.gguf", BARD)
    hub.add("pub/Many", "many-Q4_K_M.gguf", ALICE)
    hub.add("pub/Many", "many.imatrix.gguf", b"GGUF")
    output = user.fails("pull", "hf:pub/Many")
    assert "pub/Many has several; choose one, such as hf:pub/Many:Q4_K_M" in output
    assert [line.split()[1] for line in output.splitlines()[2:]] == ["Q4_K_M", "Q8_0"]
    assert "did you mean Q4_K_M?" in user.fails("pull", "hf:pub/Many:q4_k_s")
    assert list(_place(user).iterdir()) == []
    user.says("pull", "hf:pub/Many:q8_0")
    assert _place(user, "pub", "Many", "many-Q8_0.gguf").read_bytes() == BARD
    assert not _place(user, "pub", "Many", "many-Q4_K_M.gguf").exists()
    with user.at_terminal("pull", "hf:pub/Many") as asked:
        asked.expect(r"Which one\? \[Q4_K_M\] ")
        asked.sendline("")
        asked.expect("fetched")
        asked.wait()
    assert _place(user, "pub", "Many", "many-Q4_K_M.gguf").read_bytes() == ALICE


def test_a_projector_comes_with_its_model(user: User, hub: Hub) -> None:
    clip = write_gguf(user.home / "clip.gguf", arch="clip", tokenizer=False).read_bytes()
    hub.add("pub/Eyes", "eye-Q8_0.gguf", BARD)
    hub.add("pub/Eyes", "ear-Q8_0.gguf", ALICE)
    for name in ("mmproj-eye-f32", "mmproj-eye-f16", "mmproj-ear-f16"):
        hub.add("pub/Eyes", f"{name}.gguf", clip + name.encode())
    output = user.says("pull", "hf:pub/Eyes:eye-Q8_0")
    assert "with    mmproj-eye-f16.gguf, the projector that belongs to it (" in output
    names = sorted(p.name for p in _place(user, "pub", "Eyes").iterdir())
    assert names == ["eye-Q8_0.gguf", "mmproj-eye-f16.gguf"]
    name = output.splitlines()[-1].split()[-1]
    assert re.search(r"^projector .*/mmproj-eye-f16.gguf$", user.says("show", name), re.MULTILINE)
    user.says("rm", name, "--yes")
    assert list(_place(user).iterdir()) == []


def test_a_broken_connection_is_resumed(user: User, hub: Hub) -> None:
    hub.add("pub/Tiny", "Tiny-Q8_0.gguf", BARD)
    hub.break_at = [1000, 0, 500_000]
    user.says("pull", "hf:pub/Tiny")
    assert hub.ranges == ["", "bytes=1000-", "bytes=1000-", "bytes=501000-"]
    assert _place(user, "pub", "Tiny", "Tiny-Q8_0.gguf").read_bytes() == BARD


def test_a_failed_download_is_resumed_by_the_next_command(user: User, hub: Hub) -> None:
    hub.add("pub/Tiny", "Tiny-Q8_0.gguf", BARD)
    hub.break_at = [700_000, 0, 0, 0]
    output = user.fails("pull", "hf:pub/Tiny")
    assert "broke off: the connection ended at 700,000 of" in output
    assert "the same command resumes from there" in output
    file = _place(user, "pub", "Tiny", "Tiny-Q8_0.gguf")
    assert parts(file)[0].read_bytes() == BARD[:700_000]
    assert "2 models" in user.says("list")
    hub.ranges.clear()
    user.says("pull", "hf:pub/Tiny")
    assert hub.ranges == ["bytes=700000-"]
    assert file.read_bytes() == BARD
    assert parts(file) == []


def test_an_unexpected_file_is_deleted(user: User, hub: Hub) -> None:
    hub.add("pub/Tiny", "Tiny-Q8_0.gguf", BARD)
    hub.sums["Tiny-Q8_0.gguf"] = "0" * 64
    found = hashlib.sha256(BARD).hexdigest()
    output = user.fails("pull", "hf:pub/Tiny")
    assert f"has the SHA-256 sum {found} instead of {'0' * 64}; it was deleted" in output
    hub.add("pub/Page", "page-Q8_0.gguf", b"<html>")
    assert "is not a GGUF file; it was deleted" in user.fails("pull", "hf:pub/Page")
    assert [p for p in _place(user).rglob("*") if p.is_file()] == []


def test_a_download_that_does_not_fit_is_confirmed_first(user: User, hub: Hub) -> None:
    hub.add("pub/Huge", "Huge-Q8_0.gguf", BARD)
    hub.claims["Huge-Q8_0.gguf"] = 2**60
    output = user.fails("pull", "hf:pub/Huge")
    assert "the download needs " in output
    assert "free some space, or use --yes" in output
    with user.at_terminal("pull", "hf:pub/Huge") as asked:
        asked.expect(r"begin all the same\? \[y/N\] ")
        asked.sendline("n")
        asked.wait()
        assert asked.exitstatus == 1
    assert hub.ranges == []
    assert "bytes instead of" in user.fails("pull", "hf:pub/Huge", "--yes")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_fills_up_is_reported(user: User, hub: Hub) -> None:
    hub.add("pub/Tiny", "Tiny-Q8_0.gguf", BARD)
    part = _place(user, "pub", "Tiny", "Tiny-Q8_0.gguf.part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    output = user.fails("pull", "hf:pub/Tiny")
    assert f"the disk is full: {part} has nothing; free some space and repeat the command" in output
    part.unlink()
    user.says("pull", "hf:pub/Tiny")


def test_parts_come_together(user: User, hub: Hub) -> None:
    for number, content in ((1, BARD), (2, ALICE)):
        hub.add("pub/Split", f"Q8_0/split-Q8_0-0000{number}-of-00002.gguf", content)
    user.says("pull", "hf:pub/Split")
    names = sorted(p.name for p in _place(user, "pub", "Split").iterdir())
    assert names == ["split-Q8_0-00001-of-00002.gguf", "split-Q8_0-00002-of-00002.gguf"]


def test_a_url_is_pulled_with_and_without_a_sum(user: User, hub: Hub) -> None:
    hub.add("some/where", "deep/Tiny.gguf", BARD)
    url = f"{hub.url}/some/where/resolve/main/deep/Tiny.gguf"
    found = hashlib.sha256(BARD).hexdigest()
    assert "64 hexadecimal digits" in user.fails("pull", url, "--sha256", "12", status=2)
    assert "instead of" in user.fails("pull", url, "--sha256", "1" * 64)
    hub.break_at = [900]
    user.says("pull", url, "--sha256", found.upper())
    assert _place(user, "some", "where", "Tiny.gguf").read_bytes() == BARD
    assert hub.ranges[-1] == "bytes=900-"


def test_a_part_of_another_version_is_not_resumed(user: User, hub: Hub) -> None:
    """By the ETag; and where there is none, never."""
    url = f"{hub.url}/some/where/resolve/main/Tiny.gguf"
    file = _place(user, "some", "where", "Tiny.gguf")
    hub.add("some/where", "Tiny.gguf", BARD)
    hub.break_at = [900, 0, 0, 0]
    assert "broke off" in user.fails("pull", url)
    hub.add("some/where", "Tiny.gguf", ALICE)
    user.says("pull", url)
    assert file.read_bytes() == ALICE
    file.unlink()
    hub.etags = False
    hub.break_at = [900, 0, 0, 0]
    hub.ranges.clear()
    assert "broke off" in user.fails("pull", url)
    user.says("pull", url)
    assert set(hub.ranges) == {""}
    assert file.read_bytes() == ALICE


def test_one_file_is_fetched_by_one_command_at_a_time(user: User, hub: Hub) -> None:
    url = f"{hub.url}/some/where/resolve/main/Tiny.gguf"
    file = _place(user, "some", "where", "Tiny.gguf")
    hub.add("some/where", "Tiny.gguf", BARD)
    hold = threading.Event()
    hub.holds = [hold]
    with ThreadPoolExecutor(1) as beside:
        first = beside.submit(user.types, "pull", url)
        try:
            assert eventually(lambda: bool(parts(file)) and bool(hub.ranges))
            output = user.fails("pull", url)
        finally:
            hold.set()
        assert output == f"swapd: {file} is already being downloaded\n"
        assert first.result().returncode == 0, first.result().stderr
    assert file.read_bytes() == BARD
    assert parts(file) == []


def test_an_incomplete_mirror_is_reported(user: User, hub: Hub) -> None:
    hub.add("pub/Tiny", "Tiny-Q8_0.gguf", BARD)
    hub.pointers = False
    output = user.fails("pull", "hf:pub/Tiny")
    assert f"{hub.url} does not describe pub/Tiny as the hub does: 'pointerSize'" in output


def test_invalid_sources_are_reported(user: User, hub: Hub) -> None:
    for name, says in [
        ("hf:nothing/here", "there is no model nothing/here"),
        ("hf:../../etc", "is no model of the hub"),
        ("http://127.0.0.1:1/x.gguf", "broke off: "),
        ("http://127.0.0.1:1/x.zip", "must end in .gguf"),
        ("http://127.0.0.1:1/%2e%2e%2f.gguf", "must end in .gguf"),
        ("gemma3:27b", "there is no ollama command here; install it, or give hf:owner/repo"),
    ]:
        assert says in user.fails("pull", name)
        assert [p for p in _place(user).rglob("*") if p.is_file()] == [], name


def test_a_model_without_its_own_file_is_not_removed(user: User) -> None:
    assert "comes with swapd" in user.fails("rm", "bard", "--yes")
    assert "there is no model brad; did you mean bard?" in user.fails("rm", "brad", "--yes")
    assert "there is no model" in user.fails("rm", "../../etc/passwd", "--yes")
    assert (ROOT / "demo/bard.gguf").read_bytes() == BARD


def test_a_file_that_another_model_uses_stays(user: User) -> None:
    folder = _place(user, "pub", "tiny")
    folder.mkdir(parents=True)
    (folder / "tiny-Q8_0.gguf").write_bytes(BARD)
    (folder / "notes.txt").write_text("mine")
    user.environ["MIN_MODEL_AGE_SECONDS"] = "0"
    user.says("sync")
    user.custom.write_text("models:\n  other:\n    base_model: tiny:q8_0\n")
    output = user.fails("rm", "tiny:q8_0", "--yes")
    assert "ls/other would be without a file: remove it from custom_models.yaml first" in output
    assert "is no file of its own" in user.fails("rm", "other", "--yes")
    user.custom.unlink()
    user.says("rm", "tiny:q8_0", "--yes")
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_the_hubs_cache_keeps_blobs_of_other_revisions(user: User) -> None:
    repo = user.home / "user/.cache/huggingface/hub/models--pub--Tiny"
    for name, content in (("aaa", BARD), ("bbb", ALICE)):
        (repo / "blobs").mkdir(parents=True, exist_ok=True)
        (repo / "blobs" / name).write_bytes(content)
    for commit, files in (("1", ("Tiny-Q8_0", "Tiny-Q4_0")), ("2", ("Tiny-Q8_0",))):
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        for file, blob in zip(files, ("aaa", "bbb"), strict=False):
            (folder / f"{file}.gguf").symlink_to(f"../../blobs/{blob}")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("1")
    user.environ["MIN_MODEL_AGE_SECONDS"] = "0"
    q8, q4 = (
        line.split()[0] for line in sorted(user.says("list", "tiny").splitlines()[1:-1])[::-1]
    )
    assert "q8_0" in q8
    user.says("rm", q4, "--yes")
    assert sorted(p.name for p in (repo / "blobs").iterdir()) == ["aaa"]
    user.says("rm", q8, "--yes")
    assert (repo / "blobs/aaa").read_bytes() == BARD
    (left,) = (line.split()[0] for line in user.says("list", "tiny").splitlines()[1:-1])
    user.says("rm", left, "--yes")
    assert not repo.exists()


def test_ollamas_models_are_pulled_and_removed_through_ollama(user: User) -> None:
    """Its stand-in records the calls; the store has Ollama's layout."""
    calls = user.home / "calls"
    (user.home / "bin").mkdir()
    ollama = user.home / "bin/ollama"
    ollama.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$2" != bad ]\n')
    ollama.chmod(0o755)
    user.environ["PATH"] = f"{user.home}/bin:{user.environ['PATH']}"
    store = user.home / "user/.ollama/models"
    (store / "blobs").mkdir(parents=True)
    digest = hashlib.sha256(BARD).hexdigest()
    (store / f"blobs/sha256-{digest}").write_bytes(BARD)
    layer = f'{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{digest}"}}'
    tags = store / "manifests/registry.ollama.ai/library/tiny"
    tags.mkdir(parents=True)
    (tags / "7b").write_text(f'{{"layers": [{layer}]}}')
    user.says("pull", "tiny:7b")
    assert "ollama pull bad failed" in user.fails("pull", "bad")
    assert "ollama" in user.says("list", "tiny")
    user.says("rm", "tiny:7b", "--yes")
    assert calls.read_text().splitlines() == ["pull tiny:7b", "pull bad", "rm tiny:7b"]
    assert (store / f"blobs/sha256-{digest}").exists()
