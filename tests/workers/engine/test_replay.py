"""Replay in pieces: fewer steps, and the same answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.workers.engine.test_engine import Bench, Reader
from workers.engine.replay import PIECE
from workers.engine.sequence import Finished, Sequence
from workers.llama.detokenizer import TextOutput
from workers.settings import Sampling

PENALIZED = Sampling(temperature=0, repeat_penalty=1.3, repeat_last_n=20)


async def finished(
    bench: Bench, sampling: Sampling, resumed: list[int], count: int
) -> list[Sequence]:
    """Run `count` equal requests at once, of which `resumed` is known; return them at their end."""
    prompt = bench.model.tokenize("The king", add_special=True, parse_special=False)
    readers = [Reader() for _ in range(count)]
    sequences = [
        Sequence(
            number, [*prompt], 100, sampling, TextOutput([]), reader, True,
            asyncio.get_running_loop().time(), resumed=resumed,
        )
        for number, reader in enumerate(readers)
    ]  # fmt: skip
    for sequence in sequences:
        bench.engine.submit(sequence)
    for reader in readers:
        await reader.ended.wait()
        assert isinstance(reader.end, Finished)
    return sequences


async def test_pieces_take_fewer_steps_and_change_no_answer(bard_gguf: Path) -> None:
    bench = Bench(bard_gguf, slots=8, cells=4096)
    for sampling in (Sampling(temperature=0), PENALIZED):
        (whole,) = await finished(bench, sampling, [], 1)
        tokens = whole.tokens[whole.prompt_length :]
        assert len(tokens) == 100
        steps = []
        for seconds in (60.0, 0.0):
            bench.engine.runner.replayer.single_seconds = seconds
            before = bench.engine.counters.steps
            (resumed,) = await finished(bench, sampling, tokens[:90], 1)
            steps.append(bench.engine.counters.steps - before)
            assert resumed.tokens == whole.tokens
        assert steps[0] >= 100
        assert steps[1] <= 15 + 90 // min(PIECE, 8)


async def test_eight_replays_at_once_have_enough_rows(bard_gguf: Path) -> None:
    bench = Bench(bard_gguf, slots=8, cells=4096)
    bench.engine.runner.replayer.single_seconds = 0.0
    (whole,) = await finished(bench, PENALIZED, [], 1)
    tokens = whole.tokens[whole.prompt_length :]
    for sequence in await finished(bench, PENALIZED, tokens[:70], 8):
        begin = sequence.prompt_length
        assert sequence.tokens[begin : begin + 70] == tokens[:70]
        assert len(sequence.tokens) == len(whole.tokens)
    assert not bench.broken.is_set()
