"""A GGUF file of a reranker with random weights: Qwen3's architecture with two classes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.workers.random_gguf import add_vocabulary


def write_ranking_gguf(path: Path, *, width: int = 64, vocabulary: int = 320) -> Path:
    """Write the model to `path`. Its scores are probabilities without meaning."""
    rng = np.random.default_rng(3)
    heads, hidden = width // 32, width * 3
    out = gguf.GGUFWriter(path, "qwen3")
    out.add_name(path.stem)
    out.add_context_length(2048)
    out.add_embedding_length(width)
    out.add_block_count(1)
    out.add_feed_forward_length(hidden)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(vocabulary)
    out.add_pooling_type(gguf.PoolingType.RANK)
    out.add_classifier_output_labels(["yes", "no"])
    add_vocabulary(out, vocabulary)

    def add(name: str, *shape: int) -> None:
        out.add_tensor(f"{name}.weight", rng.normal(0, 0.3, shape).astype(np.float32))

    def ones(name: str, size: int) -> None:
        out.add_tensor(f"{name}.weight", np.ones(size, np.float32))

    add("token_embd", vocabulary, width)
    add("cls.output", 2, width)
    ones("output_norm", width)
    for name in ("attn_norm", "ffn_norm"):
        ones(f"blk.0.{name}", width)
    for name in ("attn_q_norm", "attn_k_norm"):
        ones(f"blk.0.{name}", width // heads)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.0.{name}", width, width)
    add("blk.0.ffn_gate", hidden, width)
    add("blk.0.ffn_up", hidden, width)
    add("blk.0.ffn_down", width, hidden)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
