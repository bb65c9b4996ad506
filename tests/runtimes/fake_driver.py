"""A CUDA driver whose GPU is this process's own memory, at its real addresses."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

from samx.formats.tensorrt.stamp import Gpu

TOY = Gpu("Toy GPU", "8.7", "CUDA 12.6")
STREAM, CONTEXT = 77, 9


class Driver:
    """Stand in for libcuda: memory as bytes by address, one stream; it notes what it is asked, and fails as told."""

    def __init__(self, **codes: int) -> None:
        self.codes, self.log = codes, list[str]()
        self.memory: dict[int, Any] = {}
        self.context: dict[int, int | None] = {}  # by thread

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def called(*arguments: Any) -> int:
            if name != "cuCtxSetCurrent":
                self.log.append(name)
            if code := self.codes.get(name):
                return code
            getattr(self, f"do_{name}", lambda *arguments: None)(*arguments)
            return 0

        return called

    def do_cuDevicePrimaryCtxRetain(self, answer: Any, device: Any) -> None:  # noqa: N802 - the driver's names
        """Return the context."""
        answer._obj.value = CONTEXT

    def do_cuCtxSetCurrent(self, context: Any) -> None:  # noqa: N802
        """Take the context for this thread."""
        self.context[threading.get_ident()] = context.value

    def do_cuStreamCreate(self, answer: Any, flags: int) -> None:  # noqa: N802
        """Return a handle."""
        assert flags == 1
        answer._obj.value = STREAM

    def do_cuMemAlloc_v2(self, answer: Any, size: Any) -> None:  # noqa: N802
        """Reserve memory of this process."""
        assert self.context[threading.get_ident()] == CONTEXT
        block = ctypes.create_string_buffer(size.value)
        answer._obj.value = ctypes.addressof(block)
        self.memory[answer._obj.value] = block

    def do_cuMemFree_v2(self, address: Any) -> None:  # noqa: N802
        """Free it; twice is an error."""
        del self.memory[address.value]

    def do_cuMemcpyHtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        """Copy to memory that was reserved."""
        assert stream.value == STREAM
        assert size.value <= len(self.memory[to.value])
        ctypes.memmove(to.value, source.value, size.value)

    def do_cuMemcpyDtoHAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        """Copy from memory that was reserved."""
        assert stream.value == STREAM
        assert size.value <= len(self.memory[source.value])
        ctypes.memmove(to.value, source.value, size.value)

    def do_cuMemcpyDtoDAsync_v2(self, to: Any, source: Any, size: Any, stream: Any) -> None:  # noqa: N802
        """Copy within memory."""
        assert stream.value == STREAM
        assert size.value <= len(self.memory[to.value])
        ctypes.memmove(to.value, source.value, size.value)

    def do_cuGetErrorString(self, code: int, answer: Any) -> None:  # noqa: N802
        """Return words."""
        answer._obj.value = b"what went wrong"
