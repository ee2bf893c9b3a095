"""What is wrong with this installation, in sentences that say what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from swapd.cli.client import NoAnswerError, get, running
from swapd.cli.config import effective, in_its_files, in_use, models, read
from swapd.cli.output import FailedError, command, print_json, sanitize, show_bytes, waiting
from swapd.paths import Paths, find_paths

PROBE = """
import json, llama_cpp
print(json.dumps({
    "version": llama_cpp.__version__,
    "system": llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
}))
"""
"""Asked in a process of its own, since importing llama.cpp may end in more than an exception."""
NO_GPU = frozenset({"CPU", "RPC", "BLAS"})
"""Backends of llama.cpp that put nothing on a GPU of this machine; the others do."""
LEAST_FREE = 2 * 2**30


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    well: bool
    says: str


def doctor(as_json: bool) -> int:
    """Look at everything; exit status 1 when something is wrong."""
    home = find_paths()
    findings = []
    with waiting("looking"):
        for look in (_machine, _home, _llama, _models, _daemon):
            findings += list(look(home))
    if as_json:
        print_json(findings)
    else:
        for finding in findings:
            said = "\n".join(sanitize(line) for line in finding.says.splitlines())
            print(f"{'✓' if finding.well else '✗'} {said}")
    return 0 if all(finding.well for finding in findings) else 1


def _machine(_: Paths) -> Iterator[Finding]:
    from swapd.process import memory

    yield Finding(True, f"{platform.system()} {platform.machine()}, Python {_python()}")
    total = memory.total()
    yield Finding(True, f"{show_bytes(total)} of memory")
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), "")
    yield Finding(
        bool(compiler),
        f"{compiler} is there to compile llama.cpp with"
        if compiler
        else "there is no C++ compiler, which a new installation of llama.cpp needs: install g++",
    )


def _python() -> str:
    return ".".join(str(part) for part in sys.version_info[:3])


def _home(home: Paths) -> Iterator[Finding]:
    folder = next(p for p in (home.folder, *home.folder.parents) if p.is_dir())
    if not os.access(folder, os.W_OK):
        yield Finding(False, f"{folder} can't be written to, and swapd keeps its state there")
    free = shutil.disk_usage(folder).free
    told = f"{show_bytes(free) or 'nothing'} free on the disk of {home.folder}"
    yield Finding(free >= LEAST_FREE, told if free >= LEAST_FREE else f"only {told}")
    config = in_use(home)
    if not config.is_file():
        yield Finding(True, f"{config} is not there yet; {command()} sync or start makes it")
        return
    try:
        loaded = read(home, config)
    except FailedError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, f"{config} can be used")
    for told in (*map(str, loaded.warnings), *in_its_files(loaded, config)):
        yield Finding(False, told)


def _llama(_: Paths) -> Iterator[Finding]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        yield Finding(False, f"llama.cpp can't be loaded, so no model of ours can run: {said}")
        return
    found: dict[str, Any] = msgspec.json.decode(done.stdout.splitlines()[-1])
    yield Finding(True, f"llama.cpp by llama-cpp-python {found['version']}")
    yield Finding(True, f"built with {_features(found['system'])}")
    yield _offload({name for name, _ in _backends(found["system"])} - NO_GPU)


def _backends(system: str) -> list[tuple[str, list[str]]]:
    """`CPU : SSE3 = 1 | AVX = 1 | CUDA : …`, taken apart."""
    found: list[tuple[str, list[str]]] = []
    for part in system.split("|"):
        name, colon, feature = part.rpartition(":")
        if colon:
            found.append((name.strip(), []))
        if found and feature.strip():
            found[-1][1].append(feature.strip())
    return found


def _features(system: str) -> str:
    """What llama.cpp says it can use, without what it says it can't."""
    return "; ".join(
        f"{name}: {', '.join(f.removesuffix(' = 1') for f in features if not f.endswith(' = 0'))}"
        for name, features in _backends(system)
    )


def _offload(gpus: set[str]) -> Finding:
    """Whether layers can go to a GPU, and whether there is one that they do not go to."""
    if gpus:
        return Finding(True, f"models can be put on a GPU by {', '.join(sorted(gpus))}")
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Finding(False, "llama.cpp was built without Metal: install it anew")
    if shutil.which("nvidia-smi"):
        remedy = f"remove .venv, then CMAKE_ARGS=-DGGML_CUDA=ON {command()} start"
        return Finding(False, f"there is an NVIDIA GPU that llama.cpp was not built for: {remedy}")
    return Finding(True, "GPU offload is not built in, and no GPU is seen that it would serve")


def _models(home: Paths) -> Iterator[Finding]:
    from swapd.process import memory

    try:
        entries = models(home)
    except FailedError as error:
        yield Finding(False, str(error))
        return
    usable = [entry for entry in entries if not entry.broken]
    yield Finding(bool(usable), f"{len(usable)} model{'' if len(usable) == 1 else 's'} found")
    for entry in entries:
        if entry.broken:
            yield Finding(False, f"{entry.path} {entry.broken}")
        elif entry.path is not None and not entry.path.exists():
            yield Finding(False, f"{entry.name}: {entry.path} is not there")
        elif entry.need > memory.total():
            has = show_bytes(memory.total())
            needs = show_bytes(entry.need)
            yield Finding(False, f"{entry.name} needs about {needs}, and the machine has {has}")


def _daemon(home: Paths) -> Iterator[Finding]:
    from swapd.process.ports import port_owner

    holder = running(home)
    if holder is not None:
        try:
            get(holder, "/health")
        except NoAnswerError as error:
            yield Finding(False, f"swapd runs as pid {holder.pid}, but: {error}")
            return
        yield Finding(True, f"swapd runs at {holder.endpoint} (pid {holder.pid})")
        there = home.socket.is_socket()
        yield Finding(there, f"{home.socket} {'is there' if there else 'is missing; see its log'}")
        return
    try:
        port = effective(home).settings.port
    except FailedError:
        # Told already.
        return
    pid = port_owner(port)
    taken = f"port {port} is taken by pid {pid}; choose another with --port or SWAPD_PORT"
    yield Finding(pid is None, taken if pid else f"swapd does not run; its port {port} is free")
