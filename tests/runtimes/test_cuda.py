"""The CUDA calls, on a driver that lives in memory; each is one that the driver declares, with as many arguments."""

from __future__ import annotations

import ast
import gc
import importlib.util
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fake_driver import CONTEXT, STREAM, TOY, Driver

import samx
from samx.errors import SamxError, UnavailableError
from samx.runtimes.cuda import CudaDevice

PACKAGE = Path(samx.__file__).parent


START = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate"]


def test_arrays_go_there_and_back() -> None:
    driver = Driver()
    device = CudaDevice(driver, TOY)
    there, back = np.arange(12, dtype=np.float32).reshape(3, 4), np.empty((3, 4), np.float32)
    address = device.allocate(there.nbytes)
    device.upload(address, there)
    device.download(address, back)
    device.synchronise()
    device.free(address)
    np.testing.assert_array_equal(back, there)
    copies = ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2"]
    assert driver.log == [*START, "cuMemAlloc_v2", *copies, "cuStreamSynchronize", "cuMemFree_v2"]
    assert (device.stream, device.gpu.name, driver.memory) == (STREAM, "Toy GPU", {})


def test_another_thread_works_in_the_same_context() -> None:
    driver = Driver()
    device = CudaDevice(driver, TOY)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(device.allocate(16)))
    thread.start()
    thread.join()
    assert found == list(driver.memory)
    assert list(driver.context.values()) == [CONTEXT, CONTEXT]


@pytest.mark.parametrize(
    ("name", "code", "error", "words"),
    [
        ("cuInit", 100, UnavailableError, "cannot take the GPU"),
        ("cuMemAlloc_v2", 2, UnavailableError, "cannot reserve 1.0 MiB on the GPU"),
        ("cuMemcpyHtoDAsync_v2", 700, SamxError, "cannot copy to the GPU"),
        ("cuStreamSynchronize", 700, SamxError, "cannot finish the work on the GPU"),
        ("cuCtxSetCurrent", 201, SamxError, "cannot make a stream"),
    ],
)
def test_errors_say_what_was_being_done(name: str, code: int, error: type[SamxError], words: str) -> None:
    def work(device: CudaDevice) -> None:
        device.upload(device.allocate(1 << 20), np.zeros(4, np.float32))
        device.synchronise()

    with pytest.raises(error, match=f"{words}: found what went wrong") as caught:
        work(CudaDevice(Driver(**{name: code}), TOY))
    assert type(caught.value) is error


def test_the_stream_is_given_back() -> None:
    driver = Driver()
    device = CudaDevice(driver, TOY)
    del device
    gc.collect()
    assert driver.log[-1] == "cuStreamDestroy_v2"


def declared() -> Mapping[str, int]:
    """Count the arguments of each function of the driver, as NVIDIA's own bindings declare it."""
    found = importlib.util.find_spec("cuda.bindings")
    assert found is not None
    assert found.origin is not None
    text = (Path(found.origin).parent / "_internal" / "driver.pxd").read_text(encoding="utf-8")
    declaration = r"CUresult _(\w+)\((.*)\) except"
    return {name: len(inside.split(",")) if inside else 0 for name, inside in re.findall(declaration, text)}


def wrong_calls(source: str) -> list[str]:
    """List the calls of the driver that it does not declare, or with another number of arguments."""
    known, found = declared(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            names = [part.attr for part in (node.func, *node.args) if isinstance(part, ast.Attribute)]
            direct = isinstance(node.func, ast.Attribute) and node.func.attr.startswith("cu")
            for name in (name for name in names if name.startswith("cu")):
                count = len(node.args) if direct else len(node.args) - 2  # _call(words, function, ...)
                found += [name] if known.get(name) != count else []
    return found


def test_every_call_is_one_that_the_driver_declares() -> None:
    source = (PACKAGE / "runtimes" / "cuda.py").read_text(encoding="utf-8")
    assert set(re.findall(r"\bcu[A-Z]\w+", source)) >= {"cuMemAlloc_v2", "cuStreamSynchronize", "cuInit"}
    assert wrong_calls(source) == []


@pytest.mark.parametrize(
    "call", ["driver.cuMemAlloc_v3(a, b)", "self._call('x', driver.cuMemFree_v2, a, b)", "driver.cuInit()"]
)
def test_a_planted_call_is_found(call: str) -> None:
    assert len(wrong_calls(call)) == 1
