"""What each refusal looks like to a client: status, type, code, and when to come again."""

from __future__ import annotations

import msgspec
import pytest

from swapd.domain.commands import Refuse, Why
from swapd.http.errors import of_refusal

TOLD = {
    Why.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found"),
    Why.QUEUE_FULL: (429, "rate_limit_error", "queue_full"),
    Why.TENANT_FULL: (429, "rate_limit_error", "tenant_queue_full"),
    Why.OVERLOADED: (503, "overloaded_error", "overloaded"),
    Why.START_FAILED: (503, "unavailable_error", "model_start_failed"),
    Why.TOO_LARGE: (503, "unavailable_error", "model_too_large"),
    Why.NO_ROOM: (503, "unavailable_error", "no_room"),
    Why.CLOSING: (503, "unavailable_error", "shutting_down"),
    Why.WORKER_FAILED: (502, "upstream_error", "worker_failed"),
    Why.POISON: (500, "poison_error", "request_ends_its_worker"),
}


@pytest.mark.parametrize("why", Why)
@pytest.mark.parametrize(("seconds", "header"), [(0.0, None), (0.2, "1"), (7.0, "7"), (7.1, "8")])
def test_a_refusal_has_its_status_type_and_time(
    why: Why, seconds: float, header: str | None
) -> None:
    answer = of_refusal(Refuse(1, why, "so it is", seconds))
    assert isinstance(answer.body, bytes)
    error = msgspec.json.decode(answer.body)["error"]
    assert (answer.status, error["type"], error["code"]) == TOLD[why]
    assert error["message"] == "so it is"
    assert error["param"] == ("model" if why is Why.UNKNOWN_MODEL else None)
    assert answer.headers.get("Retry-After") == header
