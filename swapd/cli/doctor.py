"""`doctor`: diagnose the installation. Each finding is a sentence; a problem names its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from swapd.cli.options import Json
from swapd.cli.output import FailedError, command, print_json, sanitize, show_bytes, waiting
from swapd.paths import Paths, find_paths

PROBE = """
import json, llama_cpp
print(json.dumps({
    "version": llama_cpp.__version__,
    "system": llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
}))
"""
"""Program for a child process, since importing llama.cpp may crash instead of raising."""
CPU_BACKENDS = frozenset({"CPU", "RPC", "BLAS"})
"""Backends of llama.cpp that use no GPU of this machine; all others do."""
MIN_FREE_BYTES = 2 * 2**30


class Finding(NamedTuple):
    """Result of one check."""

    well: bool
    says: str


def doctor(as_json: Json = False) -> int:
    """Diagnose this installation.

    Exit status 1: there are problems.
    """
    paths = find_paths()
    findings = []
    with waiting("checking"):
        for check in (_machine, _data_directory, _llama, _models, _daemon):
            findings += list(check(paths))
    if as_json:
        print_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            text = "\n".join(sanitize(line) for line in finding.says.splitlines())
            print(f"{'✓' if finding.well else '✗'} {text}")
    return 0 if all(finding.well for finding in findings) else 1


def _machine(_: Paths) -> Iterator[Finding]:
    from swapd.process import memory

    version = ".".join(str(part) for part in sys.version_info[:3])
    yield Finding(True, f"{platform.system()} {platform.machine()}, Python {version}")
    yield Finding(True, f"{show_bytes(memory.total())} of memory")
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "")
    yield Finding(
        bool(compiler),
        f"{compiler} can compile llama.cpp"
        if compiler
        else "there is no C++ compiler, which a new installation of llama.cpp needs: install g++",
    )


def _data_directory(paths: Paths) -> Iterator[Finding]:
    from swapd.cli.catalog import active_config, read_config
    from swapd.cli.config import file_problems

    folder = next(p for p in (paths.folder, *paths.folder.parents) if p.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding(False, f"{folder} can't be written to, and swapd stores its state there")
    free = shutil.disk_usage(folder).free
    text = f"{show_bytes(free) or 'nothing'} free on the disk of {paths.folder}"
    yield Finding(free >= MIN_FREE_BYTES, text if free >= MIN_FREE_BYTES else f"only {text}")
    config = active_config(paths)
    if not config.is_file():
        yield Finding(True, f"{config} is not there yet; {command()} sync or start creates it")
        return
    try:
        loaded = read_config(paths, config)
    except FailedError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, f"{config} can be used")
    for problem in (*map(str, loaded.warnings), *file_problems(loaded, config)):
        yield Finding(False, problem)


def _llama(_: Paths) -> Iterator[Finding]:
    import msgspec

    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        message = "llama.cpp can't be loaded, so the built-in worker can't run"
        yield Finding(False, f"{message}: {reason}")
        return
    found: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    yield Finding(True, f"llama.cpp by llama-cpp-python {found['version']}")
    yield Finding(True, f"built with {_features(found['system'])}")
    yield _offload({name for name, _ in _backends(found["system"])} - CPU_BACKENDS)


def _backends(system: str) -> list[tuple[str, list[str]]]:
    """Parse `CPU : SSE3 = 1 | AVX = 1 | CUDA : …` into backends with their features."""
    found: list[tuple[str, list[str]]] = []
    for part in system.split("|"):
        name, colon, feature = part.rpartition(":")
        if colon:
            found.append((name.strip(), []))
        if found and feature.strip():
            found[-1][1].append(feature.strip())
    return found


def _features(system: str) -> str:
    """Return the features that llama.cpp can use, without those it reports as missing."""
    return "; ".join(
        f"{name}: {', '.join(f.removesuffix(' = 1') for f in features if not f.endswith(' = 0'))}"
        for name, features in _backends(system)
    )


def _offload(gpus: set[str]) -> Finding:
    """Check whether layers can be put on a GPU, or a GPU is present without support for it."""
    if gpus:
        return Finding(True, f"models can be put on a GPU by {', '.join(sorted(gpus))}")
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Finding(False, "llama.cpp was built without Metal: install it again")
    if shutil.which("nvidia-smi"):
        remedy = f"remove .venv, then CMAKE_ARGS=-DGGML_CUDA=ON {command()} start"
        return Finding(False, f"there is an NVIDIA GPU that llama.cpp was not built for: {remedy}")
    return Finding(True, "GPU offload is not built in, and no GPU for it was found")


def _models(paths: Paths) -> Iterator[Finding]:
    from swapd.cli.catalog import list_models
    from swapd.process import memory

    try:
        entries = list_models(paths)
    except FailedError as error:
        yield Finding(False, str(error))
        return
    total = memory.total()
    usable = [entry for entry in entries if not entry.broken]
    yield Finding(bool(usable), f"{len(usable)} model{'' if len(usable) == 1 else 's'} found")
    for entry in entries:
        if entry.broken:
            yield Finding(False, f"{entry.path} {entry.broken}")
        elif entry.path is not None and not entry.path.exists():
            yield Finding(False, f"{entry.name}: {entry.path} is not there")
        elif entry.need > total:
            need = show_bytes(entry.need)
            message = f"{entry.name} needs about {need}, and the machine has {show_bytes(total)}"
            yield Finding(False, message)


def _daemon(paths: Paths) -> Iterator[Finding]:
    from swapd.cli.catalog import read_active_config
    from swapd.cli.client import NoResponseError, get, running
    from swapd.process.ports import port_owner

    holder = running(paths)
    if holder is not None:
        try:
            get(holder, "/health")
        except NoResponseError as error:
            yield Finding(False, f"swapd runs as pid {holder.pid}, but: {error}")
            return
        yield Finding(True, f"swapd runs at {holder.endpoint} (pid {holder.pid})")
        exists = paths.socket.is_socket()
        yield Finding(exists, f"{paths.socket} {'exists' if exists else 'is missing; see its log'}")
        return
    try:
        port = read_active_config(paths).settings.port
    except FailedError:
        return  # The configuration's own check has reported it.
    pid = port_owner(port)
    taken = f"port {port} is taken by pid {pid}; choose another with --port or SWAPD_PORT"
    yield Finding(pid is None, taken if pid else f"swapd does not run; its port {port} is free")
