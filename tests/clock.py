"""Time of day that a test sets in steps, for the processes that it starts.

A step of the machine's clock would affect all processes, and needs privileges. So a few lines of
C, compiled by the test, override the C library's functions that return the time of day.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *step;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    int file = open(STEP_FILE, O_RDONLY | O_CLOEXEC);
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file < 0) return;
    void *page = mmap(0, sizeof *step, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) step = page;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *out) {
    if (!real) begin();
    int failed = real(id, out);
    if (!failed && step && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        out->tv_sec += *step;
    return failed;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    out->tv_sec = now.tv_sec;
    out->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"""


def can_step() -> bool:
    """Return True if a stepped clock can be built here."""
    return sys.platform == "linux" and shutil.which("cc") is not None


class SteppedClock:
    """Time of day of the processes with `environ` in their environment, and of their children."""

    def __init__(self, folder: Path) -> None:
        """Build the library; skip the test where this is not possible."""
        if not can_step():
            pytest.skip("a stepped clock needs a C compiler, and Linux")
        file, library, source = folder / "step", folder / "clock.so", folder / "clock.c"
        file.write_bytes(bytes(8))
        source.write_text(SOURCE)
        command = ["cc", "-shared", "-fPIC", "-O1", f'-DSTEP_FILE="{file}"', "-o", str(library)]
        subprocess.run([*command, str(source), "-ldl"], check=True)
        self.environ = {"LD_PRELOAD": str(library)}
        with file.open("r+b") as opened:
            self._page = mmap.mmap(opened.fileno(), 8)

    def step(self, seconds: int) -> None:
        """Set the time of day to so many seconds after the machine's, or before."""
        self._page[:8] = struct.pack("q", seconds)
