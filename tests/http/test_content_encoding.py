"""Request bodies with a Content-Encoding."""

from __future__ import annotations

import gzip
import json
import secrets
import zlib

import httpx
import pytest

from tests.daemon import Swapd, answer_text, chat, error_of

WHOLE = json.dumps(chat("bard", temperature=0, max_tokens=1)).encode()
LONG = json.dumps(
    chat("bard", temperature=0, max_tokens=1, user=secrets.token_hex(100_000))
).encode()
RAW = zlib.compressobj(wbits=-15)
RAW_WHOLE = RAW.compress(WHOLE) + RAW.flush()


def _post_encoded(both: Swapd, coding: str, body: bytes) -> httpx.Response:
    return both.http.post(
        "/v1/chat/completions", content=body, headers={"Content-Encoding": coding}
    )


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(WHOLE)),
        ("GZIP", gzip.compress(WHOLE[:9]) + gzip.compress(WHOLE[9:])),
        ("gzip", gzip.compress(LONG)),
        ("deflate", zlib.compress(WHOLE)),
        ("deflate", RAW_WHOLE),
        ("identity", WHOLE),
    ],
)
def test_an_encoded_body_is_decoded(both: Swapd, coding: str, body: bytes) -> None:
    assert answer_text(_post_encoded(both, coding, body)) == answer_text(
        both.ask("bard", temperature=0, max_tokens=1)
    )


@pytest.mark.parametrize(
    ("coding", "body", "status", "message"),
    [
        ("gzip", b"no gzip", 400, "the body is not valid gzip data"),
        ("gzip", gzip.compress(WHOLE) + b"more", 400, "the body is not valid gzip data"),
        (
            "gzip",
            gzip.compress(WHOLE)[:-8],
            400,
            "the body is truncated: its gzip data is incomplete",
        ),
        (
            "gzip",
            gzip.compress(LONG)[:-1],
            400,
            "the body is truncated: its gzip data is incomplete",
        ),
        ("deflate", zlib.compress(WHOLE)[:-4], 400, "the body is truncated: its deflate data"),
        ("gzip", gzip.compress(b"x" * 2**21), 413, "the body is larger than the limit of"),
        (
            "zstd",
            WHOLE,
            415,
            "Content-Encoding 'zstd' is not supported; supported are gzip, deflate",
        ),
    ],
)
def test_a_body_that_cannot_be_decoded_is_rejected(
    both: Swapd, coding: str, body: bytes, status: int, message: str
) -> None:
    answer = _post_encoded(both, coding, body)
    assert answer.status_code == status
    assert error_of(answer)["message"].startswith(message)
