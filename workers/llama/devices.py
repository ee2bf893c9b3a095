"""Devices of llama.cpp other than the CPU, and their memory."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from dataclasses import dataclass

from workers.llama.model import api
from workers.protocol import DeviceReport

CPU, GPU, IGPU = 0, 1, 2  # enum ggml_backend_dev_type


@dataclass(frozen=True, slots=True)
class Device:
    """A device, as its driver reports it."""

    name: str
    total: int
    """Memory in bytes."""
    free: int
    """Free memory in bytes."""


def devices(kinds: Collection[int] = (GPU, IGPU)) -> list[Device]:
    """Return the devices of these kinds. A query initializes a GPU's driver, which takes memory."""
    lib = api._lib
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_type.restype = ctypes.c_int
    found = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    return [_describe(device) for device in found if lib.ggml_backend_dev_type(device) in kinds]


def _describe(device: int) -> Device:
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
    """Return the memory taken of each device in between, in the format of the ready message.

    It is this process's if no other took any meanwhile.
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
