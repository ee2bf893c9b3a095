"""Real, tiny GGUF files, written by the library that llama.cpp's converters use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_gguf(
    path: Path,
    *,
    arch: str = "llama",
    kind: str = "model",
    tokenizer: bool = True,
    tokens: int = 100,
    layers: int = 2,
    context: int = 1024,
    kv_heads: int | list[int] = 2,
    rows: int = 32,
    file_type: int | None = None,
) -> Path:
    """Write a model of the given shape: 4 heads of width 16, one tensor of `rows` × 32 floats."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = gguf.GGUFWriter(path, arch)
    writer.add_type(kind)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv_heads)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"token-{i}" for i in range(tokens)])
    if rows:
        writer.add_tensor("output.weight", np.zeros((rows, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split_gguf(source: Path, base: Path, parts: int = 2) -> list[Path]:
    """Write the model to several files, `BASE-00001-of-0000N.gguf`, as gguf-split does."""
    base.parent.mkdir(parents=True, exist_ok=True)
    reader: Any = gguf.GGUFReader(source)
    fields = {field.name: field for field in reader.fields.values()}
    tensors_per_part = -(-len(reader.tensors) // parts)
    arch = fields.pop("general.architecture").contents()
    writer: Any = gguf.GGUFWriter(
        base.with_name(base.name + ".gguf"), arch, split_max_tensors=tensors_per_part
    )
    for name, field in fields.items():
        if not name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(base.parent.glob(f"{base.name}-*-of-*.gguf"))
