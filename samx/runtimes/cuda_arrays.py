"""Arrays that lie on the GPU: samx's own, and those of other libraries that say so in one of the two usual ways."""

from __future__ import annotations

import ctypes
import weakref
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from samx.errors import ImageError
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Runtime
from samx.runtimes.cuda import CudaDevice

CUDA, CAPSULE = 2, b"dltensor"  # of DLPack: the device's number, the capsule's name until it is consumed
FLOAT_CODE, FLOAT_BITS = 2, 32
FLOAT32 = np.dtype(np.float32)


@dataclass
class Memory:
    """Own memory on the GPU until nobody needs it."""

    device: CudaDevice
    size: int

    def __post_init__(self) -> None:
        self.address = self.device.allocate(self.size)
        weakref.finalize(self, self.device.free, self.address)


class DeviceArray:
    """Hold float32 numbers on the GPU; NumPy gets a copy of them when it asks."""

    dtype = FLOAT32

    def __init__(self, memory: Memory, shape: tuple[int, ...], offset: int = 0) -> None:
        self.memory, self.shape, self._offset = memory, shape, offset

    @classmethod
    def empty(cls, device: CudaDevice, shape: tuple[int, ...]) -> DeviceArray:
        """Reserve memory that is the array's own."""
        return cls(Memory(device, FLOAT32.itemsize * prod(shape)), shape)

    @property
    def address(self) -> int:
        """Return where the numbers begin."""
        return self.memory.address + self._offset

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "typestr": FLOAT32.str, "data": (self.address, True), "version": 3,
            "stream": self.memory.device.stream,
        }  # fmt: skip

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> DeviceArray:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError(f"rows of an array on the GPU are taken one after another, not by {step}")
        row = FLOAT32.itemsize * prod(self.shape[1:])
        return DeviceArray(self.memory, (max(stop - start, 0), *self.shape[1:]), self._offset + start * row)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        found = np.empty(self.shape, FLOAT32)
        self.memory.device.download(self.address, found)
        self.memory.device.synchronise()
        return found if dtype is None else found.astype(dtype, copy=False)


@dataclass(frozen=True)
class Lent:
    """Describe an array on the GPU; `owner` keeps it there. With `foreign`, it may change after the call."""

    address: int
    shape: tuple[int, ...]
    owner: object
    foreign: bool = True


class TakesGpuArrays(Runtime):
    """Take an image's features from the host or the GPU, where they are not looked through for NaN."""

    def set_image(self, image: Mapping[str, Any]) -> None:
        """Take one image's features and keep what does not depend on prompts.

        Shapes: DecoderSpec.image_inputs; on the GPU as DLPack or __cuda_array_interface__ has it.
        Raises: ImageError when a tensor is missing, of another type or shape, or not finite.
        """
        if not all(map(on_gpu, image.values())):
            return super().set_image({name: np.asarray(value) for name, value in image.items()})
        with self.turns.changing():
            self._has_image = False
            self._set_gpu_image(image)
            self._has_image = True

    @abstractmethod
    def _set_gpu_image(self, image: Mapping[str, Any]) -> None: ...


def check_shapes(shapes: Mapping[str, tuple[int, ...]], spec: DecoderSpec) -> None:
    """Compare features on the GPU with those that the decoder takes.

    Raises: ImageError.
    """
    expected = {tensor.name: tensor.shape for tensor in spec.image_inputs}
    if shapes != expected:
        raise ImageError("wrong tensors on the GPU", found=dict(shapes), expected=expected)


def lent_image(image: Mapping[str, Any], spec: DecoderSpec, device: CudaDevice) -> dict[str, Lent]:
    """Describe an image's features on the GPU, as lent() does each.

    Raises: ImageError, where they are not those that the decoder takes too.
    """
    found = {name: lent(value, name, device) for name, value in image.items()}
    check_shapes({name: value.shape for name, value in found.items()}, spec)
    return found


def own_array(value: Lent, device: CudaDevice) -> DeviceArray:
    """Return what nobody changes: a copy on the GPU, in the order of its stream, of what is another library's."""
    if isinstance(value.owner, DeviceArray) and not value.foreign:
        return value.owner
    array = DeviceArray.empty(device, value.shape)
    device.copy(array.address, value.address, FLOAT32.itemsize * prod(value.shape))
    return array


class _Tensor(ctypes.Structure):
    """DLPack's description of a tensor."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )  # fmt: skip


def on_gpu(value: object) -> bool:
    """Tell whether an array lies on a GPU."""
    if hasattr(type(value), "__cuda_array_interface__") and _interface(value) is not None:
        return True
    ask = getattr(value, "__dlpack_device__", None)
    return ask is not None and int(ask()[0]) == CUDA


def lent(value: Any, name: str, device: CudaDevice) -> Lent:
    """Describe an array on the GPU, once the work that makes it is ordered before this device's.

    Raises: ImageError where it is not whole rows of float32, on the first GPU.
    """
    if isinstance(value, DeviceArray) and value.memory.device is device:
        return Lent(value.address, value.shape, value, foreign=False)
    facts = _interface(value) if hasattr(type(value), "__cuda_array_interface__") else None
    return _of_dlpack(value, name, device) if facts is None else _of_interface(facts, value, name, device)


def _interface(value: Any) -> Mapping[str, Any] | None:
    """Return what an array says of itself; libraries raise where they have one and it does not lie on a GPU."""
    try:
        facts: Mapping[str, Any] = value.__cuda_array_interface__
    except (AttributeError, RuntimeError, TypeError):
        return None
    return facts


def _of_interface(facts: Mapping[str, Any], value: object, name: str, device: CudaDevice) -> Lent:
    shape, strides = tuple(map(int, facts["shape"])), facts.get("strides")
    _check_type(name, facts["typestr"] == FLOAT32.str, facts["typestr"])
    _check_order(name, shape, None if strides is None else [step // FLOAT32.itemsize for step in strides])
    device.wait_for(facts.get("stream"))
    return Lent(int(facts["data"][0]), shape, value)


def _of_dlpack(value: Any, name: str, device: CudaDevice) -> Lent:
    """Look into a capsule that is not consumed: who made it frees it with the capsule."""
    kind, number = value.__dlpack_device__()
    if (int(kind), int(number)) != (CUDA, 0):
        raise ImageError(f"{name} lies on another device", found=(int(kind), int(number)), expected="the first GPU")
    capsule = value.__dlpack__(stream=device.stream)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _Tensor.from_address(pointer(capsule, CAPSULE))
    shape = tuple(tensor.shape[: tensor.ndim])
    good = (tensor.code, tensor.bits, tensor.lanes) == (FLOAT_CODE, FLOAT_BITS, 1)
    _check_type(name, good, (tensor.code, tensor.bits, tensor.lanes))
    _check_order(name, shape, tensor.strides[: tensor.ndim] if tensor.strides else None)
    return Lent(int(tensor.data) + int(tensor.byte_offset), shape, (value, capsule))


def _check_type(name: str, good: bool, found: object) -> None:
    if not good:
        raise ImageError(f"{name} has the wrong type", found=found, expected="float32")


def _check_order(name: str, shape: tuple[int, ...], strides: list[int] | None) -> None:
    """Refuse an array whose numbers do not lie one after another. Strides are counted in numbers."""
    usual = [prod(shape[i + 1 :]) for i in range(len(shape))]
    if strides is not None and any(a != b for a, b, size in zip(strides, usual, shape, strict=True) if size > 1):
        raise ImageError(f"{name} is not contiguous", found=f"strides {list(strides)}", expected=f"{usual}")
