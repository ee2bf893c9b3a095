"""The persistent KV cache: restored prefixes, and damaged files that are never used."""

from __future__ import annotations

import json
import random
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from tests.workers.conftest import Start
from tests.workers.engine.test_prefix_reuse import BODY, SPEECH, cached, text_of
from tests.workers.odd_gguf import write_recurrent_gguf, write_sliding_gguf
from tests.workers.process import WorkerProcess
from tests.workers.random_gguf import write_random_gguf

FLAGS = ("--parallel", "2", "--ctx-size", "2048", "--flash-attn", "off")
SAY: dict[str, Any] = {**BODY, "prompt": SPEECH * 3}


def stop(worker: WorkerProcess) -> str:
    """End a worker as swapd does; return its standard error."""
    worker.process.send_signal(signal.SIGTERM)
    status, errors = worker.close()
    assert status == 0
    return errors


def test_a_conversation_survives_a_swap(start: Start, bard_gguf: Path, tmp_path: Path) -> None:
    flags = (*FLAGS, "--slot-save-path", str(tmp_path))
    first = start(bard_gguf, *flags)
    before = first.post("/v1/completions", SAY)
    again = first.post("/v1/completions", SAY)
    stop(first)
    second = start(bard_gguf, *flags)
    after = second.post("/v1/completions", SAY)
    assert cached(after) == before["usage"]["prompt_tokens"] - 1
    assert text_of(after) == text_of(again) == text_of(before)
    assert second.metric("kv_restore_seconds_count") == 1
    stop(second)
    assert len([*tmp_path.glob("*/*.json")]) == 1, "it was on disk already"
    third = start(bard_gguf, *flags)
    longer = {**SAY, "prompt": SPEECH * 3 + text_of(before) + " and then"}
    assert cached(third.post("/v1/completions", longer)) >= before["usage"]["prompt_tokens"]
    stop(third)
    assert len([*tmp_path.glob("*/*.json")]) == 1, "the longer one has taken its place"


@pytest.mark.parametrize(
    "arithmetic", [("-t", "2", "-fa", "off"), ("-t", "1", "-fa", "on")], ids=" ".join
)
def test_greedy_answers_after_a_restore_are_the_same(
    start: Start, tmp_path: Path, arithmetic: tuple[str, ...]
) -> None:
    """To the last bit of a logit, where llama.cpp does not divide the cells of a row among
    threads. With random weights, which would show any difference."""
    model = write_random_gguf(tmp_path / "m.gguf", width=128, context=4096)
    flags = ("-np", "2", "-c", "4096", *arithmetic)
    saving = (*flags, "--slot-save-path", str(tmp_path / "kv"))
    prompt = [(7 * k * k) % 250 for k in range(1500)]
    body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, "logprobs": 1}
    control, first = start(model, *flags), start(model, *saving)
    for worker in (control, first):
        worker.post("/v1/completions", {**body, "max_tokens": 1})
    stop(first)
    second = start(model, *saving)
    unswapped, swapped = (
        worker.post("/v1/completions", {**body, "max_tokens": 200}) for worker in (control, second)
    )
    assert cached(swapped) == cached(unswapped) == 1499
    assert second.metric("kv_tokens_restored_total") > 0
    assert swapped["choices"] == unswapped["choices"]


@pytest.mark.parametrize(
    "other", [("--ctx-size", "1024"), ("--cache-type-k", "q8_0"), ("--flash-attn", "on")], ids=str
)
def test_other_settings_do_not_use_it(
    start: Start, bard_gguf: Path, tmp_path: Path, other: tuple[str, str]
) -> None:
    flags = (*FLAGS, "--slot-save-path", str(tmp_path))
    worker = start(bard_gguf, *flags)
    worker.post("/v1/completions", SAY)
    stop(worker)
    assert cached(start(bard_gguf, *flags, *other).post("/v1/completions", SAY)) == 0
    assert cached(start(bard_gguf, *flags).post("/v1/completions", SAY)) > 0


