"""Minimal proxy with aiohttp: the cost of its server and its client alone.

In the same run as swapd, it separates swapd's share from the library's.
"""

from __future__ import annotations

import argparse
import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web

from bench.processes import free_port


async def serve(upstream: str) -> None:
    """Serve until standard input ends."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def forward(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        async with session.request(request.method, upstream + request.path, data=body) as answer:
            response = web.StreamResponse(status=answer.status)
            for name in ("Content-Type", "Content-Length"):
                if name in answer.headers:
                    response.headers[name] = answer.headers[name]
            await response.prepare(request)
            while piece := await answer.content.readany():
                await response.write(piece)
            await response.write_eof()
            return response

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print(f'{{"url": "http://127.0.0.1:{port}"}}', flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    await runner.cleanup()
    await session.close()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="The least that a proxy of aiohttp can be.")
    parser.add_argument("upstream", help="where to send everything")
    given = parser.parse_args()
    uvloop.install()
    asyncio.run(serve(given.upstream))


if __name__ == "__main__":
    main()
