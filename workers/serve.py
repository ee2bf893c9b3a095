"""The worker process for one model: `python -m workers.serve --model X.gguf [flags]`.

Flags are llama-server's. The engine's thread loads the model while the main thread imports the
HTTP server and starts to listen, so start-up takes as long as the longer of the two.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from workers.flags import FlagError, help_text, parse
from workers.lazy_imports import skip_package_init
from workers.lifeline import Lifeline
from workers.protocol import LoadFailure, ReadyMessage

if TYPE_CHECKING:
    from workers.service import WorkerService
    from workers.settings import Settings

SWITCH_INTERVAL = 0.0005
"""Seconds until the engine, after a step, gets the interpreter lock from the event loop. At
Python's default of 5 ms a long template or body could delay every stream by half a step."""
SAVE_SECONDS = 4.0
"""Seconds from SIGTERM until the last cached sequence is written; swapd waits for 5 by default."""
LEAST_SAVE_SECONDS = 1.0
"""Seconds for the writes even after long streams: a caller that let them end waits longer."""
BAD_USAGE = 2
START_FAILED = 1
ENGINE_FAILED = 70  # EX_SOFTWARE of sysexits.h


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; return the exit status."""
    if {"-h", "--help"} & set(arguments):
        print(help_text())
        return 0
    try:
        settings = parse(arguments)
        lifeline = Lifeline.from_environment(os.environ)
    except (FlagError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_USAGE
    sys.setswitchinterval(SWITCH_INTERVAL)
    gc.disable()  # imports make no garbage; collection would take a tenth of the start-up
    lifeline.exit_with_stdin()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # there are no requests yet
    loaded: Future[WorkerService] = Future()
    threading.Thread(
        target=_run_engine, args=(settings, loaded), name="engine", daemon=True
    ).start()
    skip_package_init("aiohttp", __version__="")
    import asyncio

    return asyncio.run(_serve(settings, lifeline, loaded))


def _run_engine(settings: Settings, loaded: Future[WorkerService]) -> None:
    """Load the model, then run the engine for ever. A failure ends the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # the main thread's timer
    try:
        from workers.load import load

        worker = load(settings)
    except BaseException as error:  # noqa: BLE001  the main thread reports it
        loaded.set_exception(error)
        return
    loaded.set_result(worker)
    try:
        worker.engine.run()
    except BaseException as error:  # noqa: BLE001  a failed engine must not look idle
        import traceback

        traceback.print_exc()
        worker.engine.fail_all(f"The engine failed: {error}")


async def _serve(settings: Settings, lifeline: Lifeline, loaded: Future[WorkerService]) -> int:
    import asyncio

    from workers.api.server import WorkerServer
    from workers.heartbeat import HeartbeatSender
    from workers.service import in_thread

    server = WorkerServer(owned=lifeline.is_supervised)
    try:
        host, port = await server.listen(settings.host, settings.port)
    except OSError as error:
        return _report_failure(
            lifeline, f"cannot listen on {settings.host}:{settings.port}: {error}"
        )
    try:
        worker = await asyncio.wrap_future(loaded)
    except Exception as error:  # noqa: BLE001  reported in a sentence, and the process ends
        return _report_failure(lifeline, str(error) or repr(error))
    engine = worker.engine
    engine.attach(asyncio.get_running_loop(), on_broken=lambda: server.stop(ENGINE_FAILED))
    heartbeat = HeartbeatSender(lifeline, engine, asyncio.get_running_loop())
    heartbeat.start()
    server.serve(worker, heartbeat)
    lifeline.send(
        ReadyMessage(
            host=host,
            port=port,
            pid=os.getpid(),
            model=settings.model,
            slots=len(engine.slots),
            context=engine.longest_sequence,
            cells=engine.context.n_ctx,
            load_seconds=round(worker.load_seconds, 4),
            resumable=True,
            devices=worker.devices,
        )
    )
    await in_thread(worker.template.prepare)
    gc.freeze()  # imported objects stay, so collections can skip them
    gc.enable()
    status = await server.until_drained()
    if status == 0:
        spent = time.monotonic() - server.stopped_at
        await worker.save_cache(max(SAVE_SECONDS - spent, LEAST_SAVE_SECONDS))
    return status


def _report_failure(lifeline: Lifeline, sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    lifeline.send(LoadFailure(sentence))
    return START_FAILED


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the engine's thread never returns, and llama.cpp's teardown is not needed
