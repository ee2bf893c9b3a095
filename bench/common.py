"""Shared parts of all benchmarks: conditions of the run, medians, tables, the line of JSON."""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import psutil

ROOT = Path(__file__).resolve().parent.parent
BARD = ROOT / "demo" / "bard.gguf"
ALICE = ROOT / "demo" / "alice.gguf"
LEAST_ROUNDS = 5
"""Fewer and a median means nothing on a noisy machine."""
THREADS = 2
"""Threads of llama.cpp, on both sides: more than the cores would only spin."""
OTHERS = 0.15
"""Cores' worth of other people's work during a run from which its figures are marked as void."""


class Conditions:
    """Conditions of a run: created before the first measurement, reported after the last.

    The load average is not enough: it lags, and includes the measured processes. So the CPU time of
    the whole machine is taken, less that of this process and of its child processes.
    """

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._began = time.perf_counter()
        self._used = _busy_seconds() - _own_seconds()

    def report(self) -> dict[str, Any]:
        """Return the conditions; `void` when other processes used the cores.

        Call it after all child processes have been waited for.
        """
        others = (_busy_seconds() - _own_seconds() - self._used) / (
            time.perf_counter() - self._began
        )
        return {
            "date": date.today().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "load_before": self._load,
            "load_after": os.getloadavg()[0],
            "others_cores": others,
            "void": others > OTHERS,
        }


def _busy_seconds() -> float:
    """CPU seconds that all cores have been busy, or taken away by the machine below."""
    times = psutil.cpu_times()._asdict()
    # A guest's time is counted as its host process's already.
    passive = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(spent for name, spent in times.items() if name not in passive))


def _own_seconds() -> float:
    """CPU seconds of this process and of its children that have ended, with theirs."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def arguments(
    text: str | None, *, rounds: bool = True, peer: bool = False
) -> argparse.ArgumentParser:
    """Return a command line with the options of all benchmarks."""
    summary = (text or "").strip().partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    if rounds:
        parser.add_argument(
            "--rounds", type=int, default=LEAST_ROUNDS, help=f"at least {LEAST_ROUNDS} for a median"
        )
    if peer:
        parser.add_argument(
            "--peer-python",
            default=sys.executable,
            metavar="PATH",
            help="a Python that has xllamacpp; default: this one",
        )
    return parser


@contextmanager
def home() -> Iterator[Path]:
    """Yield a temporary data directory."""
    with tempfile.TemporaryDirectory(prefix="swapd-bench-") as folder:
        yield Path(folder)


def settle(seconds: float = 0.5) -> None:
    """Wait until the last measured process is idle: its threads spin for a while."""
    time.sleep(seconds)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far: in nanoseconds on Linux, in ticks elsewhere."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    total = 0
    for task in tasks.iterdir():
        with suppress(OSError):  # A thread may end meanwhile.
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def median(values: Sequence[float]) -> float:
    """Return the median; NaN without values."""
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` (0 to 1) of all do not exceed; NaN without values."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(figure: float, other: float) -> float:
    """Return swapd's figure divided by the peer's; NaN without a peer."""
    return figure / other if other else float("nan")


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns of minimal width: the first aligned left, figures aligned right."""
    cells = [[_shown(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}\n")
    for number, row in enumerate(cells):
        first, *rest = (
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]))
        if number == 0:
            print("  ".join("-" * width for width in widths))
    sys.stdout.flush()


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        if math.isnan(cell):
            return "–"
        return f"{cell:.3g}" if abs(cell) < 100 else f"{cell:,.0f}"
    return str(cell)


def print_json(name: str, conditions: Conditions, result: dict[str, Any]) -> None:
    """Print the last line: all figures and the conditions of the run, as JSON."""
    report = conditions.report()
    if report["void"]:
        busy = f"{report['others_cores']:.1f} cores"
        print(f"\nSomebody else was using {busy} of the machine: these figures are void.")
    line = {"bench": name, **report, **result}
    print(f"\n{msgspec.json.encode(_rounded(line)).decode()}", flush=True)


def _rounded(value: Any) -> Any:
    """Round to four significant digits, more than the noise allows; NaN becomes null."""
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.4g}")
    if isinstance(value, dict):
        return {str(key): _rounded(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(part) for part in value]
    return value


def note(text: str) -> None:
    """Print the progress on standard error."""
    print(f"… {text}", file=sys.stderr, flush=True)


def give_up(text: str) -> NoReturn:
    """Exit with one sentence."""
    raise SystemExit(f"bench: {text}")
