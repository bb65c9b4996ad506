"""What an engine is bound to, written as engine.json beside it; and the GPU that is here, as the driver tells."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from typing import Any

from samx.artifacts.strict_json import Document, Sha256
from samx.errors import UnavailableError
from samx.formats.tensorrt.library import Library, check_compute, library_of, version_of

WORDS = {"gpu": "GPU", "compute_capability": "compute capability", "driver": "driver", "os": "system"}
AMPERE = (8, 0)
# The driver's own library: building an engine needs nothing else.
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


@dataclass(frozen=True)
class Machine:
    """Describe the machine that builds or runs an engine; without a GPU its three facts are None."""

    version: str  # of the library
    os: str
    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None

    @classmethod
    def here(cls, version: str, gpu: Gpu | None) -> Machine:
        """Describe this machine."""
        system = f"{platform.system()} {platform.machine()}"
        if gpu is None:
            return cls(version, system)
        return cls(version, system, gpu.name, gpu.compute_capability, gpu.driver)


@dataclass(frozen=True)
class Stamp(Document):
    """Bind an engine to its library, its machine, its graph and its bytes."""

    HEADER = {"format": "samx-engine-stamp", "schema_version": 1}

    target: str
    compute: str
    machine: Machine
    onnx_sha256: Sha256
    engine_sha256: Sha256
    created: str

    @property
    def library(self) -> Library:
        """The library that made it."""
        return library_of(self.target)

    def check(self, where: str) -> None:
        """Refuse a target that is unknown, and GPUs that it has no engines for."""
        check_compute(self.target, self.compute, where)


def differs(stamp: Stamp, here: Machine) -> list[str]:
    """Return in words what keeps an engine from running here; nothing, where it runs."""
    library, built = stamp.library, stamp.machine
    found = []
    if library.engine_version(built.version) != library.engine_version(here.version):
        found.append(f"built with {library.title} {built.version}, here is {here.version}")
    for fact in library.binds:
        there, now = getattr(built, fact), getattr(here, fact)
        if there != now:
            found.append(f"built for {WORDS[fact]} {there}, here is {now or 'none'}")
    wrong = _wrong_generation(stamp.compute, here.compute_capability)
    return [*found, wrong] if wrong else found


def _wrong_generation(compute: str, capability: str | None) -> str | None:
    """Compare what an engine was compiled for with this machine's GPU, if there is one."""
    if capability is None or compute == "this_gpu":
        return None
    number = version_of(capability)
    if compute == "sm75" and number != (7, 5):
        return f"compiled for Turing (7.5), here is compute capability {capability}"
    if compute == "ampere_plus" and number < AMPERE:
        return f"compiled for Ampere and later (8.0), here is compute capability {capability}"
    return None