def test_damaged_files_are_removed_and_cost_only_the_prefill(
    start: Start, bard_gguf: Path, tmp_path: Path
) -> None:
    flags = (*FLAGS, "--slot-save-path", str(tmp_path))
    worker = start(bard_gguf, *flags)
    whole = worker.post("/v1/completions", SAY)
    stop(worker)
    (manifest,) = tmp_path.glob("*/*.json")
    data = manifest.with_suffix("")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    worker = start(bard_gguf, *flags)
    answer = worker.post("/v1/completions", {**SAY, "max_tokens": 3})
    assert cached(answer) == 0
    assert text_of(whole).startswith(text_of(answer))
    assert not data.exists()
    assert stop(worker).count("its checksum is wrong") == 1
    assert len([*tmp_path.glob("*/*.json")]) == 1, "and it is written again"


@pytest.mark.parametrize(("share", "attention"), [(0.1, "on"), (0.9, "on"), (0.9, "off")])
def test_a_restore_that_fails_half_way_leaves_nothing_behind(
    start: Start, bard_gguf: Path, tmp_path: Path, share: float, attention: str
) -> None:
    """With a file that agrees with its manifest, and that is too short for llama.cpp."""
    flags = ("-np", "1", "-c", "512", "-fa", attention, "--slot-save-path", str(tmp_path))
    worker = start(bard_gguf, *flags)
    whole = worker.post("/v1/completions", SAY)
    stop(worker)
    (manifest,) = tmp_path.glob("*/*.json")
    data = manifest.with_suffix("")
    content = data.read_bytes()[: int(share * data.stat().st_size)]
    data.write_bytes(content)
    edited = {**json.loads(manifest.read_bytes()), "size": len(content), "crc32": crc32(content)}
    manifest.write_bytes(json.dumps(edited).encode())
    worker = start(bard_gguf, *flags)
    answer = worker.post("/v1/completions", SAY)
    assert (cached(answer), text_of(answer)) == (0, text_of(whole))
    assert not [one for one in tmp_path.glob("*/*.json") if one == manifest]
    full = {"prompt": [300] * 400, "max_tokens": 111, "ignore_eos": True}
    usage = worker.post("/v1/completions", full)["usage"]
    assert usage["completion_tokens"] == 111, "no cell is lost"
    assert stop(worker).count("llama.cpp does not restore it") == 1


def written(folder: Path) -> tuple[int, int, int]:
    """Return the bytes of data, the number of renamed files, and that of manifests."""
    size = named = manifests = 0
    for path in folder.glob("*/*"):
        if path.name.endswith(".json"):
            manifests += 1
            continue
        named += not path.name.endswith(".part")
        with suppress(FileNotFoundError):
            size += path.stat().st_size
    return size, named, manifests


def test_killing_it_while_it_saves_leaves_a_start_that_works(
    start: Start, tiny_gguf: Path, tmp_path: Path
) -> None:
    """Killed at the first byte, at any later one, between data and manifest, and after it; each
    time the next worker starts, gives the same answers, and is killed in its turn."""
    flags = ("-np", "2", "-c", "8192", "-fa", "off", "--slot-save-path", str(tmp_path))
    dice = random.Random(5)
    first_answers: dict[int, str] = {}

    def ask(worker: WorkerProcess, number: int) -> str:
        prompt = [number, *[(number * k) % 250 for k in range(2500)]]
        body = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        return text_of(worker.post("/v1/completions", body))

    for number in range(1, 9):
        worker = start(tiny_gguf, *flags)
        if first_answers:
            earlier = dice.choice([*first_answers])
            assert ask(worker, earlier) == first_answers[earlier]
        first_answers[number] = ask(worker, number)
        size, named, manifests = written(tmp_path)
        enough = dice.randrange(1, 1_300_000)
        worker.process.send_signal(signal.SIGTERM)
        while worker.process.poll() is None:
            now = written(tmp_path)
            if (
                (number < 6 and now[0] >= size + enough)
                or (number == 6 and now[1] > named)
                or (number > 6 and now[2] > manifests)
            ):
                break
        worker.process.kill()
        worker.process.wait()
    last = start(tiny_gguf, *flags)
    for number, expected in first_answers.items():
        assert ask(last, number) == expected
    assert last.metric("kv_restore_seconds_count") > 0, "complete files are not lost"
    assert "Traceback" not in stop(last)


