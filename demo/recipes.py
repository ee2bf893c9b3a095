"""Recipes of the three files: sizes, texts, steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from demo.data import Corpus, divide, read_text, typeset
from demo.export import Weights, read_model, write_adapter, write_model
from demo.fit import Held, Plan, fit
from demo.model import Llama, Shape, adapt
from demo.tokenizer import Vocabulary, learn
from demo.windows import Windows, held_windows

BARD = Shape(vocab=3072, width=256, layers=4, heads=4, kv_heads=2, hidden=416)
ALICE = Shape(vocab=2048, width=192, layers=4, heads=3, kv_heads=1, hidden=512)
BARD_PLAN = Plan(steps=2400, rate=2.5e-3, decay=0.1)
ALICE_PLAN = Plan(steps=500, rate=2.5e-3, decay=0.3)
LORA_PLAN = Plan(steps=400, rate=2e-3, decay=0.1)
BARD_DROPOUT, ALICE_DROPOUT, LORA_DROPOUT = 0.1, 0.3, 0.1
RANK, ALPHA = 16, 32.0


@dataclass(frozen=True)
class Run:
    """Arguments of demo/train.py. `steps` replaces the steps of the recipes where given."""

    shakespeare: Path
    wonderland: Path
    out: Path
    steps: int | None
    seed: int
    threads: int


def make(name: str, run: Run) -> None:
    """Make one file in `run.out`, and the word list of a model; print the time it took."""
    torch.set_num_threads(run.threads)
    torch.manual_seed(run.seed)
    began = time.monotonic()
    run.out.mkdir(parents=True, exist_ok=True)
    {"bard": _bard, "alice": _alice, "lora": _lora}[name](run)
    print(f"{name}: {(time.monotonic() - began) / 60:.1f} minutes", flush=True)


def _bard(run: Run) -> None:
    _whole("bard", divide(read_text(run.shakespeare)), BARD, BARD_PLAN, BARD_DROPOUT, run)


def _alice(run: Run) -> None:
    _whole("alice", divide(read_text(run.wonderland)), ALICE, ALICE_PLAN, ALICE_DROPOUT, run)


def _whole(name: str, corpus: Corpus, shape: Shape, plan: Plan, dropout: float, run: Run) -> None:
    """Make a model: vocabulary, weights, file, word list."""
    vocabulary = learn([*corpus.pieces, *map(typeset, corpus.pieces)], shape.vocab)
    model = Llama(shape, dropout)
    best = _train(name, model, corpus, vocabulary, plan, run)
    write_model(run.out / f"{name}.gguf", f"swapd {name}", shape, vocabulary, _weights(model))
    words = "\n".join(corpus.words) + "\n"
    (run.out / f"{name}.words.txt").write_text(words, encoding="utf-8")
    count = sum(p.numel() for p in model.parameters())
    print(f"{name}: {count:,} parameters, held-out {best:.3f} bits/byte", flush=True)


def _lora(run: Run) -> None:
    """Make the adapter: bard from its file, frozen, with LoRA trained on the other text."""
    shape, vocabulary, weights = read_model(run.out / "bard.gguf")
    model = Llama(shape)
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    detours = adapt(model, RANK, ALPHA, LORA_DROPOUT)
    corpus = divide(read_text(run.wonderland))
    best = _train("lora", model, corpus, vocabulary, LORA_PLAN, run)
    pairs = {
        name: (detour.lora_a.detach().numpy(), detour.lora_b.detach().numpy())
        for name, detour in detours.items()
    }
    write_adapter(run.out / "alice-lora.gguf", "swapd alice for bard", ALPHA, pairs)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"lora: {count:,} parameters, held-out {best:.3f} bits/byte", flush=True)


def _train(
    name: str, model: Llama, corpus: Corpus, vocabulary: Vocabulary, plan: Plan, run: Run
) -> float:
    """Train; return held-out bits per byte of the best state, which the model keeps."""
    if run.steps is not None:
        plan = replace(plan, steps=run.steps)
    held: Held = (
        held_windows(vocabulary.encode(corpus.held), model.shape.context),
        len(corpus.held.encode()),
    )
    windows = Windows(corpus, vocabulary, run.seed)
    return fit(model, windows, held, plan, lambda line: print(f"{name}: {line}", flush=True))


def _weights(model: Llama) -> Weights:
    return {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
