"""Short chaos run; `python -m tests.faults.chaos --seconds 3600` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import chaos
from tests.faults.chaos_clients import EXTERNAL, Plan, Question, Tally, _outcome


@pytest.mark.timeout(300)
def test_the_tally_balances_under_all_faults(tmp_path: Path) -> None:
    outcome = chaos(tmp_path, seconds=12, seed=1)
    assert outcome.faults() == [], f"{outcome}\n{outcome.log[-4000:]}"
    assert outcome.tally.count("answered") > 20
    assert sum(outcome.thrown.values()) > 10


def test_the_tally_detects_wrong_answers() -> None:
    tally = Tally()
    plan = Plan(Question(EXTERNAL, 0, 2), 1, True, "read", 0)
    whole = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n'
    right = whole % b"external0 external1 "
    for data in (right, right + whole % b"external1 ", b""):
        tally.count_end(plan, *_outcome(data + b"data: [DONE]\n\n", True, "external"))
    assert len(tally.wrong) == 2
    tally.count_end(plan, *_outcome(right, True, "external"))
    error = b'data: {"error": {"code": "worker_failed"}}\n\n'
    tally.count_end(plan, *_outcome(right + error, True, "builtin"))
    assert dict(tally.ends) == {
        "answered": 3,
        "ended early (external)": 1,
        "broken off (builtin, worker_failed)": 1,
    }
