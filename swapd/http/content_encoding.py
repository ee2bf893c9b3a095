"""Request bodies: decompressed within the size limit, and single fields of them."""

from __future__ import annotations

import asyncio
import zlib

import msgspec
from aiohttp import hdrs, web

GZIP = 16 + zlib.MAX_WBITS
WINDOW_BITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}
"""`wbits` argument of zlib for each content coding."""
SUPPORTED = "gzip, deflate"
MAX_INLINE_BYTES = 16384
"""Compressed bytes that are decompressed on the event loop; larger bodies use a thread, so that
other requests are not delayed."""
DEFLATE_METHOD = 8
MAX_MEMBERS = 64
"""Members of a gzip body. Clients send one; each costs time also when it is empty."""
CHUNK_BYTES = 65536
"""Compressed bytes per call of zlib, which copies the part of its input behind a member's end."""


class ContentEncodingError(Exception):
    """The body is not valid for its Content-Encoding; the message is for the client."""


class UnsupportedEncodingError(Exception):
    """The Content-Encoding is not supported; the message is for the client."""


async def read_body(request: web.Request, limit: int) -> bytes:
    """Read the request's body and decompress it.

    Raises UnsupportedEncodingError, ContentEncodingError, and HTTPRequestEntityTooLarge.
    """
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if coding in ("", "identity"):
        return await request.read()
    if coding not in WINDOW_BITS:
        raise UnsupportedEncodingError(
            f"Content-Encoding {coding[:40]!r} is not supported; supported are {SUPPORTED}"
        )
    compressed = await request.read()
    if len(compressed) <= MAX_INLINE_BYTES:
        body = decompressed(compressed, coding, limit)
    else:
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(None, decompressed, compressed, coding, limit)
    if len(body) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, len(body))
    return body


def decompressed(data: bytes, coding: str, limit: int) -> bytes:
    """Return the decompressed data, but at most `limit` + 1 bytes. Raises ContentEncodingError."""
    bits, parts, left = WINDOW_BITS[coding], [], limit + 1
    if coding == "deflate" and data and data[0] & 0xF != DEFLATE_METHOD:
        # Raw deflate data without the zlib header, which many clients send.
        bits = -zlib.MAX_WBITS
    # A gzip body may consist of several members.
    position, members = 0, 0
    while position < len(data) and left:
        members += 1
        if members > MAX_MEMBERS:
            raise ContentEncodingError(f"the body has more than {MAX_MEMBERS} {coding} members")
        member = zlib.decompressobj(bits)
        while left and not member.eof:
            chunk = member.unconsumed_tail or data[position : position + CHUNK_BYTES]
            if not chunk:
                message = f"the body is truncated: its {coding} data is incomplete"
                raise ContentEncodingError(message)
            if not member.unconsumed_tail:
                position += len(chunk)
            try:
                parts.append(member.decompress(chunk, left))
            except zlib.error as error:
                raise ContentEncodingError(f"the body is not valid {coding} data") from error
            left -= len(parts[-1])
        position -= len(member.unused_data)
    return b"".join(parts)


def json_text(value: msgspec.Raw) -> str | None:
    """Return the text of a JSON string; None for any other value, which is not decoded."""
    encoded = bytes(value)
    return msgspec.json.decode(encoded, type=str) if encoded[:1] == b'"' else None
