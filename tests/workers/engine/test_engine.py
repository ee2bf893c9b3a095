"""The engine in this process, where its steps can be counted and its tokens compared."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.workers.process import ROOT
from workers.engine.batch_scheduler import ROTATION_STEPS, EngineBrokenError
from workers.engine.engine import Engine
from workers.engine.fair_queue import PREFILL_COST, TOKEN_COST
from workers.engine.lora import AdapterFiles
from workers.engine.sequence import Failed, Finished, Sequence, SequenceEnd
from workers.llama.context import Batch, Context, ContextOptions
from workers.llama.detokenizer import TextOutput
from workers.llama.model import LlamaLog, Model
from workers.settings import Sampling

GREEDY = Sampling(temperature=0)
NEAR = 0.02
"""Logits this close may change places with the batch's shape. They are around 5.

Without flash attention. With it, llama.cpp computes fewer than 64 rows by other arithmetic than
more, and 3 of 12 answers differ somewhere in 60 tokens, where the gap is up to 0.07.
"""


class Reader:
    """A sink that stores text and end, with an event for the first text."""

    def __init__(self) -> None:
        self.text = ""
        self.generated = 0
        self.end: SequenceEnd | None = None
        self.ended = asyncio.Event()
        self.begun = asyncio.Event()

    def deliver(self, text: str, end: SequenceEnd | None, generated: int) -> None:
        """As Sink."""
        assert self.end is None, "a delivery after the end"
        assert generated >= self.generated
        self.generated = generated
        self.text += text
        self.begun.set()
        if end is not None:
            self.end = end
            self.ended.set()

    async def wait_for_text(self) -> None:
        """Wait for the first text, but only a moment."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.begun.wait(), 0.02)


class Bench:
    """An engine with its thread."""

    def __init__(self, path: Path, slots: int, cells: int, draft_rows: int = 0) -> None:
        self.log = LlamaLog(silent=True)
        self.model = Model(str(path), gpu_layers=0, mmap=True, mlock=False, log=self.log)
        self.options = ContextOptions(
            cells,
            512,
            512,
            slots,
            threads=1,
            threads_batch=1,
            flash_attention="off",
            n_draft_rows=draft_rows,
        )
        self.engine = Engine(self.model, self.options, self.options, slots, 8, self.log)
        self.broken = asyncio.Event()
        self.engine.attach(asyncio.get_running_loop(), self.broken.set)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self.engine.run()
        except EngineBrokenError as error:
            self.engine.fail_all(str(error))

    def begin(self, tokens: list[int], limit: int, number: int = 0) -> tuple[Sequence, Reader]:
        """Submit a greedy request."""
        reader = Reader()
        sequence = Sequence(
            number,
            tokens,
            limit,
            GREEDY,
            TextOutput([]),
            reader,
            True,
            asyncio.get_running_loop().time(),
        )
        self.engine.submit(sequence)
        return sequence, reader

    async def generate(self, prompts: list[list[int]], limit: int) -> list[list[int]]:
        """Return the continuation of each prompt, generated at the same time."""
        begun = [self.begin([*prompt], limit, n) for n, prompt in enumerate(prompts)]
        for _, reader in begun:
            await reader.ended.wait()
            assert isinstance(reader.end, Finished)
        return [sequence.tokens[sequence.prompt_length :] for sequence, _ in begun]


@pytest.fixture
async def bard_bench(bard_gguf: Path) -> AsyncIterator[Bench]:
    """bard with eight slots."""
    yield Bench(bard_gguf, 8, 4096)


@pytest.fixture
async def tiny_bench(tiny_gguf: Path) -> AsyncIterator[Bench]:
    """The random model with two slots."""
    yield Bench(tiny_gguf, 2, 16384)


def logits_after(bench: Bench, tokens: list[int]) -> list[float]:
    """Return the logits of the next token, computed alone."""
    context = Context(bench.model, bench.options, bench.log)
    batch = Batch(len(tokens))
    row = batch.add_run(tokens, 0, 0, wanted="last")
    assert context.decode(batch) == 0
    values = context.logits(row)
    context.free()
    return values


async def test_greedy_answers_are_the_same_alone_and_in_a_full_batch(bard_bench: Bench) -> None:
    """Answers may differ only by llama.cpp's rounding, between two logits that are as good as
    equal: attention sums over the cells of one shared cache, in another order in a batch."""
    texts = ["ROMEO:\nBut soft", "To be, or not", "The king", "Enter", "My lord,", "O", "Go,", "I"]
    prompts = [
        bard_bench.model.tokenize(text, add_special=True, parse_special=True) for text in texts
    ]
    alone = [(await bard_bench.generate([prompt], 60))[0] for prompt in prompts]
    steps = bard_bench.engine.counters.steps
    together = await bard_bench.generate(prompts, 60)
    assert bard_bench.engine.counters.steps - steps < 2 * 60, "they shared no steps"
    assert sum(a == b for a, b in zip(alone, together, strict=True)) >= 6
    for prompt, one, other in zip(prompts, alone, together, strict=True):
        if one != other:
            same = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
            logits = logits_after(bard_bench, [*prompt, *one[:same]])
            assert abs(logits[one[same]] - logits[other[same]]) < NEAR


