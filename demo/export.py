"""Export to GGUF and import: models in Q8_0 with their tokenizer, adapters in F16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, TokenType
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUFType, Keys
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from demo.model import Shape
from demo.tokenizer import BEGIN_ID, CHAT_TEMPLATE, END_ID, SPECIAL, Vocabulary

Weights = Mapping[str, NDArray[np.float32]]
ARCHITECTURE = "llama"
LICENCE = "mit"


def write_model(
    path: Path, name: str, shape: Shape, vocabulary: Vocabulary, weights: Weights
) -> None:
    """Write a model file: matrices in Q8_0, norms in F32, the tokenizer and the chat template."""
    writer = GGUFWriter(str(path), ARCHITECTURE)
    writer.add_type(GGUFType.MODEL)
    writer.add_name(name)
    writer.add_license(LICENCE)
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    _add_shape(writer, shape)
    _add_tokenizer(writer, vocabulary)
    for tensor, value in weights.items():
        if value.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor, value)
    _finish(writer)


def _add_shape(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def _add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary.tokens))
    special = [TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in vocabulary.tokens]
    writer.add_token_types(special)
    writer.add_token_merges(list(vocabulary.merges))
    writer.add_bos_token_id(BEGIN_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_eot_token_id(END_ID)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_adapter(
    path: Path, name: str, alpha: float, pairs: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
) -> None:
    """Write an adapter file for llama.cpp.

    `pairs` has, by the name of the adapted matrix (out, in), A (rank, in) and B (out, rank).
    llama.cpp adds (alpha / rank) B A x.
    """
    writer = GGUFWriter(str(path), ARCHITECTURE)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_license(LICENCE)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for tensor, (down, up) in pairs.items():
        writer.add_tensor(f"{tensor}.lora_a", down.astype(np.float16))
        writer.add_tensor(f"{tensor}.lora_b", up.astype(np.float16))
    _finish(writer)


def _finish(writer: GGUFWriter) -> None:
    writer.data_alignment = GGUF_DEFAULT_ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_model(path: Path) -> tuple[Shape, Vocabulary, Weights]:
    """Return the tensors of a file by `write_model`, matrices rounded as in the file."""
    if not path.is_file():
        raise SystemExit(f"there is no {path}: train bard first (--only bard)")
    reader = GGUFReader(str(path))

    def value(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise SystemExit(f"{path} has no {key}: it was not written by demo/train.py")
        return field.contents()

    shape = Shape(
        vocab=value(f"{ARCHITECTURE}.vocab_size"),
        width=value(f"{ARCHITECTURE}.embedding_length"),
        layers=value(f"{ARCHITECTURE}.block_count"),
        heads=value(f"{ARCHITECTURE}.attention.head_count"),
        kv_heads=value(f"{ARCHITECTURE}.attention.head_count_kv"),
        hidden=value(f"{ARCHITECTURE}.feed_forward_length"),
        context=value(f"{ARCHITECTURE}.context_length"),
        rope_base=value(f"{ARCHITECTURE}.rope.freq_base"),
        norm_eps=value(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon"),
    )
    vocabulary = Vocabulary(value("tokenizer.ggml.tokens"), value("tokenizer.ggml.merges"))
    weights = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return shape, vocabulary, weights
