"""Prefetch of model files."""

from __future__ import annotations

from pathlib import Path

from swapd.process.prefetch import prefetch
from tests.specs import model_spec


async def test_files_are_prefetched_and_missing_ones_are_skipped(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(2**20))
    for argv in (("w", "-m", "m.gguf"), ("w", "--model=none.gguf", "a\0b.gguf"), ("w",)):
        await prefetch(model_spec("m", argv), tmp_path)
