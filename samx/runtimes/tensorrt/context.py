"""Make an execution context; with TensorRT for RTX also say how kernels are compiled, and keep the compiled ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from samx.artifacts.private import cache_directory, read_cached, write_cached
from samx.errors import UnavailableError
from samx.formats.tensorrt.gpu import Gpu
from samx.formats.tensorrt.library import Opened
from samx.formats.tensorrt.messages import first_error
from samx.formats.tensorrt.timing import named

if TYPE_CHECKING:
    import tensorrt_rtx as trt


@dataclass
class KernelCache:
    """Keep the kernels that were compiled on this GPU, so that the next start does not compile them again."""

    config: trt.IRuntimeConfig  # what the context was made from stays as long as the context
    cache: trt.IRuntimeCache
    path: Path
    state: str  # "kept": read from disk; "new"; "refused": from another driver or GPU
    kept_bytes: int = field(default=0)

    def keep(self) -> None:
        """Write the cache if it grew, whole or not at all. A cache that cannot be written stops nobody's work."""
        data = bytes(memoryview(self.cache.serialize()))
        if len(data) != self.kept_bytes:
            problem = write_cached(self.path, data)
            self.state = self.state if problem is None else f"not kept: {problem}"
            self.kept_bytes = len(data)


@dataclass(frozen=True)
class Context:
    """Hold what executes an engine, and its kernels where the library compiles them on this machine."""

    execution: trt.IExecutionContext
    kernels: KernelCache | None


def open_context(engine: trt.ICudaEngine, opened: Opened, gpu: Gpu, sha256: str, cuda_graph: bool) -> Context:
    """Make the context of one engine.

    Raises: UnavailableError when the GPU does not take it, mostly for want of memory.
    """
    opened.messages.clear()
    kernels = None
    execution: trt.IExecutionContext | None
    if opened.library.has_runtime_cache:
        config = _config(engine, opened, cuda_graph)
        kernels = _kernels(config, kernel_cache_path(opened, gpu, sha256))
        execution = engine.create_execution_context(config)
    else:
        execution = engine.create_execution_context()
    if execution is None:
        raise UnavailableError(
            f"{opened.library.title} cannot make room for the engine on {gpu.name}", found=first_error(opened.messages),
            fix="Free GPU memory, or export for fewer prompts at a time.",
        )  # fmt: skip
    return Context(execution, kernels)


def kernel_cache_path(opened: Opened, gpu: Gpu, sha256: str) -> Path:
    """Name the cache of one engine on one GPU with one library and driver."""
    parts = named(opened.version, gpu.name, gpu.compute_capability, gpu.driver, sha256)
    return cache_directory() / "kernels" / f"{opened.library.target}-{parts}.cache"


def _config(engine: trt.ICudaEngine, opened: Opened, cuda_graph: bool) -> trt.IRuntimeConfig:
    config: trt.IRuntimeConfig = engine.create_runtime_config()
    # Compile for a new shape before its first call returns: what is measured afterwards does not change any more.
    config.dynamic_shapes_kernel_specialization_strategy = opened.module.DynamicShapesKernelSpecializationStrategy.EAGER
    strategies = opened.module.CudaGraphStrategy
    config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if cuda_graph else strategies.DISABLED
    return config


def _kernels(config: trt.IRuntimeConfig, path: Path) -> KernelCache:
    cache: trt.IRuntimeCache = config.create_runtime_cache()
    data = read_cached(path)
    state = "new"
    if data is not None:
        state = "kept" if cache.deserialize(data) else "refused"
    config.set_runtime_cache(cache)
    return KernelCache(config, cache, path, state, len(data) if data is not None and state == "kept" else 0)
