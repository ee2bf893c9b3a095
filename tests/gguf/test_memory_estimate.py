"""The estimate of a model's need: by metadata and command, and as real workers account for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from swapd.domain.models import ModelSpec
from swapd.gguf.llama_flags import LlamaFlags, parse_llama_flags
from swapd.gguf.memory_estimate import (
    OWN_BYTES,
    MemoryFactors,
    estimate,
    estimate_spec,
    kv_bytes,
    memory_factors,
)
from swapd.gguf.reader import GgufHeader, Value, read_header, read_model_header
from swapd.process.memory import bytes_held
from tests.gguf.gguf_files import write_gguf
from tests.library.stores import ALICE, BARD, LORA
from tests.specs import model_spec
from tests.workers.odd_gguf import write_recurrent_gguf, write_sliding_gguf
from tests.workers.process import WorkerProcess

MIB = 2**20


def head(architecture: str = "llama", **fields: Value) -> GgufHeader:
    """A head whose own fields are these; `__` stands for a dot. Eight layers, KV heads of 64."""
    shape: dict[str, Value] = {"block_count": 8, "embedding_length": 512, "attention.head_count": 8}
    own = {**shape, **{key.replace("__", "."): value for key, value in fields.items()}}
    named = {f"{architecture}.{key}": value for key, value in own.items()}
    return GgufHeader({"general.architecture": architecture, **named}, 0)


def spec(*argv: str) -> ModelSpec:
    return model_spec("m", ("worker", *argv))


def test_the_need_follows_the_formula(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", layers=3, kv_heads=2, tokens=100)
    facts = memory_factors(read_header(path), 1000)
    assert facts == MemoryFactors(1000, 1024, 100, width=64, heads=4, keys=96, values=96)
    compute = 512 * 6 * 64 * 4 + 512 * 256 * 2 + 2 * (1 + 8) * 100 * 4
    fixed = 1000 + OWN_BYTES + 100 * 160
    assert estimate(facts, LlamaFlags(10)) == fixed + 256 * 192 * 2 + compute
    uneven = write_gguf(tmp_path / "n.gguf", layers=3, kv_heads=[1, 0, 4])
    assert memory_factors(read_header(uneven), 0).keys == 5 * 16


@pytest.mark.parametrize(
    ("head", "far", "near", "window"),
    [
        (head(), 8, 0, 0),
        (head(attention__sliding_window=128), 8, 0, 128),
        (head("gemma3", attention__sliding_window=128), 1, 7, 128),
        (head("gemma2"), 4, 4, 4096),
        (head("gpt-oss", attention__sliding_window=128), 4, 4, 128),
        (head("smallthinker", attention__sliding_window=128), 2, 6, 128),
        (head("cohere2", attention__sliding_window=9,
              attention__sliding_window_pattern=2), 4, 4, 9),
        (head("new", attention__sliding_window=9,
              attention__sliding_window_pattern=(True, True, False, True)), 5, 3, 9),
        (head(attention__shared_kv_layers=3), 5, 0, 0),
        (head(attention__shared_kv_layers=300), 0, 0, 0),
        (head("qwen3next", full_attention_interval=4), 2, 0, 0),
        (head(block_count=0), 0, 0, 0),
    ],
)  # fmt: skip
def test_each_layer_has_the_cache_that_it_sees(
    head: GgufHeader, far: int, near: int, window: int
) -> None:
    facts = memory_factors(head, 0)
    assert (facts.keys, facts.near_keys, facts.window) == (far * 512, near * 512, window)
    assert (facts.values, facts.near_values) == (far * 512, near * 512)


def test_compressed_keys_hold_the_values_too() -> None:
    facts = memory_factors(
        head(
            "deepseek2",
            attention__head_count_kv=1,
            attention__key_length=576,
            attention__value_length=512,
            attention__key_length_mla=192,
        ),
        0,
    )
    assert (facts.keys, facts.values) == (8 * 576, 0)


@pytest.mark.parametrize(
    ("words", "terms"),
    [
        ("-m a.gguf", LlamaFlags(slots=4)),
        ("-c 512 -np 2 -ctk q8_0 --cache-type-v q4_0", LlamaFlags(512, 2, 34 / 32, 18 / 32)),
        ("-c 512 --ctx-size 1024 -np 1", LlamaFlags(1024)),
        ("--ctx-size=512 --parallel=1", LlamaFlags(512)),
        ("-np 1 -ub 1024 -fa off --swa-full",
         LlamaFlags(batch=1024, flash=False, whole_windows=True)),
        ("-np 1 --flash-attn on", LlamaFlags()),
        ("-np 1 --lora a.gguf,b.gguf --adapter x=c.gguf --lora-scaled d:0.5 --mmproj e -md f",
         LlamaFlags(besides=("a.gguf,b.gguf", "a.gguf", "b.gguf", "d", "c.gguf", "e"), draft="f")),
        ("-c much -np few -ctk odd", LlamaFlags(slots=4)),
    ],
)  # fmt: skip
def test_the_flags_that_count_are_heeded(words: str, terms: LlamaFlags) -> None:
    assert parse_llama_flags(tuple(words.split()), own=True) == terms


def test_the_beginning_of_a_file_tells_as_much_as_all_of_it(tmp_path: Path) -> None:
    odd = write_gguf(tmp_path / "late.gguf", kv_heads=[1, 2])
    for path in (BARD, ALICE, odd):
        assert memory_factors(read_model_header(path), 5) == memory_factors(read_header(path), 5)


def test_what_stands_beside_the_model_counts(tmp_path: Path) -> None:
    alone = estimate_spec(spec("-m", str(ALICE), "-c", "512"), tmp_path)
    adapted = estimate_spec(spec("-m", str(ALICE), "-c", "512", "--lora", str(LORA)), tmp_path)
    assert adapted - alone == LORA.stat().st_size
    odd = tmp_path / "a, b.gguf"
    odd.symlink_to(LORA)
    assert (
        estimate_spec(spec("-m", str(ALICE), "-c", "512", "--lora", str(odd)), tmp_path) == adapted
    )
    guessing = estimate_spec(spec("-m", str(BARD), "-c", "512", "-md", str(ALICE)), tmp_path)
    assert guessing > estimate_spec(spec("-m", str(BARD), "-c", "512"), tmp_path) + MIB


def test_a_file_that_tells_nothing_counts_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + b"\xff" * 996)
    assert estimate_spec(spec("-m", str(path)), tmp_path) == 1000
    assert estimate_spec(spec("-m", "m.gguf"), tmp_path) == 1000
    assert estimate_spec(spec("-m", "none.gguf"), tmp_path) == 0
    bare = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    bare.write_header_to_file()
    bare.write_kv_data_to_file()
    bare.write_tensors_to_file()
    bare.close()
    bare_path = tmp_path / "bare.gguf"
    assert estimate_spec(spec("-m", "bare.gguf"), tmp_path) == bare_path.stat().st_size


def llama_says(model: Path, *flags: str) -> float:
    """MiB of KV cache and of recurrent state, as llama.cpp accounts for them."""
    worker = WorkerProcess(model, *flags, "--verbose")
    worker.process.terminate()
    _, told = worker.close()
    return sum(float(size) for size in re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", told))


@pytest.mark.parametrize(
    ("write", "flags"),
    [
        (lambda _: BARD, ("-c", "8192", "-np", "4")),
        (lambda _: BARD, ("-c", "1024", "-ctk", "q8_0", "-ctv", "q4_0", "-fa", "on")),
        (lambda _: ALICE, ()),
        (lambda folder: write_sliding_gguf(folder / "s.gguf", 64, 7), ("-c", "4096", "-np", "3")),
        (lambda folder: write_recurrent_gguf(folder / "r.gguf"), ("-c", "512", "-np", "2")),
    ],
)
def test_the_cache_is_what_llama_cpp_makes_it(
    write: Callable[[Path], Path], flags: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path)
    facts, terms = memory_factors(read_model_header(path), 0), parse_llama_flags(flags, own=True)
    estimate_spec = kv_bytes(facts, terms) + facts.state * terms.slots
    assert estimate_spec / MIB == pytest.approx(llama_says(path, *flags), abs=0.02)


def test_the_estimate_is_near_what_a_worker_holds() -> None:
    flags = ("-c", "32768", "-np", "1")
    worker = WorkerProcess(BARD, *flags)
    worker.text(prompt="Who goes there? " * 40, max_tokens=8)
    held = bytes_held(worker.process.pid)
    worker.kill()
    need = estimate_spec(spec("-m", str(BARD), *flags), BARD.parent)
    # Of the libraries' pages, a worker beside others is held to have its share only.
    assert 0.95 * held < need < 1.25 * held
