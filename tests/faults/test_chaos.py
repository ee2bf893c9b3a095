"""The chaos run, short: `python -m tests.faults.chaos --seconds 3600` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import chaos
from tests.faults.chaos_clients import FOREIGN, Books, Plan, Question, _judged


@pytest.mark.timeout(300)
def test_the_books_balance_whatever_is_thrown_at_it(tmp_path: Path) -> None:
    outcome = chaos(tmp_path, seconds=12, seed=1)
    assert outcome.faults() == [], f"{outcome}\n{outcome.log[-4000:]}"
    assert outcome.books.count("answered") > 20
    assert sum(outcome.thrown.values()) > 10


def test_the_books_notice_what_is_wrong() -> None:
    books = Books()
    plan = Plan(Question(FOREIGN, 0, 2), 1, True, "read", 0)
    whole = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n'
    right = whole % b"foreign0 foreign1 "
    for data in (right, right + whole % b"foreign1 ", b""):
        books.enter(plan, *_judged(data + b"data: [DONE]\n\n", True, "foreign"))
    assert len(books.wrong) == 2
    books.enter(plan, *_judged(right, True, "foreign"))
    error = b'data: {"error": {"code": "worker_failed"}}\n\n'
    books.enter(plan, *_judged(right + error, True, "ours"))
    assert dict(books.ends) == {
        "answered": 3,
        "ended early (foreign)": 1,
        "broken off (ours, worker_failed)": 1,
    }
