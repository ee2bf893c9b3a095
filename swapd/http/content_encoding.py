"""A request's body, unpacked if it came packed: whole, and within the limit, or refused."""

from __future__ import annotations

import asyncio
import zlib

from aiohttp import hdrs, web

GZIP = 16 + zlib.MAX_WBITS
BITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}
"""How zlib is told of each coding."""
KNOWN = "gzip, deflate"
AT_ONCE = 16384
"""Bytes that are unpacked where they are; more in a thread, past which others are served."""
DEFLATE_METHOD = 8


class ContentEncodingError(Exception):
    """The body is not what its Content-Encoding says; what to tell the client."""


class UnsupportedEncodingError(Exception):
    """The body is packed in a way that is not known here; what to tell the client."""


async def read_body(request: web.Request, limit: int) -> bytes:
    """The body as its sender meant it.

    Raises UnknownPackingError, BadPackingError, and HTTPRequestEntityTooLarge.
    """
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if coding in ("", "identity"):
        return await request.read()
    if coding not in BITS:
        raise UnsupportedEncodingError(f"Content-Encoding {coding[:40]!r} is none of {KNOWN}")
    packed = await request.read()
    if len(packed) <= AT_ONCE:
        body = decompressed(packed, coding, limit)
    else:
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(None, decompressed, packed, coding, limit)
    if len(body) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, len(body))
    return body


def decompressed(packed: bytes, coding: str, limit: int) -> bytes:
    """All of it, or one byte more than the limit. Raises BadPackingError if it is not whole."""
    bits, parts, room = BITS[coding], [], limit + 1
    if coding == "deflate" and packed and packed[0] & 0xF != DEFLATE_METHOD:
        bits = -zlib.MAX_WBITS  # without the head that it should have: many send it so
    while packed and room:
        member = zlib.decompressobj(bits)
        try:
            parts.append(member.decompress(packed, room))
        except zlib.error as error:
            raise ContentEncodingError(f"the body is no proper {coding}") from error
        room -= len(parts[-1])
        if room and not member.eof:
            raise ContentEncodingError(f"the body is not whole: its {coding} breaks off")
        packed = member.unused_data
    return b"".join(parts)
