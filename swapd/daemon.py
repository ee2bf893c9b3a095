"""The daemon: composition root of the server, from the instance lock to the last worker's exit.

Started as `python -m swapd.daemon`, which avoids the imports of the command line.
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

import aiohttp
import msgspec
import uvloop

from swapd.config.env import read_env
from swapd.config.errors import ConfigError
from swapd.config.load import LoadedConfig, load
from swapd.domain.settings import ServerSettings
from swapd.http.access_control import AccessControl
from swapd.http.app import access_control
from swapd.http.context import AppContext
from swapd.http.origins import is_loopback, risks
from swapd.http.tls import TlsError, new_context, renew
from swapd.library.auto_sync import AutoSync, auto_sync_for
from swapd.listeners import Listeners, PortTakenError, listen
from swapd.metrics import Metrics
from swapd.paths import STANDBY_COMMAND, WORKER_COMMAND, Paths, find_paths
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
"""Seconds until a thread that scans processes yields to the event loop; Python's default of 5 ms
equals the time of several tokens."""
STANDBY_MIN_MEMORY = 8 * 2**30
"""Bytes of the machine's memory from which a warm standby is kept by default."""


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """Options of the command line. They override the environment, which overrides the file."""

    paths: Paths
    config: Path
    host: str = ""
    port: int = 0
    ready_fd: int = -1
    """Descriptor for the report of the start; negative: none."""


class CannotServeError(Exception):
    """The daemon can't start; the message is for the user."""


def parse(argv: list[str]) -> DaemonOptions:
    """Return the options in the daemon's arguments."""
    parser = argparse.ArgumentParser(prog="swapd serve")
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--ready-fd", type=int, default=-1, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    paths = find_paths()
    config: Path = given.config.absolute() if given.config else paths.config
    return DaemonOptions(paths, config, given.host, given.port, given.ready_fd)


def configure(options: DaemonOptions) -> LoadedConfig:
    """Load the configuration and apply the command line's options. Raises ConfigError."""
    env = read_env(options.paths.folder, os.environ)
    loaded = load(options.config, env, worker_command=WORKER_COMMAND, total_memory=memory.total())
    settings = loaded.settings
    if options.host:
        settings = replace(settings, host=options.host)
    if options.port:
        settings = replace(settings, port=options.port)
    return replace(loaded, settings=settings)


def endpoint_of(settings: ServerSettings) -> str:
    """Return the URL at which a client on this machine reaches the server."""
    host = settings.host
    if host in ("0.0.0.0", "::", ""):
        host = "127.0.0.1"
    scheme = "https" if settings.tls.cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings.port}"


def uses_warm_standby(settings: ServerSettings) -> bool:
    """Return True if a warm standby is configured, or by default if the machine has the memory."""
    if settings.warm_standby is None:
        return memory.total() >= STANDBY_MIN_MEMORY
    return settings.warm_standby


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal ends the daemon. Returns the exit status."""
    hold_standard_descriptors()
    options = parse(sys.argv[1:] if argv is None else argv)
    reporter = _StartReporter(options.ready_fd)
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        return _run(options, reporter)
    except CannotServeError as error:
        print(f"swapd: {error}", file=sys.stderr, flush=True)
        reporter.report({"error": str(error)})
        return 1


class _StartReporter:
    """Reports the result of the start on a descriptor, once, to the process that waits for it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def report(self, message: dict[str, object]) -> None:
        if self._fd < 0:
            return
        try:
            os.write(self._fd, msgspec.json.encode(message) + b"\n")
        except BrokenPipeError:
            # The other process has ended; the log has the same information.
            logging.getLogger(__name__).debug("the start report has no reader: %s", message)
        os.close(self._fd)
        self._fd = -1


def _run(options: DaemonOptions, reporter: _StartReporter) -> int:
    paths = options.paths
    # 1. The lock of the data directory, so that only one daemon uses it.
    try:
        lock = InstanceLock(paths.state)
    except LockHeldError as error:
        where = f" at {error.holder.endpoint}" if error.holder else ""
        raise CannotServeError(f"{error}{where} for {paths.folder}") from error
    except OSError as error:
        raise CannotServeError(f"can't write in {paths.state}: {error.strerror}") from error
    # 2. Configuration, certificate and port: without them nothing is started.
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
    # 3. Workers that a crash has left behind, then the guardian of those to come.
    logs = Logs(paths.logs, loaded.settings.log_level, options.ready_fd < 0)
    registry = paths.state / "workers.json"
    kill_orphans(registry, logs.own)
    guardian = Guardian(logs.own, PidRegistry(registry, logs.own))
    # 4. The server itself, on an event loop.
    try:
        daemon = Daemon(options, loaded, logs, guardian, lock)
        if sys.version_info >= (3, 11):
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(daemon.run(sock, tls, reporter))
        else:
            uvloop.install()
            asyncio.run(daemon.run(sock, tls, reporter))
    finally:
        guardian.close()
        lock.retire()
        logs.close()
    return 0


