"""Known tokens that are read in pieces: they take fewer steps, and leave everything as it was."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.workers.engine.test_engine import Bench, Reader
from workers.engine.replay import PIECE
from workers.engine.sequence import Finished, Sequence
from workers.llama.detokenizer import TextOutput
from workers.settings import Sampling

PENALISED = Sampling(temperature=0, repeat_penalty=1.3, repeat_last_n=20)


async def finished(bench: Bench, wish: Sampling, resumed: list[int], count: int) -> list[Sequence]:
    """So many equal requests at once, of which `resumed` is known; when they have ended."""
    prompt = bench.model.tokenize("The king", add_special=True, parse_special=False)
    readers = [Reader() for _ in range(count)]
    sequences = [
        Sequence(
            number, [*prompt], 100, wish, TextOutput([]), reader, True,
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


async def test_pieces(bard_gguf: Path) -> None:
    bench = Bench(bard_gguf, slots=8, cells=4096)
    for wish in (Sampling(temperature=0), PENALISED):
        (whole,) = await finished(bench, wish, [], 1)
        tokens = whole.tokens[whole.prompt_length :]
        assert len(tokens) == 100
        steps = []
        for seconds in (60.0, 0.0):
            bench.engine.lane.replayer.alike_seconds = seconds
            before = bench.engine.counters.steps
            (resumed,) = await finished(bench, wish, tokens[:90], 1)
            steps.append(bench.engine.counters.steps - before)
            assert resumed.tokens == whole.tokens
        assert steps[0] >= 100
        assert steps[1] <= 15 + 90 // min(PIECE, 8)


async def test_eight_at_once_have_rows_enough(bard_gguf: Path) -> None:
    bench = Bench(bard_gguf, slots=8, cells=4096)
    bench.engine.lane.replayer.alike_seconds = 0.0
    (whole,) = await finished(bench, PENALISED, [], 1)
    tokens = whole.tokens[whole.prompt_length :]
    for sequence in await finished(bench, PENALISED, tokens[:70], 8):
        begin = sequence.prompt_length
        assert sequence.tokens[begin : begin + 70] == tokens[:70]
        assert len(sequence.tokens) == len(whole.tokens)
    assert not bench.broken.is_set()
