"""Responses to rejected requests: status, type, code, and time of a retry."""

from __future__ import annotations

import msgspec
import pytest

from swapd.domain.commands import Reject, RejectReason
from swapd.http.errors import rejection_response

RESPONSES = {
    RejectReason.UNKNOWN_MODEL: (404, "invalid_request_error", "model_not_found"),
    RejectReason.QUEUE_FULL: (429, "rate_limit_error", "queue_full"),
    RejectReason.TENANT_FULL: (429, "rate_limit_error", "tenant_queue_full"),
    RejectReason.OVERLOADED: (503, "overloaded_error", "overloaded"),
    RejectReason.START_FAILED: (503, "unavailable_error", "model_start_failed"),
    RejectReason.TOO_LARGE: (503, "unavailable_error", "model_too_large"),
    RejectReason.INSUFFICIENT_MEMORY: (503, "unavailable_error", "insufficient_memory"),
    RejectReason.CLOSING: (503, "unavailable_error", "shutting_down"),
    RejectReason.WORKER_FAILED: (502, "upstream_error", "worker_failed"),
    RejectReason.POISON: (500, "poison_error", "poison_request"),
}


@pytest.mark.parametrize("reason", RejectReason)
@pytest.mark.parametrize(("seconds", "header"), [(0.0, None), (0.2, "1"), (7.0, "7"), (7.1, "8")])
def test_a_rejection_has_its_status_type_code_and_retry_time(
    reason: RejectReason, seconds: float, header: str | None
) -> None:
    answer = rejection_response(Reject(1, reason, "the message", seconds))
    assert isinstance(answer.body, bytes)
    error = msgspec.json.decode(answer.body)["error"]
    assert (answer.status, error["type"], error["code"]) == RESPONSES[reason]
    assert error["message"] == "the message"
    assert error["param"] == ("model" if reason is RejectReason.UNKNOWN_MODEL else None)
    assert answer.headers.get("Retry-After") == header
