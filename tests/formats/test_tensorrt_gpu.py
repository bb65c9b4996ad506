"""Which GPU is here is asked of the driver; without one, the device is unavailable."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from samx.errors import UnavailableError
from samx.formats.tensorrt import stamp
from samx.formats.tensorrt.stamp import Gpu, describe_gpu, find_gpu


def fake_driver(devices: int = 1, **codes: int) -> Any:
    """Make a driver library of one GPU; `codes` says which calls fail, and with what."""

    def number(name: str, value: int) -> Any:
        def call(answer: Any, *arguments: int) -> int:
            answer._obj.value = value
            return codes.get(name, 0)

        return call

    def name(buffer: Any, size: int, device: int) -> int:
        buffer.value = b"Toy GPU"
        return 0

    def attribute(answer: Any, fact: int, device: int) -> int:
        answer._obj.value = {75: 8, 76: 7}[fact]
        return 0

    def error(code: int, answer: Any) -> int:
        answer._obj.value = b"what went wrong"
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: codes.get("cuInit", 0), cuDeviceGetCount=number("cuDeviceGetCount", devices),
        cuDeviceGet=number("cuDeviceGet", 0), cuDeviceGetName=name, cuDeviceGetAttribute=attribute,
        cuDriverGetVersion=number("cuDriverGetVersion", 12060), cuGetErrorString=error,
    )  # fmt: skip


def test_a_gpu_is_described() -> None:
    assert describe_gpu(fake_driver()) == Gpu("Toy GPU", "8.7", "CUDA 12.6")


@pytest.mark.parametrize("driver", [fake_driver(devices=0), fake_driver(cuInit=100)])
def test_no_gpu_is_unavailable(driver: Any) -> None:
    with pytest.raises(UnavailableError, match="no GPU is here"):
        describe_gpu(driver)


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDriverGetVersion"])
def test_a_driver_that_does_not_work_says_why(name: str) -> None:
    with pytest.raises(UnavailableError, match=r"does not work: found what went wrong \(CUDA error 804\)"):
        describe_gpu(fake_driver(**{name: 804}))


def test_this_machine_has_no_driver() -> None:
    with pytest.raises(UnavailableError, match="no NVIDIA driver is here") as caught:
        find_gpu()
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)


def test_a_library_that_loads_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake_driver() if name == stamp.DRIVER_LIBRARY else None)
    assert find_gpu().name == "Toy GPU"
