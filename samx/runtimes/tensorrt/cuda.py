"""The few CUDA calls that running an engine needs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

from samx.errors import SamxError, UnavailableError
from samx.extras import require
from samx.formats.tensorrt.stamp import FIRST_DEVICE, Gpu, cuda_words
from samx.models.session import FloatArray

LIBRARY = "cuda.bindings.runtime"
# The driver is older than what cuda-bindings was built for.
INSUFFICIENT_DRIVER = 35
# Errors that are the machine's state and no fault of a call: start, memory, no device, busy, no code for this GPU.
MACHINE_ERRORS = (2, 3, 34, INSUFFICIENT_DRIVER, 46, 100, 101, 209, 802, 803, 804)


class CudaDevice:
    """Memory and one stream of work on the first GPU, through cuda-bindings.

    Raises: UnavailableError when it is not there or out of memory, SamxError for other CUDA errors; so do its methods.
    """

    def __init__(self, cuda: ModuleType, gpu: Gpu) -> None:
        self._cuda, self.gpu = cuda, gpu
        self._call("take the GPU", cuda.cudaSetDevice, FIRST_DEVICE)
        self._stream = self._call("make a stream", cuda.cudaStreamCreateWithFlags, cuda.cudaStreamNonBlocking)
        self.stream = int(self._stream)  # its handle, as engines take it
        weakref.finalize(self, cuda.cudaStreamDestroy, self._stream)

    def allocate(self, size: int) -> int:
        """Reserve bytes; returns their address."""
        return int(self._call(f"reserve {size / 2**20:.1f} MiB on the GPU", self._cuda.cudaMalloc, size))

    def free(self, address: int) -> None:
        """Free reserved bytes."""
        self._call("give GPU memory back", self._cuda.cudaFree, address)

    def upload(self, address: int, array: FloatArray) -> None:
        """Copy an array to the device. The system stages it: the array is free when this returns."""
        self._copy("copy to the GPU", address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")

    def download(self, address: int, array: FloatArray) -> None:
        """Copy from the device into an array; complete after synchronise()."""
        self._copy("copy from the GPU", array.ctypes.data, address, array.nbytes, "cudaMemcpyDeviceToHost")

    def synchronise(self) -> None:
        """Wait for all work of the stream; errors of that work are raised here."""
        self._call("finish the work on the GPU", self._cuda.cudaStreamSynchronize, self._stream)

    def _copy(self, doing: str, to: int, source: int, size: int, kind: str) -> None:
        way = getattr(self._cuda.cudaMemcpyKind, kind)
        self._call(doing, self._cuda.cudaMemcpyAsync, to, source, size, way, self._stream)

    def _call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the runtime and return what it returns besides its code, if anything."""
        try:
            code, *values = function(*arguments)
        except RuntimeError as cause:  # older bindings raise where the driver cannot be loaded
            raise UnavailableError(f"cannot {doing}", found=cause, fix="Run this on the device.") from cause
        if int(code) != 0:
            raise _error(self._cuda, doing, code)
        return values[0] if values else None


class Buffers:
    """Named memory on a device that is kept between calls and only ever grows."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._kept: dict[str, tuple[int, int]] = {}  # name -> address, size
        weakref.finalize(self, _free_all, device, self._kept)

    def address(self, name: str, size: int) -> int:
        """Return memory for at least that many bytes. It may lie elsewhere than before, and then holds nothing."""
        address, there = self._kept.get(name, (0, 0))
        if size <= there:
            return address
        if there:
            del self._kept[name]  # first, so that a refused request leaves no address of freed memory behind
            self._device.free(address)
        address = self._device.allocate(size)
        self._kept[name] = (address, size)
        return address

    @property
    def total(self) -> int:
        """Return how many bytes are held."""
        return sum(size for _, size in self._kept.values())


def cuda_runtime(extra: str) -> ModuleType:
    """Import the CUDA runtime's bindings.

    Raises: MissingExtraError.
    """
    return require(LIBRARY, extra, "running on a GPU")


def _error(cuda: ModuleType, doing: str, code: Any) -> SamxError:
    """Put a code into words."""
    number = int(code)
    if number == INSUFFICIENT_DRIVER:
        _, driver = cuda.cudaDriverGetVersion()
        _, bindings = cuda.cudaRuntimeGetVersion()
        return UnavailableError(
            f"cannot {doing}: the driver is older than the installed cuda-bindings", found=cuda_words(driver),
            expected=cuda_words(bindings), fix=f"Run: pip install 'cuda-bindings=={driver // 1000}.*'",
        )  # fmt: skip
    _, words = cuda.cudaGetErrorString(code)
    found = f"{bytes(words or b'unknown error').decode(errors='replace')} (CUDA error {number})"
    if number in MACHINE_ERRORS:
        return UnavailableError(f"cannot {doing}", found=found, fix="See what nvidia-smi (Jetson: tegrastats) says.")
    return SamxError(f"cannot {doing}", found=found, fix="Please report this.")


def _free_all(device: CudaDevice, kept: dict[str, tuple[int, int]]) -> None:
    while kept:
        device.free(kept.popitem()[1][0])
