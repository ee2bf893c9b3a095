"""One process, one model: `python -m workers.serve --model X.gguf [llama-server's flags]`.

The model loads in the engine's thread while this one imports the HTTP server and starts to
listen: together they take as long as the longer of the two.
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
from workers.protocol import LoadError, ReadyMessage

if TYPE_CHECKING:
    from workers.service import WorkerService
    from workers.settings import Settings

SWITCH_INTERVAL = 0.0005
"""Seconds until the engine, coming out of a step, gets the interpreter from the event loop. At
Python's own 5 ms a long template or body could stall every stream by half a step."""
SAVE_SECONDS = 4.0
"""From SIGTERM until the last kept sequence is written; swapd waits for 5 unless told otherwise."""
LEAST_SAVE_SECONDS = 1.0
"""For that, however long the last streams took: who let them end has more patience."""
BAD_USAGE = 2
NEVER_CAME_UP = 1
BROKE = 70  # EX_SOFTWARE of sysexits.h


def main(arguments: list[str]) -> int:
    """Serves until told to stop; returns the exit status."""
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
    gc.disable()  # importing makes many objects and no garbage: a tenth of the start-up
    lifeline.exit_with_stdin()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # nothing is being served yet
    loaded: Future[WorkerService] = Future()
    threading.Thread(
        target=_run_engine, args=(settings, loaded), name="engine", daemon=True
    ).start()
    skip_package_init("aiohttp", __version__="")
    import asyncio

    return asyncio.run(_serve(settings, lifeline, loaded))


def _run_engine(settings: Settings, loaded: Future[WorkerService]) -> None:
    """The engine's thread: loads, then steps for ever. Its failure is the process's."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # that is for the other thread
    try:
        from workers.load import load

        worker = load(settings)
    except BaseException as error:  # noqa: BLE001  whatever it is, the main thread tells it
        loaded.set_exception(error)
        return
    loaded.set_result(worker)
    try:
        worker.engine.run()
    except BaseException as error:  # noqa: BLE001  a dead engine must not look like an idle one
        import traceback

        traceback.print_exc()
        worker.engine.give_up(f"The engine broke: {error}")


async def _serve(settings: Settings, lifeline: Lifeline, loaded: Future[WorkerService]) -> int:
    import asyncio

    from workers.api.server import WorkerServer
    from workers.heartbeat import HeartbeatSender
    from workers.service import in_thread

    server = WorkerServer(owned=lifeline.is_supervised)
    try:
        host, port = await server.listen(settings.host, settings.port)
    except OSError as error:
        return _give_up(lifeline, f"cannot listen on {settings.host}:{settings.port}: {error}")
    try:
        worker = await asyncio.wrap_future(loaded)
    except Exception as error:  # noqa: BLE001  told in a sentence, and the process ends
        return _give_up(lifeline, str(error) or repr(error))
    engine = worker.engine
    engine.attach(asyncio.get_running_loop(), on_broken=lambda: server.stop(BROKE))
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
            cells=engine.lane.context.n_ctx,
            load_seconds=round(worker.load_seconds, 4),
            resumable=True,
            devices=worker.devices,
        )
    )
    await in_thread(worker.template.prepare)
    gc.freeze()  # what was imported stays: no collection need look at it
    gc.enable()
    status = await server.until_drained()
    if status == 0:
        spent = time.monotonic() - server.stopped_at
        await worker.save_kept(max(SAVE_SECONDS - spent, LEAST_SAVE_SECONDS))
    return status


def _give_up(lifeline: Lifeline, sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    lifeline.send(LoadError(sentence))
    return NEVER_CAME_UP


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the engine's thread never returns, and llama.cpp's teardown has no use
