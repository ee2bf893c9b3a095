"""Memory estimate of a worker, compared with its formula and with real workers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from swapd.domain.models import ModelSpec
from swapd.gguf.llama_flags import LlamaFlags, parse_llama_flags
from swapd.gguf.memory_estimate import (
    BUILTIN_PROCESS_BYTES,
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


def gguf_header(architecture: str = "llama", **fields: Value) -> GgufHeader:
    """Return a header with these fields of the model; `__` stands for a dot.

    Without other values, the model has eight layers and KV heads of width 64.
    """
    shape: dict[str, Value] = {"block_count": 8, "embedding_length": 512, "attention.head_count": 8}
    values = {**shape, **{key.replace("__", "."): value for key, value in fields.items()}}
    named = {f"{architecture}.{key}": value for key, value in values.items()}
    return GgufHeader({"general.architecture": architecture, **named}, 0)


def spec(*argv: str) -> ModelSpec:
    return model_spec("m", ("worker", *argv))


def test_the_need_follows_the_formula(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", layers=3, kv_heads=2, tokens=100)
    factors = memory_factors(read_header(path), 1000)
    assert factors == MemoryFactors(1000, 1024, 100, width=64, heads=4, keys=96, values=96)
    compute = 512 * 6 * 64 * 4 + 512 * 256 * 2 + 2 * (1 + 8) * 100 * 4
    fixed = 1000 + BUILTIN_PROCESS_BYTES + 100 * 160
    assert estimate(factors, LlamaFlags(10)) == fixed + 256 * 192 * 2 + compute
    uneven = write_gguf(tmp_path / "n.gguf", layers=3, kv_heads=[1, 0, 4])
    assert memory_factors(read_header(uneven), 0).keys == 5 * 16


@pytest.mark.parametrize(
    ("header", "full_layers", "window_layers", "window"),
    [
        (gguf_header(), 8, 0, 0),
        (gguf_header(attention__sliding_window=128), 8, 0, 128),
        (gguf_header("gemma3", attention__sliding_window=128), 1, 7, 128),
        (gguf_header("gemma2"), 4, 4, 4096),
        (gguf_header("gpt-oss", attention__sliding_window=128), 4, 4, 128),
        (gguf_header("smallthinker", attention__sliding_window=128), 2, 6, 128),
        (gguf_header("cohere2", attention__sliding_window=9,
              attention__sliding_window_pattern=2), 4, 4, 9),
        (gguf_header("new", attention__sliding_window=9,
              attention__sliding_window_pattern=(True, True, False, True)), 5, 3, 9),
        (gguf_header(attention__shared_kv_layers=3), 5, 0, 0),
        (gguf_header(attention__shared_kv_layers=300), 0, 0, 0),
        (gguf_header("qwen3next", full_attention_interval=4), 2, 0, 0),
        (gguf_header(block_count=0), 0, 0, 0),
    ],
)  # fmt: skip
def test_each_layer_has_the_cache_of_its_context(
    header: GgufHeader, full_layers: int, window_layers: int, window: int
) -> None:
    factors = memory_factors(header, 0)
    full, windowed = full_layers * 512, window_layers * 512
    assert (factors.keys, factors.window_keys, factors.window) == (full, windowed, window)
    assert (factors.values, factors.window_values) == (full, windowed)


def test_compressed_keys_need_no_memory_for_values() -> None:
    factors = memory_factors(
        gguf_header(
            "deepseek2",
            attention__head_count_kv=1,
            attention__key_length=576,
            attention__value_length=512,
            attention__key_length_mla=192,
        ),
        0,
    )
    assert (factors.keys, factors.values) == (8 * 576, 0)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("-m a.gguf", LlamaFlags(slots=4)),
        ("-c 512 -np 2 -ctk q8_0 --cache-type-v q4_0", LlamaFlags(512, 2, 34 / 32, 18 / 32)),
        ("-c 512 --ctx-size 1024 -np 1", LlamaFlags(1024)),
        ("--ctx-size=512 --parallel=1", LlamaFlags(512)),
        ("-np 1 -ub 1024 -fa off --swa-full",
         LlamaFlags(batch=1024, flash_attention=False, full_window_cache=True)),
        ("-np 1 --flash-attn on", LlamaFlags()),
        ("-np 1 --lora a.gguf,b.gguf --adapter x=c.gguf --lora-scaled d:0.5 --mmproj e -md f",
         LlamaFlags(extra_files=("a.gguf,b.gguf", "a.gguf", "b.gguf", "d", "c.gguf", "e"),
                    draft="f")),
        ("-c much -np few -ctk odd", LlamaFlags(slots=4)),
    ],
)  # fmt: skip
def test_flags_that_affect_memory_are_parsed(command: str, flags: LlamaFlags) -> None:
    assert parse_llama_flags(tuple(command.split()), builtin=True) == flags


def test_the_model_header_gives_the_same_factors_as_the_whole_header(tmp_path: Path) -> None:
    odd = write_gguf(tmp_path / "late.gguf", kv_heads=[1, 2])
    for path in (BARD, ALICE, odd):
        assert memory_factors(read_model_header(path), 5) == memory_factors(read_header(path), 5)


def test_adapters_and_draft_models_count(tmp_path: Path) -> None:
    alone = estimate_spec(spec("-m", str(ALICE), "-c", "512"), tmp_path)
    adapted = estimate_spec(spec("-m", str(ALICE), "-c", "512", "--lora", str(LORA)), tmp_path)
    assert adapted - alone == LORA.stat().st_size
    odd = tmp_path / "a, b.gguf"
    odd.symlink_to(LORA)
    assert (
        estimate_spec(spec("-m", str(ALICE), "-c", "512", "--lora", str(odd)), tmp_path) == adapted
    )
    drafting = estimate_spec(spec("-m", str(BARD), "-c", "512", "-md", str(ALICE)), tmp_path)
    assert drafting > estimate_spec(spec("-m", str(BARD), "-c", "512"), tmp_path) + MIB


def test_a_file_without_usable_metadata_counts_by_its_size(tmp_path: Path) -> None:
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


def reported_cache(model: Path, *flags: str) -> float:
    """Return the MiB of KV cache and recurrent state that llama.cpp reports."""
    worker = WorkerProcess(model, *flags, "--verbose")
    worker.process.terminate()
    _, log = worker.close()
    return sum(float(size) for size in re.findall(r"(?:KV|RS) buffer size = +([\d.]+) MiB", log))


@pytest.mark.parametrize(
    ("write", "argv"),
    [
        (lambda _: BARD, ("-c", "8192", "-np", "4")),
        (lambda _: BARD, ("-c", "1024", "-ctk", "q8_0", "-ctv", "q4_0", "-fa", "on")),
        (lambda _: ALICE, ()),
        (lambda folder: write_sliding_gguf(folder / "s.gguf", 64, 7), ("-c", "4096", "-np", "3")),
        (lambda folder: write_recurrent_gguf(folder / "r.gguf"), ("-c", "512", "-np", "2")),
    ],
)
def test_the_cache_is_as_large_as_llama_cpp_reports(
    write: Callable[[Path], Path], argv: tuple[str, ...], tmp_path: Path
) -> None:
    path = write(tmp_path)
    factors = memory_factors(read_model_header(path), 0)
    flags = parse_llama_flags(argv, builtin=True)
    expected = kv_bytes(factors, flags) + factors.state * flags.slots
    assert expected / MIB == pytest.approx(reported_cache(path, *argv), abs=0.02)


def test_the_estimate_is_close_to_the_memory_of_a_worker() -> None:
    flags = ("-c", "32768", "-np", "1")
    worker = WorkerProcess(BARD, *flags)
    worker.text(prompt="Who goes there? " * 40, max_tokens=8)
    held = bytes_held(worker.process.pid)
    worker.kill()
    need = estimate_spec(spec("-m", str(BARD), *flags), BARD.parent)
    # Pages of the libraries are shared: with other workers running, only a part of them counts.
    assert 0.95 * held < need < 1.25 * held
