"""The devices that llama.cpp computes on beside the CPU, and the memory that each has."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from dataclasses import dataclass

from workers.llama.model import api
from workers.protocol import DeviceReport

CPU, GPU, IGPU = 0, 1, 2  # enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Device:
    """One of them, as its driver tells."""

    name: str
    total: int
    """Bytes of memory that it has."""
    free: int


def devices(kinds: Collection[int] = (GPU, IGPU)) -> list[Device]:
    """All of these kinds. To ask a GPU's driver makes it set itself up, which takes memory too."""
    lib = api._lib
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_type.restype = ctypes.c_int
    found = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    return [_told(device) for device in found if lib.ggml_backend_dev_type(device) in kinds]


def _told(device: int) -> Device:
    lib, size = api._lib, ctypes.c_size_t
    lib.ggml_backend_dev_name.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_name.restype = ctypes.c_char_p
    pointer = ctypes.POINTER(size)
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, pointer, pointer]
    lib.ggml_backend_dev_memory.restype = None
    free, total = size(), size()
    lib.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    name = lib.ggml_backend_dev_name(device)
    return Device(name.decode("utf-8", "replace"), total.value, free.value)


def memory_held(before: Collection[Device], after: Collection[Device]) -> tuple[DeviceReport, ...]:
    """What was taken of each device in between, by this process if nobody else took any.

    As the ready line tells it.
    """
    free = {device.name: device.free for device in before}
    return tuple(
        DeviceReport(
            name=device.name,
            total=device.total,
            free=device.free,
            held=max(0, free.get(device.name, device.free) - device.free),
        )
        for device in after
    )
