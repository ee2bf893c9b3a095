"""Small Llama network, with parameters named as in GGUF."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Size of a network. All widths are multiples of 32, the block size of Q8_0."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    context: int = 1024
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_width(self) -> int:
        """Numbers per attention head."""
        return self.width // self.heads


class RMSNorm(nn.Module):
    """Layer that scales to unit root mean square, then by a learned weight: (…, width) -> same."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotation(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every position's angles, each (context, head_width / 2)."""
    pairs = torch.arange(0, shape.head_width, 2, dtype=torch.float32)
    frequency = shape.rope_base ** (-pairs / shape.head_width)
    angle = torch.arange(shape.context, dtype=torch.float32)[:, None] * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE on (batch, heads, time, head_width).

    Neighbours (2i, 2i+1) form the pairs: llama.cpp's layout for architecture "llama", so the
    weights need no permutation on their way into the file.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Block(nn.Module):
    """Transformer layer: attention, then the gated feed-forward, each added to its input."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm = RMSNorm(shape.width, shape.norm_eps)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = RMSNorm(shape.width, shape.norm_eps)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)
        self.drop = nn.Dropout(dropout)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Apply causal attention over (batch, time, width); groups share key-value heads."""
        batch, time, _ = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(batch, time, -1, self.shape.head_width).transpose(1, 2)

        query = rotate(heads(self.attn_q(x)), cos, sin)
        key = rotate(heads(self.attn_k(x)), cos, sin)
        value = heads(self.attn_v(x))
        group = self.shape.heads // self.shape.kv_heads
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group, dim=1),
            value.repeat_interleave(group, dim=1),
            is_causal=True,
        )
        out: Tensor = self.attn_output(mixed.transpose(1, 2).reshape(batch, time, -1))
        return out

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.drop(self.attend(self.attn_norm(x), cos, sin))
        y = self.ffn_norm(x)
        gated = functional.silu(self.ffn_gate(y)) * self.ffn_up(y)
        out: Tensor = x + self.drop(self.ffn_down(gated))
        return out


class Llama(nn.Module):
    """Language model: token ids (batch, time) to logits (batch, time, vocab).

    Input and output share one embedding. `state_dict` holds exactly the tensors of the GGUF
    file, under their names there.
    """

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab, shape.width)
        self.blk = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.output_norm = RMSNorm(shape.width, shape.norm_eps)
        self.drop = nn.Dropout(dropout)
        cos, sin = rotation(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._start()

    def _start(self) -> None:
        """Set initial weights: normal, and smaller where a layer adds to the residual stream."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                adds = name.endswith(("attn_output.weight", "ffn_down.weight"))
                scale = (2 * self.shape.layers) ** -0.5 if adds else 1.0
                nn.init.normal_(weight, std=scale * self.shape.width**-0.5 * 0.5)

    def forward(self, ids: Tensor) -> Tensor:
        time = ids.shape[1]
        cos, sin = self.get_buffer("cos")[:time], self.get_buffer("sin")[:time]
        x = self.drop(self.token_embd(ids))
        for block in self.blk:
            x = block(x, cos, sin)
        return functional.linear(self.output_norm(x), self.token_embd.weight)


class LowRank(nn.Module):
    """Frozen linear layer plus a trained product of low rank: W x + (alpha / rank) B A x."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        detour = functional.linear(functional.linear(self.drop(x), self.lora_a), self.lora_b)
        out: Tensor = self.base(x) + self.scale * detour
        return out


def adapt(model: Llama, rank: int, alpha: float, dropout: float) -> dict[str, LowRank]:
    """Freeze the model and wrap every matrix of its blocks into a LowRank.

    Return them by the GGUF name of the adapted matrix, "blk.0.attn_q.weight" and so on.
    """
    model.requires_grad_(False)
    detours: dict[str, LowRank] = {}
    for index, block in enumerate(model.blk):
        for name, child in list(block.named_children()):
            if isinstance(child, nn.Linear):
                detour = LowRank(child, rank, alpha, dropout)
                setattr(block, name, detour)
                detours[f"blk.{index}.{name}.weight"] = detour
    return detours
