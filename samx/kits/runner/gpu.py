"""The GPU: memory and a stream, through the driver alone."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from samx.kits.runner.kit import UNAVAILABLE, Json, KitError


class Gpu:
    """Hold memory and one stream of the first GPU, through the driver's own library: no CUDA package is needed."""

    def __init__(self) -> None:
        try:
            self.driver: Any = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError as cause:
            raise KitError(UNAVAILABLE, f"no NVIDIA driver is here: {cause}. Run this on the device.") from cause
        device, context, self.stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)  # the one that TensorRT works in too
        self.call("cuCtxSetCurrent", context)
        self.call("cuStreamCreate", ctypes.byref(self.stream), 1)  # 1: not tied to the default stream
        self.facts = self._facts(device)
        self.memory: dict[str, tuple[int, int]] = {}  # by tensor: address, bytes

    def call(self, name: str, *arguments: Any) -> None:
        """Call the driver; what it refuses is an error."""
        code = getattr(self.driver, name)(*arguments)
        if code != 0:
            words = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(words))
            text = (words.value or b"unknown error").decode(errors="replace")
            raise KitError(UNAVAILABLE, f"the GPU refuses {name}: {text} (CUDA error {code})")

    def address(self, name: str, size: int) -> int:
        """Give a tensor its memory, which only ever grows."""
        address, there = self.memory.get(name, (0, 0))
        if size <= there:
            return address
        if there:
            del self.memory[name]
            self.call("cuMemFree_v2", ctypes.c_uint64(address))
        made = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(made), ctypes.c_size_t(size))
        self.memory[name] = made.value, size
        return made.value

    def copy(self, name: str, array: Any, *, back: bool = False) -> None:
        """Copy an array to a tensor's memory, or back, in the stream's order."""
        here, there = ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(self.memory[name][0])
        way = ("cuMemcpyDtoHAsync_v2", here, there) if back else ("cuMemcpyHtoDAsync_v2", there, here)
        self.call(*way, ctypes.c_size_t(array.nbytes), self.stream)

    def _facts(self, device: ctypes.c_int) -> Json:
        name, major, minor, version = (ctypes.create_string_buffer(256), *(ctypes.c_int() for _ in range(3)))
        self.call("cuDeviceGetName", name, 256, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)  # compute capability, as the driver counts
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        cuda, capability = divmod(version.value // 10, 100), f"{major.value}.{minor.value}"
        return {"gpu": name.value.decode(errors="replace"), "compute_capability": capability,
                "driver": f"CUDA {cuda[0]}.{cuda[1]}"}  # fmt: skip