class Daemon:
    """A running server."""

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

    async def run(
        self, sock: socket.socket, tls: ssl.SSLContext | None, reporter: _StartReporter
    ) -> None:
        """Serve on `sock` until a signal ends the server and all requests have ended."""
        # 1. Build every part before it is shared.
        settings = self._loaded.settings
        session, metrics = new_session(), Metrics()
        supervisor = self._new_supervisor(session, metrics)
        metrics.watch(supervisor)
        access = access_control(settings, metrics, is_loopback(str(sock.getsockname()[0])))
        reloader = Reloader(self._options, self._loaded, self._log, supervisor, access, tls)
        trimmer = MemoryTrimmer(self._log)
        context = AppContext(
            supervisor, session, metrics, self._logs, settings, trimmer, reloader.reload, wall()
        )
        listeners = Listeners(context, self._options.paths, sock, access, tls)
        # 2. Serve.
        await listeners.open()
        files = [self._options.config, *map(Path, filter(None, astuple(settings.tls)))]
        watch = FileWatch(files, reloader.reload)
        auto_sync = self._start_auto_sync()
        self._handle_signals(supervisor, reloader, listeners)
        # 3. Report the start to the lock file, the log, the parent process and systemd.
        endpoint = endpoint_of(settings)
        self._announce(listeners)
        self._log_start(endpoint)
        start = {"endpoint": endpoint, "log": str(self._logs.own_file)}
        reporter.report({**start, "risks": risks(settings)})
        self._notify(READY)
        supervisor.preload()
        supervisor.prepare_standby()
        gc.freeze()  # Objects of the start live on; the collector need not scan them again.
        # 4. Shut down, in the reverse order.
        await supervisor.closed.wait()
        watch.close()
        if auto_sync is not None:
            await auto_sync.close()
        await listeners.close()
        await supervisor.end()
        await session.close()
        self._log.info("swapd has ended")

    def _new_supervisor(self, session: aiohttp.ClientSession, metrics: Metrics) -> Supervisor:
        settings = self._loaded.settings
        environ = worker_environment(os.environ, settings.pass_env)
        folder = self._options.config.parent
        context = SpawnContext(folder, self._guardian, environ)
        profiles = ProfileStore(self._options.paths.profiles, folder, self._log)
        standby = None
        if uses_warm_standby(settings):
            standby = WarmStandby(WORKER_COMMAND, STANDBY_COMMAND, context)
        return Supervisor(
            self._loaded.catalog, context, self._logs, session, metrics.observe, profiles, standby
        )

    def _start_auto_sync(self) -> AutoSync | None:
        """Start the automatic sync; None if its settings can't be used or it is switched off."""
        try:
            return auto_sync_for(self._options.paths, self._options.config, self._logs)
        except ConfigError as error:
            self._log.error("automatic sync is disabled: %s", error)
            return None

    def _announce(self, listeners: Listeners, closing: bool = False) -> None:
        """Write the lock file's content, by which `status` and `stop` find the server."""
        endpoint, log = endpoint_of(self._loaded.settings), self._logs.own_file
        try:
            self._lock.announce(endpoint, log, self._options.config, listeners.socket, closing)
        except OSError as error:
            message = "status and stop can't find this swapd: its lock file can't be written: %s"
            self._log.error(message, error.strerror)

    def _log_start(self, endpoint: str) -> None:
        count = len(self._loaded.catalog.models)
        self._log.info("swapd serves %d models at %s", count, endpoint)
        for warning in self._loaded.warnings:
            self._log.warning("%s", warning)
        for risk in risks(self._loaded.settings):
            self._log.warning("%s", risk)

    def _handle_signals(
        self, supervisor: Supervisor, reloader: Reloader, listeners: Listeners
    ) -> None:
        """Install the handlers: SIGTERM and SIGINT drain, a second one or SIGQUIT ends at once."""
        loop = asyncio.get_running_loop()

        def drain() -> None:
            shut_down(0.0 if supervisor.closing else self._loaded.settings.drain_timeout)

        def shut_down(grace: float) -> None:
            self._log.info("shutting down %s", f"within {grace:g} s" if grace else "at once")
            self._announce(listeners, closing=True)
            self._notify(STOPPING)
            supervisor.close(grace)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, drain)
        loop.add_signal_handler(signal.SIGQUIT, shut_down, 0.0)
        loop.add_signal_handler(signal.SIGHUP, reloader.reload)


class Reloader:
    """Reloads the configuration of a running server."""

    def __init__(
        self,
        options: DaemonOptions,
        loaded: LoadedConfig,
        log: logging.Logger,
        supervisor: Supervisor,
        access: AccessControl,
        tls: ssl.SSLContext | None,
    ) -> None:
        """Compare later configurations with `loaded`, the one that the server started with."""
        self._options = options
        self._started_with = loaded.settings
        self._log = log
        self._supervisor = supervisor
        self._access = access
        self._tls = tls

    def reload(self) -> str:
        """Apply the configuration in the files; return an error message, or "" on success.

        A configuration with errors changes nothing.
        """
        try:
            loaded = configure(self._options)
        except ConfigError as error:
            self._log.error("the changed configuration is not used:\n%s", error)
            return str(error)
        for warning in loaded.warnings:
            self._log.warning("%s", warning)
        started_with = self._started_with
        if replace(loaded.settings, access=started_with.access) != started_with:
            self._log.warning("a changed host, port or server setting needs a restart of swapd")
        self._access.set_rules(loaded.settings.access)
        self._renew_certificate()
        self._supervisor.reload(loaded.catalog)
        return ""

    def _renew_certificate(self) -> None:
        """Use the present content of the certificate files for new connections."""
        if self._tls is None:
            return
        files = self._started_with.tls
        try:
            renew(self._tls, files.cert, files.key)
        except TlsError as error:
            self._log.error("the previous certificate stays in use: %s", error)


if __name__ == "__main__":
    sys.exit(main())
