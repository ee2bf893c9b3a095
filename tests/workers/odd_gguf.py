"""GGUF files with random weights and caches that can't be truncated: recurrent, sliding window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np

from tests.workers.random_gguf import add_vocabulary

WIDTH, VOCABULARY, LAYERS = 64, 320, 2
Add = Callable[..., None]


def write_recurrent_gguf(path: Path) -> Path:
    """Write a Mamba, whose whole past is one state."""
    inner, state, rank, kernel = 2 * WIDTH, 16, 8, 4
    out, add = _begin(path, "mamba")
    out.add_feed_forward_length(0)
    out.add_head_count(0)
    out.add_ssm_conv_kernel(kernel)
    out.add_ssm_inner_size(inner)
    out.add_ssm_state_size(state)
    out.add_ssm_time_step_rank(rank)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        out.add_tensor(f"{block}.attn_norm.weight", np.ones(WIDTH, np.float32))
        add(f"{block}.ssm_in.weight", 2 * inner, WIDTH)
        add(f"{block}.ssm_conv1d.weight", inner, kernel)
        add(f"{block}.ssm_conv1d.bias", inner)
        add(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        add(f"{block}.ssm_dt.weight", inner, rank)
        add(f"{block}.ssm_dt.bias", inner)
        decay = -np.tile(np.arange(1, state + 1, dtype=np.float32), (inner, 1))
        out.add_tensor(f"{block}.ssm_a", decay)
        out.add_tensor(f"{block}.ssm_d", np.ones(inner, np.float32))
        add(f"{block}.ssm_out.weight", WIDTH, inner)
    return _end(out, path)


def write_sliding_gguf(path: Path, window: int = 64, layers: int = LAYERS) -> Path:
    """Write a Gemma 3, in which most layers see only the last `window` tokens."""
    out, add = _begin(path, "gemma3", layers)
    out.add_feed_forward_length(3 * WIDTH)
    out.add_head_count(2)
    out.add_head_count_kv(2)
    out.add_key_length(32)
    out.add_value_length(32)
    out.add_sliding_window(window)
    for layer in range(layers):
        block = f"blk.{layer}"
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            out.add_tensor(f"{block}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q_norm", "attn_k_norm"):
            out.add_tensor(f"{block}.{name}.weight", np.ones(32, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{name}.weight", WIDTH, WIDTH)
        add(f"{block}.ffn_gate.weight", 3 * WIDTH, WIDTH)
        add(f"{block}.ffn_up.weight", 3 * WIDTH, WIDTH)
        add(f"{block}.ffn_down.weight", WIDTH, 3 * WIDTH)
    return _end(out, path)


def _begin(path: Path, architecture: str, layers: int = LAYERS) -> tuple[gguf.GGUFWriter, Add]:
    rng = np.random.default_rng(1)
    out = gguf.GGUFWriter(path, architecture)
    out.add_name(path.stem)
    out.add_context_length(4096)
    out.add_embedding_length(WIDTH)
    out.add_block_count(layers)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(VOCABULARY)
    add_vocabulary(out, VOCABULARY)

    def add(name: str, *shape: int) -> None:
        out.add_tensor(name, rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32))

    add("token_embd.weight", VOCABULARY, WIDTH)
    add("output.weight", VOCABULARY, WIDTH)
    out.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    return out, add


def _end(out: gguf.GGUFWriter, path: Path) -> Path:
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
