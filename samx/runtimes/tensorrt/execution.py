"""Execution: an engine that is fed by tensor name. Buffers stay; a repeated call with the same shapes only runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.trust import cache_path, read_cached, write_cached
from samx.errors import SamxError, UnavailableError
from samx.formats.tensorrt.library import Opened, first_error
from samx.formats.tensorrt.stamp import Gpu
from samx.runtimes.cuda import Buffers, CudaDevice
from samx.runtimes.cuda_arrays import DeviceArray, Lent

if TYPE_CHECKING:
    import tensorrt_rtx as trt

ITEM_BYTES = np.dtype(np.float32).itemsize  # of every output


class Execution:
    """Bind an engine's tensors to memory, and run it on a device's stream."""

    def __init__(
        self, opened: Opened, loaded: tuple[trt.Runtime, trt.ICudaEngine], sha256: str, device: CudaDevice
    ) -> None:
        self.opened, self.device, self.buffers = opened, device, Buffers(device)
        self._lives_in, self.engine = loaded
        context, self.kernels = open_context(self.engine, opened, device.gpu, sha256)
        self._context: trt.IExecutionContext = context
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}  # what the context knows: address and shape
        self._runs = 0  # calls since the shapes or addresses changed

    def put(self, name: str, value: NDArray[Any] | Lent) -> None:
        """Bring an input to its own memory; one that lies on the GPU is copied there in the order of the stream."""
        size = int(np.prod(value.shape)) * (ITEM_BYTES if isinstance(value, Lent) else value.itemsize)
        changed = self._bind(name, value.shape, self.buffers.address(name, size))
        if changed and not self._context.set_input_shape(name, value.shape):
            del self._bound[name]
            raise self._refusal(f"refuses shape {value.shape} of {name}")
        if isinstance(value, Lent):
            self.device.copy(self._bound[name][0], value.address, size)
        else:
            self.device.upload(self._bound[name][0], value)

    def output(self, name: str, expected: tuple[int | str, ...], asked: str) -> tuple[int, tuple[int, ...]]:
        """Give an output its memory, once every input has a shape; return where it lies, and its shape."""
        shape = self._shape(name, expected, asked)
        self._bind(name, shape, self.buffers.address(name, int(np.prod(shape)) * ITEM_BYTES))
        return self._bound[name]

    def new_output(self, name: str, expected: tuple[int | str, ...], asked: str) -> DeviceArray:
        """Give an output memory that is the caller's, once every input has a shape."""
        shape = self._shape(name, expected, asked)
        array = DeviceArray.empty(self.device, shape)
        self._bind(name, shape, array.address)
        return array

    def run(self) -> None:
        """Put the engine's work on the stream."""
        self._runs += 1
        self.opened.messages.clear()
        if not self._context.execute_async_v3(self.device.stream):
            raise self._refusal("does not run the engine")

    def keep_kernels(self) -> None:
        """Keep the kernels that a new shape has compiled; called after its first run."""
        if self._runs == 1 and self.kernels is not None:
            self.kernels.keep()

    def _shape(self, name: str, expected: tuple[int | str, ...], asked: str) -> tuple[int, ...]:
        """Take the shape that the engine computes."""
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if shape != expected:
            raise self._refusal(f"gives {name} the shape {shape} for {asked}")
        return shape

    def _bind(self, name: str, shape: tuple[int, ...], address: int) -> bool:
        """Tell the context of a tensor's memory; says whether anything changed."""
        before = self._bound.get(name, (0, ()))
        if before == (address, shape):
            return False
        if before[1] != shape:
            self._runs = 0
        if not self._context.set_tensor_address(name, address):
            raise self._refusal(f"refuses the memory of {name}")
        self._bound[name] = (address, shape)
        return True

    def _refusal(self, what: str) -> SamxError:
        title = self.opened.library.title
        return SamxError(f"{title} {what}", found=first_error(self.opened.messages), fix="Please report this.")


def count_layers(engine: trt.ICudaEngine, opened: Opened) -> int:
    """Ask the inspector; an engine whose layers have no readable list still has their number."""
    inspector: trt.EngineInspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(opened.module.LayerInformationFormat.JSON)
    try:
        return len(json.loads(text)["Layers"])
    except (ValueError, KeyError, TypeError):
        return int(engine.num_layers)


class KernelCache:
    """The kernels that were compiled on this GPU, kept so that the next start does not compile them again."""

    def __init__(self, config: trt.IRuntimeConfig, path: Path | None) -> None:
        self._config, self._path = config, path  # what the context is made from must live as long as the context
        self._cache: trt.IRuntimeCache = config.create_runtime_cache()
        kept = read_cached(path)
        taken = kept is not None and self._cache.deserialize(kept)
        self.state = "new" if kept is None else "kept" if taken else "refused"  # the last: of another driver or GPU
        self._kept_bytes = len(kept) if kept is not None and taken else 0
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write the cache if it grew, whole or not at all. Failure is not fatal."""
        data = bytes(memoryview(self._cache.serialize()))
        if len(data) != self._kept_bytes:
            problem = write_cached(self._path, data)
            self.state = self.state if problem is None else f"not kept: {problem}"
            self._kept_bytes = len(data)


def open_context(
    engine: trt.ICudaEngine, opened: Opened, gpu: Gpu, sha256: str
) -> tuple[trt.IExecutionContext, KernelCache | None]:
    """Make what executes an engine, and its kernels where the library compiles them on this machine.

    Raises: UnavailableError when the GPU does not take it, mostly for want of memory.
    """
    opened.messages.clear()
    kernels = None
    execution: trt.IExecutionContext | None
    if opened.library.has_runtime_cache:
        config = _config(engine, opened)
        facts = (opened.version, gpu.name, gpu.compute_capability, gpu.driver, sha256)
        kernels = KernelCache(config, cache_path("kernels", opened.library.target, *facts))
        execution = engine.create_execution_context(config)
    else:
        execution = engine.create_execution_context()
    if execution is None:
        raise UnavailableError(
            f"{opened.library.title} cannot make room for the engine on {gpu.name}", found=first_error(opened.messages),
            fix="Free GPU memory, or export for fewer prompts at a time.",
        )  # fmt: skip
    return execution, kernels


def _config(engine: trt.ICudaEngine, opened: Opened) -> trt.IRuntimeConfig:
    config: trt.IRuntimeConfig = engine.create_runtime_config()
    # Compile for a new shape before its first call returns: what is measured afterwards does not change any more.
    config.dynamic_shapes_kernel_specialization_strategy = opened.module.DynamicShapesKernelSpecializationStrategy.EAGER
    config.cuda_graph_strategy = opened.module.CudaGraphStrategy.DISABLED
    return config
