"""The daemon: what `serve` runs, in the foreground, from the first lock to the last worker.

Started as `python -m swapd.daemon`, which spares it the imports of the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import sys
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import msgspec
import uvloop

from swapd.config.env import read_env
from swapd.config.errors import ConfigError
from swapd.config.load import LoadedConfig, load
from swapd.domain.settings import ServerSettings
from swapd.http.context import AppContext
from swapd.http.origins import risks
from swapd.http.tls import TlsError, new_context
from swapd.library.auto_sync import AutoSync, auto_sync_for
from swapd.listeners import Listeners, PortTakenError, listen
from swapd.metrics import Metrics
from swapd.paths import SPARE_COMMAND, WORKER_COMMAND, Paths, find_paths
from swapd.process import memory
from swapd.process.orphans import Guardian, PidRegistry, kill_orphans
from swapd.process.profiles import ProfileStore
from swapd.process.spawn import SpawnContext, WarmStandby, worker_environment
from swapd.proxy.forward import new_session
from swapd.supervisor import Supervisor
from swapd.system.aio import wall
from swapd.system.file_watcher import FileWatch
from swapd.system.lockfile import InstanceLock, LockHeldError
from swapd.system.logs import Logs
from swapd.system.memory_trim import MemoryTrimmer
from swapd.system.sd_notify import READY, STOPPING, SystemdNotifier
from swapd.system.stdio import hold_standard_descriptors

SWITCH_INTERVAL = 0.0005
"""Seconds until a thread that looks through processes lets the event loop go on; Python's own 5 ms
would be several tokens' time."""
SPARE_FROM_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """What the command line says; it beats the environment, which beats the file."""

    home: Paths
    config: Path
    host: str = ""
    port: int = 0
    ready_fd: int = -1


class CannotServeError(Exception):
    """Why the daemon does not start: one sentence."""


def parse(argv: list[str]) -> DaemonOptions:
    """Options from the daemon's own arguments."""
    parser = argparse.ArgumentParser(prog="swapd serve")
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    home = find_paths()
    config: Path = given.config.absolute() if given.config else home.config
    return DaemonOptions(home, config, given.host, given.port, given.ready_fd)


def configure(options: DaemonOptions) -> LoadedConfig:
    """The configuration with the command line's wishes over it. Raises ConfigError."""
    env = read_env(options.home.folder, os.environ)
    loaded = load(options.config, env, worker_command=WORKER_COMMAND, total_memory=memory.total())
    settings = loaded.settings
    if options.host:
        settings = replace(settings, host=options.host)
    if options.port:
        settings = replace(settings, port=options.port)
    return replace(loaded, settings=settings)


def endpoint_of(settings: ServerSettings) -> str:
    """The address at which a client on this machine reaches the server."""
    host = settings.host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    scheme = "https" if settings.tls.cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def uses_warm_standby(settings: ServerSettings) -> bool:
    """Whether to keep a spare worker: as configured, else where its memory is not missed."""
    enough = memory.total() >= SPARE_FROM_BYTES
    return enough if settings.warm_standby is None else settings.warm_standby


def main(argv: list[str] | None = None) -> int:
    """Serve until told to end; the exit status."""
    hold_standard_descriptors()
    options = parse(sys.argv[1:] if argv is None else argv)
    tell = _Teller(options.ready_fd)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        return _run(options, tell)
    except CannotServeError as error:
        print(f"swapd: {error}", file=sys.stderr, flush=True)
        tell({"error": str(error)})
        return 1