async def test_a_cancelled_request_is_gone_before_the_next_step_but_one(tiny_bench: Bench) -> None:
    engine = tiny_bench.engine
    sequence, reader = tiny_bench.begin([65] * 3, limit=10_000)
    await reader.begun.wait()
    engine.cancel(sequence)
    steps = engine.counters.steps
    _, after = tiny_bench.begin([66], limit=1, number=1)
    await after.ended.wait()
    assert engine.counters.steps <= steps + 1 + 1, "the step under way, and the other's own"
    assert engine.slots == [None, None]
    assert reader.end is None


async def test_requests_join_and_leave_between_steps(tiny_bench: Bench) -> None:
    _, long = tiny_bench.begin([65], limit=3000)
    await long.begun.wait()
    for number in range(1, 4):
        _, short = tiny_bench.begin([65 + number], limit=5, number=number)
        await short.ended.wait()
        assert long.end is None
    await long.ended.wait()


async def test_a_step_that_fails_ends_its_requests_and_not_the_engine(tiny_bench: Bench) -> None:
    """A token outside the vocabulary: the HTTP routes reject it, and so does llama_decode."""
    for number in range(2):
        _, reader = tiny_bench.begin([10**6], limit=5, number=number)
        await reader.ended.wait()
        assert isinstance(reader.end, Failed)
        assert "llama.cpp failed" in reader.end.message
    assert await tiny_bench.generate([[65]], 3)
    assert not tiny_bench.broken.is_set()


async def test_an_engine_that_fails_at_every_step_reports_it(tiny_bench: Bench) -> None:
    readers = [tiny_bench.begin([10**6], 5, number)[1] for number in range(8)]
    await tiny_bench.broken.wait()
    for reader in readers:
        await reader.ended.wait()
        assert isinstance(reader.end, Failed)


async def test_a_long_prompt_does_not_stop_a_stream(tiny_bench: Bench) -> None:
    """The prompt is read in pieces, and the stream goes on after each."""
    running, stream = tiny_bench.begin([65], limit=12_000)
    await stream.begun.wait()
    before = running.generated
    _, reader = tiny_bench.begin([66] * 8000, limit=1, number=1)
    await reader.ended.wait()
    assert running.generated - before >= 8000 // 512
    tiny_bench.engine.cancel(running)
    assert await tiny_bench.generate([[65]], 1), "no text goes to an event loop that has ended"


async def test_a_flood_of_one_tenant_does_not_starve_another(tiny_bench: Bench) -> None:
    ended: list[str] = []

    class Ended(Reader):
        """A reader that records the order of ends."""

        def __init__(self, tenant: str) -> None:
            super().__init__()
            self.tenant = tenant

        def deliver(self, text: str, end: SequenceEnd | None, generated: int) -> None:
            super().deliver(text, end, generated)
            if end is not None:
                ended.append(self.tenant)

    readers = [Ended("flood") for _ in range(20)] + [Ended("small")]
    for number, reader in enumerate(readers):
        tiny_bench.engine.submit(
            Sequence(
                number,
                [65 + number] * 20,
                20,
                GREEDY,
                TextOutput([]),
                reader,
                False,
                0.0,
                tenant=reader.tenant,
            )
        )
    for reader in readers:
        await reader.ended.wait()
    assert ended.index("small") <= 4, "two slots, and their requests at its arrival"


