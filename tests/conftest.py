"""Options and hooks of the whole suite."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

from tests.fixtures import both, gate, home

__all__ = ["both", "gate", "home"]

AT_ONCE = 4
"""Processes that run tests, at most: each has its own shared workers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the nightly-size profiles too")


def pytest_configure() -> None:
    """Prepare signals and Hypothesis.

    A background job of a shell and nohup have some signals ignored, and all processes of a test
    would inherit that; a handled signal, even with an empty handler, is not inherited.

    The time of a Hypothesis example depends on the machine, so it has no deadline.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    settings.register_profile("patient", parent=settings(), deadline=None)
    settings.load_profile("patient")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="a nightly-size profile; use --long"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the processes for `-n auto`. The measurements of the long profiles need one."""
    return 0 if config.getoption("--long") else min(os.cpu_count() or 1, AT_ONCE)
