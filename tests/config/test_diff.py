"""Difference of two configurations, as a reload reports it."""

from __future__ import annotations

from swapd.config.diff import diff
from tests.config.reading import read

OLD = read(
    "models:\n  a: {cmd: 'x ${PORT}'}\n  b: {cmd: 'y ${PORT}'}\n  c: {cmd: 'z ${PORT}'}"
).catalog
NEW = read(
    "max_resident: 1\nmodels:\n  b: {cmd: 'y ${PORT}', ttl: 3}\n  c: {cmd: 'z2 ${PORT}'}\n"
    "  d: {cmd: 'x ${PORT}'}"
).catalog


def test_each_kind_of_change_is_listed() -> None:
    changes = diff(OLD, NEW)
    assert (changes.added, changes.removed) == (("d",), ("a",))
    assert (changes.restarted, changes.adjusted, changes.limits) == (("c",), ("b",), True)
    assert str(changes) == "added d; removed a; restarted c; adjusted b; limits changed"


def test_equal_configurations_have_no_difference() -> None:
    assert str(diff(NEW, NEW)) == "nothing changed"
