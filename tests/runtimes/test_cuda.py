"""The CUDA calls, on a runtime that lives in memory; every name of it exists in the installed bindings."""

from __future__ import annotations

import ast
import ctypes
import gc
import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

import samx
from samx.errors import SamxError, UnavailableError
from samx.formats.tensorrt.stamp import Gpu
from samx.runtimes.tensorrt.cuda import CudaDevice, cuda_runtime

PACKAGE = Path(samx.__file__).parent
TOY = Gpu("Toy GPU", "8.7", "CUDA 12.6")


class FakeStream(int):
    """A handle that counts as a number, as the bindings' own does."""


def runtime(**codes: int) -> tuple[ModuleType, list[str]]:
    """Make a CUDA runtime on the host's memory; `codes` says which calls fail, and with what."""
    log: list[str] = []
    memory: dict[int, Any] = {}

    def answer(name: str, *values: Any) -> tuple[Any, ...]:
        log.append(name)
        return (codes.get(name, 0), *values)

    def allocate(size: int) -> tuple[Any, ...]:
        block = ctypes.create_string_buffer(size)
        memory[ctypes.addressof(block)] = block
        return answer("cudaMalloc", ctypes.addressof(block))

    def copy(to: int, source: int, size: int, kind: str, stream: int) -> tuple[Any, ...]:
        assert stream == 77
        ctypes.memmove(to, source, size)
        return answer(f"copy {kind}")

    cuda = ModuleType("cuda.bindings.runtime")
    cuda.__dict__.update(
        cudaDriverGetVersion=lambda: (0, 12060),
        cudaRuntimeGetVersion=lambda: (0, 13050),
        cudaGetErrorString=lambda code: (0, b"what went wrong"),
        cudaStreamNonBlocking=1,
        cudaMemcpyKind=SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
        cudaSetDevice=lambda device: answer("cudaSetDevice"),
        cudaStreamCreateWithFlags=lambda flags: answer("cudaStreamCreateWithFlags", FakeStream(77)),
        cudaStreamDestroy=lambda stream: answer("cudaStreamDestroy"),
        cudaStreamSynchronize=lambda stream: answer("cudaStreamSynchronize"),
        cudaMalloc=allocate,
        cudaFree=lambda address: memory.pop(address) and answer("cudaFree"),
        cudaMemcpyAsync=copy,
    )
    return cuda, log


def test_arrays_go_there_and_back() -> None:
    cuda, log = runtime()
    device = CudaDevice(cuda, TOY)
    there, back = np.arange(12, dtype=np.float32).reshape(3, 4), np.empty((3, 4), np.float32)
    address = device.allocate(there.nbytes)
    device.upload(address, there)
    device.download(address, back)
    device.synchronise()
    device.free(address)
    np.testing.assert_array_equal(back, there)
    assert log[2:] == ["cudaMalloc", "copy up", "copy down", "cudaStreamSynchronize", "cudaFree"]
    assert (device.stream, device.gpu.name) == (77, "Toy GPU")


@pytest.mark.parametrize(
    ("name", "code", "error", "words"),
    [
        ("cudaMalloc", 2, UnavailableError, "cannot reserve 1.0 MiB on the GPU"),
        ("copy up", 700, SamxError, "cannot copy to the GPU"),
        ("cudaStreamSynchronize", 700, SamxError, "cannot finish the work on the GPU"),
    ],
)
def test_errors_say_what_was_being_done(name: str, code: int, error: type[SamxError], words: str) -> None:
    cuda, _ = runtime(**{name: code})

    def work(device: CudaDevice) -> None:
        device.upload(device.allocate(1 << 20), np.zeros(4, np.float32))
        device.synchronise()

    with pytest.raises(error, match=words):
        work(CudaDevice(cuda, TOY))


def test_a_driver_older_than_the_bindings_says_which_bindings_fit() -> None:
    cuda, _ = runtime(cudaSetDevice=35)
    words = r"found CUDA 12\.6, expected CUDA 13\.5\. Run: pip install 'cuda-bindings==12\.\*'"
    with pytest.raises(UnavailableError, match=words):
        CudaDevice(cuda, TOY)


def test_bindings_that_cannot_load_the_driver_are_unavailable() -> None:
    def fail(device: int) -> NoReturn:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    cuda, _ = runtime()
    cuda.__dict__["cudaSetDevice"] = fail
    with pytest.raises(UnavailableError, match=r"cannot take the GPU: found Failed to dlopen libcuda\.so\.1"):
        CudaDevice(cuda, TOY)


def test_the_real_bindings_find_no_driver_here() -> None:
    with pytest.raises(UnavailableError) as caught:
        CudaDevice(cuda_runtime("trt"), TOY)
    assert caught.value.exit_code == 5


def test_the_stream_is_given_back() -> None:
    cuda, log = runtime()
    device = CudaDevice(cuda, TOY)
    del device
    gc.collect()
    assert log[-1] == "cudaStreamDestroy"


def used_names(source: str) -> set[str]:
    """List what a source asks of the CUDA runtime, from its syntax."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in nodes if ast.unparse(node.value) in ("cuda", "self._cuda")}


def absent(names: set[str]) -> list[str]:
    bindings = importlib.import_module("cuda.bindings.runtime")
    return sorted(name for name in names if not hasattr(bindings, name))


def test_every_name_exists_in_the_bindings() -> None:
    names = used_names((PACKAGE / "runtimes" / "tensorrt" / "cuda.py").read_text(encoding="utf-8"))
    assert {"cudaMalloc", "cudaMemcpyAsync", "cudaStreamNonBlocking", "cudaGetErrorString"} <= names
    assert absent(names) == []
    kinds = importlib.import_module("cuda.bindings.runtime").cudaMemcpyKind
    assert kinds.cudaMemcpyHostToDevice != kinds.cudaMemcpyDeviceToHost


def test_a_planted_name_is_found_absent() -> None:
    assert absent(used_names("def f(cuda):\n    cuda.cudaMallocAll(1)")) == ["cudaMallocAll"]
