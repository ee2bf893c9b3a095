"""A supervised worker rejects requests from web pages."""

from __future__ import annotations

import pytest

from tests.workers.process import WorkerProcess


def status_of(worker: WorkerProcess, headers: dict[str, str]) -> int:
    connection = worker.connect()
    try:
        connection.request("GET", "/v1/models", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "localhost.evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
    ids=str,
)
def test_a_request_from_a_web_page_is_rejected(
    tiny: WorkerProcess, headers: dict[str, str]
) -> None:
    assert status_of(tiny, headers) == 403


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost", "LocalHost:80", "[::1]:8080"])
def test_a_request_by_address_is_accepted(tiny: WorkerProcess, host: str) -> None:
    assert status_of(tiny, {"Host": host}) == 200
