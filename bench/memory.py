"""Estimated and actual memory of workers: proportional set size, in MiB.

For each model and each set of flags: the estimate from metadata and flags, the size when ready,
and the peak after a short and a long prompt, which is the measurement that swapd stores.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from bench import common, generate
from bench.client import Connection
from bench.processes import Started
from swapd.domain.models import LaunchSpec, ModelSpec
from swapd.gguf.memory_estimate import estimate_spec
from swapd.process.memory import bytes_held

WAYS = (
    ("--ctx-size", "1024", "--parallel", "1"),
    ("--ctx-size", "8192", "--parallel", "1"),
    ("--ctx-size", "8192", "--parallel", "8"),
    ("--ctx-size", "8192", "--parallel", "1", "-ctk", "q8_0", "-ctv", "q8_0"),
)
MIB = 2**20


async def measure(path: Path, flags: tuple[str, ...]) -> tuple[float, float, float]:
    """Estimated, held when ready, most held."""
    argv = [sys.executable, "-m", "workers.serve", "--model", str(path), *flags]
    expected = estimate_spec(ModelSpec("m", LaunchSpec(tuple(argv))), common.ROOT)
    worker = Started(
        [*argv, "--port", "0"], os.environ, common.ROOT, ready_option="SWAPD_READY_FD={fd}"
    )
    try:
        ready = most = bytes_held(worker.pid)
        for words in (40, 800):
            connection = await Connection.open(f"http://127.0.0.1:{worker.word['port']}")
            body: dict[str, Any] = {"prompt": "who goes there? " * (words // 4), "max_tokens": 8}
            await connection.send("/v1/completions", msgspec.json.encode({**body, "stream": True}))
            connection.close()
            most = max(most, bytes_held(worker.pid))
    finally:
        worker.stop()
    return expected / MIB, ready / MIB, most / MIB


def main() -> None:
    """Run the command line."""
    parser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--sizes", type=int, nargs="*", default=[60], metavar="MB")
    given = parser.parse_args()
    conditions, rows = common.Conditions(), []
    paths = [common.BARD, common.ALICE, *(generate.model(size) for size in given.sizes)]
    for path in paths:
        for flags in WAYS:
            expected, ready, most = asyncio.run(measure(path, flags))
            rows.append([path.stem, " ".join(flags), expected, ready, most, expected / most])
    heads = ["model", "flags", "estimate", "when ready", "most", "estimate / most"]
    common.print_table("MiB", heads, rows)
    common.print_json("memory", conditions, {"rows": rows})


if __name__ == "__main__":
    main()
