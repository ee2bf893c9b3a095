"""Training loop, the same for a whole model and for an adapter."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from demo.windows import IGNORED, Windows

LN2 = math.log(2)
Held = tuple[list[tuple[Tensor, Tensor]], int]


@dataclass(frozen=True)
class Plan:
    """Length and strength of the training. `decay` is AdamW's weight decay on the matrices."""

    steps: int
    rate: float
    decay: float
    look_every: int = 100


def bits_per_byte(model: nn.Module, held: Held) -> float:
    """Return the loss on held-out windows per byte of their text, so that vocabularies compare."""
    windows, size = held
    model.eval()
    nats = 0.0
    with torch.no_grad():
        for inputs, targets in windows:
            logits = model(inputs).flatten(0, 1).float()
            nats += functional.cross_entropy(logits, targets.flatten(), reduction="sum").item()
    model.train()
    return nats / LN2 / size


def rate_at(step: int, plan: Plan) -> float:
    """Return the learning rate: up over the first 5 %, then down along a cosine to nearly 0."""
    warm = max(1, plan.steps // 20)
    if step < warm:
        return plan.rate * (step + 1) / warm
    done = (step - warm) / max(1, plan.steps - warm)
    return plan.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def optimizer_for(model: nn.Module, decay: float) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters; weights of norms do not decay."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in weights if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def fit(
    model: nn.Module, windows: Windows, held: Held, plan: Plan, report: Callable[[str], None]
) -> float:
    """Train in place, keep the state that did best on the held-out text, return its loss."""
    optimizer = optimizer_for(model, plan.decay)
    batches = windows.batches()
    best, best_state = math.inf, {}
    began = time.monotonic()
    model.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, plan)
        inputs, targets = next(batches)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(inputs).flatten(0, 1)
        loss = functional.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % plan.look_every == 0 or step + 1 == plan.steps:
            now = bits_per_byte(model, held)
            if now < best:
                best = now
                best_state = {name: value.clone() for name, value in model.state_dict().items()}
            minutes = (time.monotonic() - began) / 60
            report(
                f"step {step + 1}/{plan.steps}  loss {loss.item():.3f} nats/token  "
                f"held-out {now:.3f} bits/byte (best {best:.3f})  {minutes:.1f} min"
            )
    model.load_state_dict(best_state)
    return best
