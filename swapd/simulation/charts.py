"""Charts of runs: how long requests waited, and who was in memory when."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from swapd.simulation.machine import Outcome
from swapd.simulation.report import waits

LOADED, LOADING, LEAVING = "#4c9f70", "#e08e45", "#9a9a9a"


class NoChartsError(Exception):
    """matplotlib is not installed."""


def draw(folder: Path, trace: str, outcomes: Mapping[str, Outcome]) -> list[Path]:
    """Write the charts of one trace: one of all waits, one of residency for each policy."""
    plots = _matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    files = [_waits(plots, folder / f"{trace}-waits.png", trace, outcomes)]
    for policy, outcome in outcomes.items():
        file = folder / f"{trace}-{policy}.png"
        files.append(_residency(plots, file, f"{trace}, {policy}", outcome))
    return files


def _matplotlib() -> Any:
    try:
        library = import_module("matplotlib")
    except ImportError:
        raise NoChartsError(
            "charts need matplotlib, which is not installed: pip install 'swapd[charts]'"
        ) from None
    library.use("Agg")
    return import_module("matplotlib.pyplot")


def _waits(plots: Any, file: Path, trace: str, outcomes: Mapping[str, Outcome]) -> Path:
    figure, axes = plots.subplots(figsize=(8, 4.5), layout="constrained")
    for policy, outcome in outcomes.items():
        waited = sorted(waits(outcome))
        longer = [100 * (1 - i / len(waited)) for i in range(len(waited))]
        axes.step([max(w, 0.01) for w in waited], longer, where="pre", label=policy)
    axes.set(xscale="log", yscale="log", title=trace)
    axes.set(xlabel="seconds", ylabel="% of requests that waited so long or longer")
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(plots, figure, file)


def _residency(plots: Any, file: Path, title: str, outcome: Outcome) -> Path:
    models = sorted({stay.model for stay in outcome.stays})
    height = 1.2 + 0.28 * len(models)
    figure, axes = plots.subplots(figsize=(11, height), layout="constrained")
    for stay in outcome.stays:
        gone = stay.gone if stay.gone is not None else outcome.end
        stopped = stay.stopped if stay.stopped is not None else gone
        up = stay.up if stay.up is not None else stopped
        parts = ((stay.started, up, LOADING), (up, stopped, LOADED), (stopped, gone, LEAVING))
        for start, end, colour in parts:
            bar = [(start / 3600, (end - start) / 3600)]
            axes.broken_barh(bar, (models.index(stay.model) - 0.4, 0.8), facecolors=colour)
    axes.set(xlabel="hours", title=title, yticks=range(len(models)))
    axes.set_yticklabels(models)
    names = {"loading": LOADING, "loaded": LOADED, "leaving": LEAVING}
    handles = [plots.Rectangle((0, 0), 1, 1, color=colour) for colour in names.values()]
    figure.legend(handles, names.keys(), loc="outside lower center", ncols=3)
    return _save(plots, figure, file)


def _save(plots: Any, figure: Any, file: Path) -> Path:
    figure.savefig(file, dpi=120)
    plots.close(figure)
    return file
