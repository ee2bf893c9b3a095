"""Time from a worker's readiness to the first byte of the request that waits for it.

The supervisor runs in this process; the worker, `ready_worker.py`, follows the contract of
built-in workers and measures the time itself.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from bench import common
from swapd.domain.models import Catalog, LaunchSpec, ModelSpec
from swapd.process.orphans import Guardian, PidRegistry
from swapd.process.profiles import ProfileStore
from swapd.process.spawn import SpawnContext
from swapd.proxy.forward import new_session
from swapd.supervisor import Supervisor
from swapd.system.logs import Logs

WORKER = Path(__file__).with_name("ready_worker.py")


async def measure(home: Path, starts: int) -> list[float]:
    """Return the milliseconds of each start."""
    logs = Logs(home, "error", False)
    guardian = Guardian(logs.own, PidRegistry(home / "workers.json", logs.own))
    place = SpawnContext(home, guardian, {})
    catalog = Catalog({"m": ModelSpec("m", LaunchSpec((sys.executable, "-I", "-S", str(WORKER))))})
    session, found = new_session(), list[float]()
    learnings = ProfileStore(home / "learned.json", home, logs.own)
    supervisor = Supervisor(catalog, place, logs, session, lambda *_: None, learnings)
    for _ in range(starts):
        lease = await supervisor.admit("m")
        async with session.get(f"{lease.base_url}/") as answer:
            found.append(1e3 * float(await answer.text()))
        supervisor.release(lease, answered=True)
        await supervisor.unload("m")
    supervisor.close(1.0)
    await supervisor.closed.wait()
    await supervisor.end()
    await session.close()
    guardian.close()
    logs.close()
    return found


def main() -> None:
    """Run the command line."""
    parser = common.arguments(__doc__, rounds=False)
    parser.add_argument("--starts", type=int, default=200)
    given = parser.parse_args()
    conditions = common.Conditions()
    uvloop.install()
    with common.home() as home:
        found = asyncio.run(measure(home, given.starts))
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}
    figures = {name: common.percentile(found, share) for name, share in shares.items()}
    common.print_table("ms", list(figures), [list(figures.values())])
    common.print_json("readiness", conditions, {"starts": len(found), "milliseconds": figures})


if __name__ == "__main__":
    main()
