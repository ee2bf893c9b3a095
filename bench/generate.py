"""Generator of llama models with random weights and a given size, for benchmarks.

`python -m bench.generate 60 800` writes a model of 60 MB and one of 800 MB into a cache folder and
prints their paths. The same size and seed give the same file; an existing file is reused. The
tokenizer and the chat template are those of `demo/bard.gguf`; its vocabulary is filled up to
32,000 invented words, as many as real models of these sizes have, because loading and sampling
cost by the vocabulary.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, TokenType
from gguf.constants import GGUFType
from numpy.typing import NDArray

from bench.common import BARD, note

VOCABULARY = 32_000
CONTEXT = 8192
HEAD = 64
SPECIAL = 5
"""Tokens at the vocabulary's start that mean something: begin, end and the roles."""
BLOCK = 32
"""Weights in a block of Q8_0: a 16-bit scale, then 32 signed bytes."""
BLOCK_BYTES = 2 + BLOCK


@dataclass(frozen=True)
class Shape:
    """The proportions of a model."""

    width: int
    hidden: int
    kv_heads: int
    layers: int = 0

    @property
    def kv_width(self) -> int:
        return self.kv_heads * HEAD

    def matrices(self, layer: int) -> dict[str, tuple[int, int]]:
        """Return names and shapes (rows, columns) of a layer's matrices."""
        block = f"blk.{layer}"
        return {
            f"{block}.attn_q.weight": (self.width, self.width),
            f"{block}.attn_k.weight": (self.kv_width, self.width),
            f"{block}.attn_v.weight": (self.kv_width, self.width),
            f"{block}.attn_output.weight": (self.width, self.width),
            f"{block}.ffn_gate.weight": (self.hidden, self.width),
            f"{block}.ffn_up.weight": (self.hidden, self.width),
            f"{block}.ffn_down.weight": (self.width, self.hidden),
        }

    @property
    def layer_bytes(self) -> int:
        return sum(_bytes_of(*shape) for shape in self.matrices(0).values())


def _bytes_of(rows: int, columns: int) -> int:
    return rows * columns // BLOCK * BLOCK_BYTES


def shape_for(megabytes: int) -> Shape:
    """Return the width of real models of that size, with the number of layers closest to it."""
    if megabytes < 40:
        wide = Shape(width=256, hidden=768, kv_heads=2)
    elif megabytes < 300:
        wide = Shape(width=512, hidden=1408, kv_heads=4)
    else:
        wide = Shape(width=2048, hidden=5632, kv_heads=8)  # 32 kB of KV a token at 800 MB
    left = megabytes * 1_000_000 - _bytes_of(VOCABULARY, wide.width)
    layers = max(1, round(left / wide.layer_bytes))
    return Shape(wide.width, wide.hidden, wide.kv_heads, layers)


def cache_folder() -> Path:
    """Return the cache folder of the files, by default or by the environment."""
    named = os.environ.get("SWAPD_BENCH_CACHE")
    return Path(named) if named else Path(tempfile.gettempdir()) / "swapd-bench-models"


def model(megabytes: int, seed: int = 1, folder: Path | None = None) -> Path:
    """Return the path of such a model; write it if it is missing."""
    folder = folder or cache_folder()
    path = folder / f"random-{megabytes}mb-{seed}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        note(f"writing {path}")
        beside = path.with_suffix(".part")
        _write(beside, shape_for(megabytes), seed)
        beside.replace(path)
    return path


def _write(path: Path, shape: Shape, seed: int) -> None:
    """Write tensor by tensor, so that one at most is in memory."""
    writer = GGUFWriter(str(path), "llama")
    _add_metadata(writer, shape, seed)
    matrices = {"token_embd.weight": (VOCABULARY, shape.width)}
    norms = ["output_norm.weight"]
    for layer in range(shape.layers):
        matrices |= shape.matrices(layer)
        norms += [f"blk.{layer}.attn_norm.weight", f"blk.{layer}.ffn_norm.weight"]
    kind = GGMLQuantizationType.Q8_0
    for name, (rows, columns) in matrices.items():
        bytes_shape = (rows, columns // BLOCK * BLOCK_BYTES)
        size = _bytes_of(rows, columns)
        writer.add_tensor_info(name, bytes_shape, np.dtype(np.uint8), size, kind)
    for name in norms:
        writer.add_tensor_info(name, (shape.width,), np.dtype(np.float32), shape.width * 4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for name, (rows, columns) in matrices.items():
        weights = _random(random, rows, columns)
        if name == "token_embd.weight":
            # It is the output's matrix too: weights next to nothing give the special tokens
            # scores next to nothing, so no answer ends by itself.
            weights.reshape(rows, -1)[:SPECIAL] = _random(random, SPECIAL, columns, 1e-3)
        writer.write_tensor_data(weights)
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.width, np.float32))
    writer.close()


def _random(
    random: np.random.Generator, rows: int, columns: int, scale: float = 1.0
) -> NDArray[np.uint8]:
    """Return a matrix in Q8_0: uniform weights, with a variance that keeps activations in range."""
    blocks = np.empty((rows * columns // BLOCK, BLOCK_BYTES), np.uint8)
    step = np.float16(scale * np.sqrt(3 / columns) / 127)
    blocks[:, :2] = np.frombuffer(step.tobytes(), np.uint8)
    values = random.integers(-127, 128, (len(blocks), BLOCK), np.int8)
    blocks[:, 2:] = values.view(np.uint8)
    return blocks.reshape(rows, -1)


def _add_metadata(writer: GGUFWriter, shape: Shape, seed: int) -> None:
    writer.add_type(GGUFType.MODEL)
    writer.add_name(f"random {seed}")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.width // HEAD)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    reader = GGUFReader(str(BARD))

    def bards(key: str) -> Any:
        field = reader.get_field(key)
        assert field is not None, f"{BARD.name} has no {key}"
        return field.contents()

    tokens = list(bards("tokenizer.ggml.tokens"))
    kinds = list(bards("tokenizer.ggml.token_type"))
    missing = VOCABULARY - len(tokens)
    # "Ġ" is how this kind of vocabulary writes the blank before a word.
    tokens += [f"Ġmade{number}up" for number in range(missing)]
    kinds += [TokenType.NORMAL] * missing
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(list(bards("tokenizer.ggml.merges")))
    writer.add_bos_token_id(bards("tokenizer.ggml.bos_token_id"))
    writer.add_eos_token_id(bards("tokenizer.ggml.eos_token_id"))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(bards("tokenizer.chat_template"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("megabytes", type=int, nargs="+", help="size of the file, such as 60")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help=f"default: {cache_folder().name} in the temp")
    given = parser.parse_args()
    for megabytes in given.megabytes:
        print(model(megabytes, given.seed, given.folder))


if __name__ == "__main__":
    main()
