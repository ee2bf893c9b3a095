"""One request through to a worker and its answer back, streamed byte for byte."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that speak of one connection only (RFC 9110, section 7.6.1)."""

CONNECT_WITHIN = 5.0
KEPT_FOR = 3.0
"""An idle connection is closed before a worker would do so (llama-server: 5 s): a request sent
into a connection that the other end is just closing can't be told from one that was lost."""
FAILURES = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
NEVER = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_WITHIN)
"""An answer may take as long as it takes: a long prefill is not a fault."""


TAIL = 2048
"""Bytes at the end of an answer in which its usage stands."""
TOTAL = re.compile(rb'"total_tokens":\s*(\d{1,12})')
PROMPT_N = re.compile(rb'"prompt_n":\s*(\d{1,12})')
PREDICTED_N = re.compile(rb'"predicted_n":\s*(\d{1,12})')


class Answer(NamedTuple):
    """A whole answer as the client got it, and the tokens that it tells of."""

    response: web.StreamResponse
    tokens: int


class WorkerFailedError(Exception):
    """The worker's answer did not come, or broke off.

    `begun` is the answer to the client as far as it has been sent, None before its first byte.
    """

    def __init__(self, message: str, begun: web.StreamResponse | None) -> None:
        super().__init__(message)
        self.begun = begun


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that are meant for the other end: hop-by-hop ones are left out."""
    named = ",".join(headers.getall("Connection", ())).split(",")
    drop = HOP_BY_HOP | {name.strip().lower() for name in named}
    return CIMultiDict((k, v) for k, v in headers.items() if k.lower() not in drop)


def new_session() -> aiohttp.ClientSession:
    """A client for all workers: no limit but the grants, nothing unpacked, nothing remembered."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_FOR),
        timeout=NEVER,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


async def forward(
    session: aiohttp.ClientSession,
    request: web.Request,
    url: str,
    body: bytes,
    added: Mapping[str, str],
    withheld: str = "",
) -> Answer:
    """Send `request` with `body` to `url` and stream the answer to the client as it comes.

    `added` are headers that the answer gets on top; `withheld` is one of the request that is no
    business of the worker's. Raises WorkerFailedError when the worker
    fails, ConnectionResetError when the client has gone. However it ends, the connection to the
    worker is closed unless its answer is complete, so that the worker stops working on it.
    """
    headers = end_to_end(request.headers)
    # The body was unpacked on its way in, if it was packed.
    for name in ("Host", "Content-Length", "Expect", "Content-Encoding", withheld):
        headers.popall(name, None)
    try:
        answer = await session.request(
            request.method,
            URL(url, encoded=True),
            data=body or None,
            headers=headers,
            allow_redirects=False,
        )
    except FAILURES as error:
        raise WorkerFailedError(_told(error), None) from error
    async with answer:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        response.headers.extend(end_to_end(answer.headers))
        response.headers.update(added)
        await response.prepare(request)
        tail = b""
        while chunk := await _next_chunk(answer, response):
            await response.write(chunk)
            tail = (tail + chunk)[-TAIL:]
        await response.write_eof()
        return Answer(response, tokens_told(tail))


def tokens_told(tail: bytes) -> int:
    """Tokens read and written, by the end of an answer; 0 when it does not tell.

    From OpenAI's `usage`, or from the `timings` that llama-server and our worker put there.
    """
    if found := TOTAL.search(tail):
        return int(found[1])
    prompt, predicted = PROMPT_N.search(tail), PREDICTED_N.search(tail)
    return (int(prompt[1]) if prompt else 0) + (int(predicted[1]) if predicted else 0)


async def _next_chunk(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> bytes:
    """What has come since the last call, at once; empty at the answer's proper end."""
    try:
        return await answer.content.readany()
    except FAILURES as error:
        raise WorkerFailedError(_told(error), response) from error


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