def test_memory_that_cannot_be_truncated_is_saved_whole(start: Start, tmp_path: Path) -> None:
    for write in (write_recurrent_gguf, write_sliding_gguf):
        model = write(tmp_path / f"{write.__name__}.gguf")
        flags = ("-np", "2", "-c", "1024", "-fa", "off", "--slot-save-path", str(tmp_path / "kv"))
        body: dict[str, Any] = {"prompt": [*range(32, 190)], "max_tokens": 8, "temperature": 0}
        worker = start(model, *flags)
        worker.post("/v1/completions", {**body, "logit_bias": {"65": 1000}})
        longer = {**body, "prompt": [*body["prompt"], *[65] * 8, 66]}
        expected = text_of(worker.post("/v1/completions", {**longer, "cache_prompt": False}))
        stop(worker)
        worker = start(model, *flags)
        assert cached(worker.post("/v1/completions", body)) == 0
        continued = worker.post("/v1/completions", longer)
        assert (cached(continued), text_of(continued)) == (158 + 7, expected)
        stop(worker)


def test_slots_are_saved_restored_and_erased_by_name(
    start: Start, bard_gguf: Path, tmp_path: Path
) -> None:
    worker = start(bard_gguf, *FLAGS, "--slot-save-path", str(tmp_path))
    first = worker.post("/v1/completions", SAY)
    count = first["usage"]["prompt_tokens"] + 7
    saved = worker.post("/slots/0?action=save", {"filename": "mine.bin"})
    assert (saved["id_slot"], saved["filename"], saved["n_saved"]) == (0, "mine.bin", count)
    assert saved["n_written"] == (tmp_path / "mine.bin").stat().st_size
    assert saved["timings"]["save_ms"] > 0
    assert worker.post("/slots/0?action=erase", {}) == {"id_slot": 0, "n_erased": count}
    assert cached(worker.post("/v1/completions", {**SAY, "cache_prompt": False})) == 0
    restored = worker.post("/slots/1?action=restore", {"filename": "mine.bin"})
    assert (restored["n_restored"], restored["n_read"]) == (count, saved["n_written"])
    again = worker.post("/v1/completions", SAY)
    assert cached(again) == first["usage"]["prompt_tokens"] - 1
    assert text_of(again) == text_of(first)


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/slots/9?action=save", {"filename": "x"}, "no slot 9"),
        ("/slots/x?action=save", {"filename": "x"}, "no slot x"),
        ("/slots/" + "9" * 5000 + "?action=save", {"filename": "x"}, "no slot 9"),
        ("/slots/0?action=eat", {"filename": "x"}, "save, restore or erase"),
        ("/slots/0", {"filename": "x"}, "save, restore or erase"),
        ("/slots/0?action=save", {}, "missing required field `filename`"),
        ("/slots/0?action=save", {"filename": "../x"}, "plain name"),
        ("/slots/0?action=save", {"filename": "/etc/x"}, "plain name"),
        ("/slots/0?action=restore", {"filename": ".."}, "plain name"),
        ("/slots/0?action=restore", {"filename": "a\\b"}, "plain name"),
        ("/slots/0?action=restore", {"filename": ""}, "plain name"),
        ("/slots/0?action=restore", {"filename": "x.json"}, "plain name"),
        ("/slots/0?action=restore", {"filename": "none"}, "no readable manifest"),
        ("/slots/0?action=save", {"filename": "x"}, "has no cached sequence"),
    ],
)
def test_bad_slot_actions_get_400(
    slot_worker: WorkerProcess, path: str, body: object, sentence: str
) -> None:
    status, answer = slot_worker.ask(path, body)
    assert status == 400, answer
    assert sentence in answer["error"]["message"]


@pytest.fixture(scope="module")
def slot_worker(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A worker with a folder for its slots, and empty slots."""
    worker = WorkerProcess(tiny_gguf, "--slot-save-path", str(tmp_path_factory.mktemp("kv")))
    yield worker
    worker.kill()


def test_without_a_folder_slots_are_not_saved(tiny: WorkerProcess) -> None:
    status, answer = tiny.ask("/slots/0?action=save", {"filename": "x"})
    assert (status, answer["error"]["type"]) == (501, "not_supported_error")
