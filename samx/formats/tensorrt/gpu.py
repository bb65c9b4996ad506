"""Ask the NVIDIA driver which GPU is here, through its own library: no package of CUDA's is needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

from samx.errors import UnavailableError

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
FIRST_DEVICE = 0  # CUDA_VISIBLE_DEVICES says which one that is
# Numbers of cuDeviceGetAttribute, part of the driver's interface.
MAJOR, MINOR = 75, 76
NO_DEVICE = 100
NAME_BYTES = 256
REMEDY = "Run this on a machine with a GPU and its driver."


@dataclass(frozen=True)
class Gpu:
    """Say which GPU this is and which CUDA its driver speaks."""

    name: str
    compute_capability: str
    driver: str


def find_gpu() -> Gpu:
    """Describe the first GPU.

    Raises: UnavailableError when there is no driver or no GPU.
    """
    return describe_gpu(open_driver())


def describe_gpu(driver: Any) -> Gpu:
    """Describe the first GPU of a loaded driver library.

    Raises: UnavailableError.
    """
    _call(driver, driver.cuInit(0))
    if _number(driver, driver.cuDeviceGetCount) == 0:
        raise UnavailableError("no GPU is here", fix=REMEDY)
    device = _number(driver, driver.cuDeviceGet, FIRST_DEVICE)
    name = ctypes.create_string_buffer(NAME_BYTES)
    _call(driver, driver.cuDeviceGetName(name, NAME_BYTES, device))
    major, minor = (_number(driver, driver.cuDeviceGetAttribute, fact, device) for fact in (MAJOR, MINOR))
    version = cuda_words(_number(driver, driver.cuDriverGetVersion))
    return Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", version)


def cuda_words(version: int) -> str:
    """Say a CUDA version that is written as one number."""
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def open_driver() -> Any:
    """Load the driver's library.

    Raises: UnavailableError when it is not there.
    """
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as cause:
        raise UnavailableError("no NVIDIA driver is here", found=cause, fix=REMEDY) from cause


def _number(driver: Any, function: Any, *arguments: int) -> int:
    answer = ctypes.c_int()
    _call(driver, function(ctypes.byref(answer), *arguments))
    return answer.value


def _call(driver: Any, code: int) -> None:
    if code == 0:
        return
    if code == NO_DEVICE:
        raise UnavailableError("no GPU is here", fix=REMEDY)
    raise UnavailableError("the NVIDIA driver does not work", found=error_words(driver, code), fix=REMEDY)


def error_words(driver: Any, code: int) -> str:
    """Put an error of the driver's into words."""
    words = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(words))
    return f"{(words.value or b'unknown error').decode(errors='replace')} (CUDA error {code})"
