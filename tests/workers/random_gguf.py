"""GGUF files of the llama architecture with random weights, for cases without a demo model.

Such a model generates nonsense, but every byte of UTF-8 is a token, so text is cut inside of
characters; and its size can be chosen.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'forbidden' %}"
    "{{ raise_exception('this role is forbidden') }}{% endif %}"
    "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ("<|bos|>", "<|end|>", "<|start|>")


def byte_characters() -> list[str]:
    """Return the printable character for each byte 0–255, as in GPT-2's byte-level BPE."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def write_random_gguf(
    path: Path,
    *,
    seed: int = 1,
    vocabulary: int = 320,
    width: int = 64,
    layers: int = 2,
    context: int = 1024,
    quantized: bool = False,
    chat_template: str | None = CHAT_TEMPLATE,
    control: tuple[str, ...] = (),
    pooling: gguf.PoolingType | None = None,
) -> Path:
    """Write a model of `layers` × `width` to `path`. Token ids 0–255 are the bytes themselves.

    The three SPECIAL tokens (beginning, end, start of turn) are the last of the vocabulary, and
    `control`, further control tokens, are before them.
    """
    rng = np.random.default_rng(seed)
    heads, hidden = width // 32, width * 3
    out = gguf.GGUFWriter(path, "llama")
    out.add_name(path.stem)
    out.add_context_length(context)
    out.add_embedding_length(width)
    out.add_block_count(layers)
    out.add_feed_forward_length(hidden)
    out.add_head_count(heads)
    out.add_head_count_kv(heads)
    out.add_rope_dimension_count(32)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_vocab_size(vocabulary)
    if pooling is not None:
        out.add_pooling_type(pooling)
    add_vocabulary(out, vocabulary, control)
    if chat_template is not None:
        out.add_chat_template(chat_template)

    def add(name: str, *shape: int) -> None:
        values = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        if quantized:
            packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            out.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            out.add_tensor(name, values)

    add("token_embd.weight", vocabulary, width)
    add("output.weight", vocabulary, width)
    out.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        for name in ("attn_norm", "ffn_norm"):
            out.add_tensor(f"{block}.{name}.weight", np.ones(width, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"{block}.{name}.weight", width, width)
        add(f"{block}.ffn_gate.weight", hidden, width)
        add(f"{block}.ffn_up.weight", hidden, width)
        add(f"{block}.ffn_down.weight", width, hidden)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def add_vocabulary(out: gguf.GGUFWriter, size: int, control: tuple[str, ...] = ()) -> None:
    """Add `size` tokens: the bytes, one merge, fillers, `control`, and SPECIAL at the end."""
    special = (*control, *SPECIAL)
    fillers = [f"filler{i}" for i in range(size - 257 - len(special))]
    tokens = [*byte_characters(), "he", *fillers, *special]
    kinds = [gguf.TokenType.NORMAL] * (size - len(special))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(tokens)
    out.add_token_types([*kinds, *[gguf.TokenType.CONTROL] * len(special)])
    out.add_token_merges(["h e"])  # llama.cpp rejects a vocabulary without merges
    out.add_bos_token_id(size - 3)
    out.add_eos_token_id(size - 2)
    out.add_add_bos_token(False)