async def test_three_tenants_with_three_sets_of_adapters_wait_within_bounds(
    bard_gguf: Path,
) -> None:
    """60 requests at once on four slots, one tenant's before the next one's. By computed tokens, no
    tenant may be ahead of a waiting one by more than a request and the contents of the slots. And a
    set of adapters waits for two turns at most."""
    bench, slots, limit = Bench(bard_gguf, slots=4, cells=4096), 4, 8
    alice = ROOT / "demo" / "alice-lora.gguf"
    sets: list[AdapterFiles] = [(), ((alice, 1.0),), ((alice, 0.5),)]
    had = dict.fromkeys("abc", 0)
    ahead: list[int] = []
    """Cost by which another tenant was ahead at the first token of a request."""

    class Counted(Reader):
        """A reader that accounts for the tokens of a tenant."""

        def __init__(self, tenant: str, prompt: int) -> None:
            super().__init__()
            self.tenant, self.prompt = tenant, prompt

        def deliver(self, text: str, end: SequenceEnd | None, generated: int) -> None:
            if self.generated == 0:
                ahead.append(max(had.values()) - had[self.tenant])
                had[self.tenant] += PREFILL_COST * self.prompt
            had[self.tenant] += TOKEN_COST * (generated - self.generated)
            super().deliver(text, end, generated)

    readers = []
    for number, tenant in enumerate("a" * 20 + "b" * 20 + "c" * 20):
        prompt = [300 + number, *range(400, 410)]
        reader = Counted(tenant, len(prompt))
        readers.append(reader)
        bench.engine.submit(
            Sequence(
                number, prompt, limit, GREEDY, TextOutput([]), reader, True, 0.0,
                tenant=tenant, wanted=sets[number % 3],
            )
        )  # fmt: skip
    for reader in readers:
        await reader.ended.wait()
        assert isinstance(reader.end, Finished)
    assert len(ahead) == 60
    assert max(ahead) <= (slots + 1) * (11 * PREFILL_COST + limit * TOKEN_COST)
    assert 0 < bench.engine.scheduler.rotation.longest <= ROTATION_STEPS * (len(sets) - 1)


async def test_a_request_that_does_not_fit_blocks_no_other(tiny_bench: Bench) -> None:
    cells = tiny_bench.engine.longest_sequence
    running, stream = tiny_bench.begin([65], limit=10_000)
    await stream.begun.wait()
    _, large = tiny_bench.begin([66] * (cells - 50), limit=1, number=1)
    _, small = tiny_bench.begin([67] * 10, limit=5, number=2)
    await small.ended.wait()
    assert large.end is None
    assert stream.end is None
    tiny_bench.engine.cancel(running)
    await large.ended.wait()


async def test_one_prompt_of_several_requests_is_read_once(bard_bench: Bench) -> None:
    model, counters = bard_bench.model, bard_bench.engine.counters
    text = "To be, or not to be, that is the question: whether it is nobler in the mind " * 20
    prompt = model.tokenize(text, add_special=True, parse_special=True)
    (alone,) = await bard_bench.generate([prompt], 10)
    bard_bench.engine.scheduler.cache.evict_all()
    before = counters.prompt_tokens
    together = await bard_bench.generate([[*prompt] for _ in range(8)], 10)
    assert counters.prompt_tokens - before < len(prompt) + 8
    assert sum(one == alone for one in together) >= 7
    endings = [model.tokenize(f" {n} king", add_special=False, parse_special=True) for n in "abcd"]
    before = counters.prompt_tokens
    bard_bench.engine.scheduler.cache.evict_all()
    await bard_bench.generate([[*prompt, *ending] for ending in endings], 10)
    assert counters.prompt_tokens - before < len(prompt) + 4 * 200


async def test_requests_cancelled_at_random_leave_nothing_behind(bard_bench: Bench) -> None:
    """Nor do they change other answers: all complete answers to one prompt are the same."""
    dice, engine = random.Random(3), bard_bench.engine
    text = "To be, or not to be, that is the question: whether it is nobler in the mind " * 4
    tokens = bard_bench.model.tokenize(text, add_special=True, parse_special=True)
    prompts = [tokens[: dice.randrange(10, len(tokens))] for _ in range(10)]
    begun = []
    for number in range(150):
        prompt = number % len(prompts)
        sequence, reader = bard_bench.begin([*prompts[prompt]], dice.randrange(1, 40), number)
        begun.append((prompt, sequence, reader))
        if dice.random() < 0.5:
            engine.cancel(dice.choice(begun)[1])
        if dice.random() < 0.2:
            await dice.choice(begun[-5:])[2].wait_for_text()
    answers: dict[int, list[list[int]]] = {}
    await bard_bench.generate([[65]], 1)
    while engine.processing or engine.deferred:
        await bard_bench.generate([[65]], 1)
    for prompt, sequence, reader in begun:
        if isinstance(reader.end, Finished):
            answers.setdefault(prompt, []).append(sequence.tokens[sequence.prompt_length :])
    scheduler, cache = engine.scheduler, engine.scheduler.cache
    assert scheduler.slots == [None] * 8
    assert (len(scheduler.waiting), scheduler.admitted) == (0, [])
    assert cache.cells.used == cache.cells.used_by(one.seq_id for one in cache.entries)
    scheduler.cache.evict_all()
    assert cache.cells.used == 0
    ids = range(bard_bench.options.n_seq_max)
    assert [engine.context.last_position(seq_id) for seq_id in ids] == [-1] * len(ids)
    agreeing = [
        one[:length] == other[:length]
        for several in answers.values()
        for one in several
        for other in several
        for length in [min(len(one), len(other))]
    ]
    assert sum(agreeing) >= 0.95 * len(agreeing), "but for rounding"