class _Teller:
    """Says how the start went to whoever waits for it, if anybody does."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, word: dict[str, object]) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, msgspec.json.encode(word) + b"\n")
        except BrokenPipeError:
            # Whoever asked has not waited; the log says it all the same.
            logging.getLogger(__name__).debug("nobody waits for the word %s", word)
        os.close(self._fd)
        self._fd = -1


def _run(options: DaemonOptions, tell: _Teller) -> int:
    try:
        lock = InstanceLock(options.home.state)
    except LockHeldError as error:
        where = f" at {error.holder.endpoint}" if error.holder else ""
        raise CannotServeError(f"{error}{where} for {options.home.folder}") from error
    except OSError as error:
        raise CannotServeError(f"can't write in {options.home.state}: {error.strerror}") from error
    try:
        loaded = configure(options)
        files = loaded.settings.tls
        tls = new_context(files.cert, files.key) if files.cert else None
        sock = listen(loaded.settings.host, loaded.settings.port)
    except ConfigError as error:
        lock.retire()
        raise CannotServeError(f"the configuration can't be used:\n{error}") from error
    except (PortTakenError, TlsError) as error:
        lock.retire()
        raise CannotServeError(str(error)) from error
    logs = Logs(options.home.logs, loaded.settings.log_level, options.ready_fd < 0)
    register = options.home.state / "workers.json"
    kill_orphans(register, logs.own)
    guardian = Guardian(logs.own, PidRegistry(register, logs.own))
    try:
        daemon = Daemon(options, loaded, logs, guardian, lock)
        if sys.version_info >= (3, 11):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(daemon.run(sock, tls, tell))
        else:
            uvloop.install()
            asyncio.run(daemon.run(sock, tls, tell))
    finally:
        guardian.dismiss()
        lock.retire()
        logs.close()
    return 0


class Daemon:
    """One running swapd."""

    def __init__(
        self,
        options: DaemonOptions,
        loaded: LoadedConfig,
        logs: Logs,
        guardian: Guardian,
        lock: InstanceLock,
    ) -> None:
        self._options = options
        self._loaded = loaded
        self._logs = logs
        self._log = logs.own
        self._guardian = guardian
        self._lock = lock
        self._notify = SystemdNotifier(self._log)

    async def run(self, sock: socket.socket, tls: ssl.SSLContext | None, tell: _Teller) -> None:
        """Serve on `sock` until a signal ends it and everything has drained."""
        settings = self._loaded.settings
        environ = worker_environment(os.environ, settings.pass_env)
        place = SpawnContext(self._options.config.parent, self._guardian, environ)
        session, metrics = new_session(), Metrics()
        spare = (
            WarmStandby(WORKER_COMMAND, SPARE_COMMAND, place)
            if uses_warm_standby(settings)
            else None
        )
        learnings = ProfileStore(self._options.home.learned, place.home, self._log)
        supervisor = Supervisor(
            self._loaded.catalog, place, self._logs, session, metrics.observe, learnings, spare
        )
        metrics.watch(supervisor)
        house = AppContext(
            supervisor, session, metrics, self._logs, settings, MemoryTrimmer(self._log), wall()
        )
        front = Listeners(house, self._options.home, sock, tls)
        await front.open()
        house.reread = lambda: self._reload(supervisor, front)
        files = [self._options.config, *map(Path, filter(None, astuple(settings.tls)))]
        watch = FileWatch(files, house.reread)
        resync = self._resync()
        self._handle_signals(supervisor, front, settings)
        endpoint = endpoint_of(settings)
        self._announce(settings, front)
        self._greet(endpoint, settings)
        told = {"endpoint": endpoint, "log": str(self._logs.own_file)}
        tell({**told, "risks": risks(settings)})
        self._notify(READY)
        supervisor.preload()
        supervisor.keep_spare()
        gc.freeze()  # What is loaded by now stays; the collector need not look at it again.
        await supervisor.closed.wait()
        watch.close()
        if resync is not None:
            await resync.close()
        await front.close()
        await supervisor.end()
        await session.close()
        self._log.info("swapd has ended")

    def _resync(self) -> AutoSync | None:
        """What keeps the configuration in step; without it swapd serves what it has."""
        try:
            return auto_sync_for(self._options.home, self._options.config, self._logs)
        except ConfigError as error:
            self._log.error("models are not looked for: %s", error)
            return None

    def _announce(self, settings: ServerSettings, front: Listeners, closing: bool = False) -> None:
        """Tell `status` and `stop` of us; serving does not depend on it."""
        log, config = self._logs.own_file, self._options.config
        try:
            self._lock.announce(endpoint_of(settings), log, config, front.socket, closing)
        except OSError as error:
            told = "status and stop will not find this swapd: its lock file can't be written: %s"
            self._log.error(told, error.strerror)

    def _greet(self, endpoint: str, settings: ServerSettings) -> None:
        count = len(self._loaded.catalog.models)
        self._log.info("swapd serves %d models at %s", count, endpoint)
        for warning in self._loaded.warnings:
            self._log.warning("%s", warning)
        for risk in risks(settings):
            self._log.warning("%s", risk)

    def _handle_signals(
        self, supervisor: Supervisor, front: Listeners, settings: ServerSettings
    ) -> None:
        loop = asyncio.get_running_loop()

        def close() -> None:
            end(0.0 if supervisor.closing else settings.drain_timeout)

        def end(grace: float) -> None:
            self._log.info("asked to end: %s", f"within {grace:g} s" if grace else "at once")
            self._announce(settings, front, closing=True)
            self._notify(STOPPING)
            supervisor.close(grace)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, close)
        loop.add_signal_handler(signal.SIGQUIT, end, 0.0)
        loop.add_signal_handler(signal.SIGHUP, self._reload, supervisor, front)

    def _reload(self, supervisor: Supervisor, front: Listeners) -> str:
        """Read the configuration again; a broken one is told and changes nothing."""
        try:
            loaded = configure(self._options)
        except ConfigError as error:
            self._log.error("the changed configuration is not used:\n%s", error)
            return str(error)
        for warning in loaded.warnings:
            self._log.warning("%s", warning)
        if replace(loaded.settings, access=self._loaded.settings.access) != self._loaded.settings:
            self._log.warning("a changed host, port or server setting needs a restart of swapd")
        front.change(loaded.settings)
        supervisor.reload(loaded.catalog)
        return ""


if __name__ == "__main__":
    sys.exit(main())
