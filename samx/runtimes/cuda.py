"""The few CUDA calls that running an engine needs, through the driver's own library: no package of CUDA's is needed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from samx.errors import SamxError, UnavailableError
from samx.formats.tensorrt.stamp import FIRST_DEVICE, Gpu, describe_gpu, error_words, open_driver
from samx.models.session import FloatArray

# Numbers of the driver's interface.
NON_BLOCKING = 1  # a stream that is not tied to the default one
THREAD_LOCAL = 1  # a recording that forbids this thread alone what would break it
# Errors that are the machine's state and no fault of a call: start, memory, no device, busy, no code for this GPU.
MACHINE_ERRORS = (2, 3, 34, 46, 100, 101, 209, 802, 803, 804)


class CudaDevice:
    """Memory and one stream of work on the first GPU.

    Raises: UnavailableError when it is not there or out of memory, SamxError for other CUDA errors; so do its methods.
    """

    def __init__(self, driver: Any, gpu: Gpu) -> None:
        self._driver, self.gpu = driver, gpu
        device, self._context, self._stream = c_int(), c_void_p(), c_void_p()
        self._check("take the GPU", driver.cuInit(0))
        self._check("take the GPU", driver.cuDeviceGet(byref(device), FIRST_DEVICE))
        # The context that the vendors' libraries work in too.
        self._check("take the GPU", driver.cuDevicePrimaryCtxRetain(byref(self._context), device))
        self._call("make a stream", driver.cuStreamCreate, byref(self._stream), NON_BLOCKING)
        self.stream = int(self._stream.value or 0)  # its handle, as engines take it
        weakref.finalize(self, driver.cuStreamDestroy_v2, self._stream)

    def allocate(self, size: int) -> int:
        """Reserve bytes; returns their address."""
        made = c_uint64()
        doing = f"reserve {size / 2**20:.1f} MiB on the GPU"
        self._call(doing, self._driver.cuMemAlloc_v2, byref(made), c_size_t(size))
        return made.value

    def free(self, address: int) -> None:
        """Free reserved bytes."""
        self._call("give GPU memory back", self._driver.cuMemFree_v2, c_uint64(address))

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the device. The system stages it: the array is free when this returns."""
        here, there, size = c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes)
        self._call("copy to the GPU", self._driver.cuMemcpyHtoDAsync_v2, there, here, size, self._stream)

    def download(self, address: int, array: FloatArray) -> None:
        """Copy from the device into an array; complete after synchronise()."""
        here, there, size = c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes)
        self._call("copy from the GPU", self._driver.cuMemcpyDtoHAsync_v2, here, there, size, self._stream)

    def copy(self, address: int, source: int, size: int) -> None:
        """Copy within the device, in the order of the stream; the source must stay until that is done."""
        there, here = c_uint64(address), c_uint64(source)
        self._call("copy on the GPU", self._driver.cuMemcpyDtoDAsync_v2, there, here, c_size_t(size), self._stream)

    def wait_for(self, stream: int | None) -> None:
        """Wait until another's work is done: of a stream, or where none is told, all of the GPU's."""
        doing = "finish the work of another library on the GPU"
        if stream is None:
            self._call(doing, self._driver.cuCtxSynchronize)
        else:
            self._call(doing, self._driver.cuStreamSynchronize, c_void_p(stream))

    def synchronise(self) -> None:
        """Wait for all work of the stream; errors of that work are raised here."""
        self._call("finish the work on the GPU", self._driver.cuStreamSynchronize, self._stream)

    def _call(self, doing: str, function: Callable[..., int], *arguments: Any) -> None:
        """Call the driver, in the GPU's context: each thread has to take it for itself."""
        self._check(doing, self._driver.cuCtxSetCurrent(self._context))
        self._check(doing, function(*arguments))

    def _check(self, doing: str, code: int) -> None:
        if code in MACHINE_ERRORS:
            fix = "See what nvidia-smi (Jetson: tegrastats) says."
            raise UnavailableError(f"cannot {doing}", found=error_words(self._driver, code), fix=fix)
        if code:
            raise SamxError(f"cannot {doing}", found=error_words(self._driver, code), fix="Please report this.")


_DEVICES: WeakValueDictionary[Gpu, CudaDevice] = WeakValueDictionary()


def shared_device() -> CudaDevice:
    """Return the process's one stream: what an encoder computes is there before its decoder asks, without waiting.

    Raises: UnavailableError without a driver or a GPU.
    """
    driver = open_driver()
    gpu = describe_gpu(driver)
    found = _DEVICES.get(gpu)
    if found is None:
        _DEVICES[gpu] = found = CudaDevice(driver, gpu)
    return found


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


def _free_all(device: CudaDevice, kept: dict[str, tuple[int, int]]) -> None:
    while kept:
        device.free(kept.popitem()[1][0])
