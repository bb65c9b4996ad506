"""Running the decoder as an engine of TensorRT or TensorRT for RTX, built on this machine."""
# ruff: noqa: T201 - part of a program

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from samx.kits.runner.gpu import Gpu
from samx.kits.runner.kit import RUNTIMES, UNAVAILABLE, Arrays, Json, Kit, KitError, library, now, sha256_of, write

if TYPE_CHECKING:
    import tensorrt_rtx as trt


class TensorRT:
    """Run the engine that this kit built on this GPU; no other is loaded, because an engine is executable code."""

    def __init__(self, kit: Kit, place: Json) -> None:
        module, self.gpu, self.place = library(place), Gpu(), place
        logger = module.Logger(module.Logger.ERROR)
        bound = {"library": module.__version__, "system": platform.platform(), **self.gpu.facts}
        data, source = kept_engine(kit, place, bound, lambda: build_engine(kit, place, module, logger))
        self.runtime: trt.Runtime = module.Runtime(logger)  # has to live as long as the engine
        engine: trt.ICudaEngine | None = self.runtime.deserialize_cuda_engine(data)
        context = None if engine is None else open_context(engine, module, place)
        if engine is None or context is None:
            raise _library_said(place, "does not open its engine")
        self.engine, self.context, self.bytes = engine, context, len(data)
        self.details = {place["library"]: module.__version__, **self.gpu.facts, "engine": source}
        self.outputs = list(kit.says["tensors"]["outputs"])

    def set_image(self, image: Arrays) -> None:
        """Copy the image's tensors to the GPU, where they stay."""
        for name, value in image.items():
            self._upload(name, value)
        self.gpu.call("cuStreamSynchronize", self.gpu.stream)

    def decode(self, prompts: Arrays) -> Arrays:
        """Copy prompts to the GPU, run, copy the outputs back, and wait for all of it."""
        context: trt.IExecutionContext = self.context
        for name, value in prompts.items():
            self._upload(name, value)
        found = {name: np.empty(tuple(context.get_tensor_shape(name)), np.float32) for name in self.outputs}
        for name, value in found.items():
            context.set_tensor_address(name, self.gpu.address(name, value.nbytes))
        if not context.execute_async_v3(self.gpu.stream.value or 0):
            raise _library_said(self.place, "does not run its engine")
        for name, value in found.items():
            self.gpu.copy(name, value, back=True)
        self.gpu.call("cuStreamSynchronize", self.gpu.stream)
        return found

    def placement(self) -> tuple[Json, Json]:
        """Count the engine's layers; all of them run on the GPU."""
        engine: trt.ICudaEngine = self.engine
        return {self.place["device"]: engine.num_layers}, {**self.details, "counted": "engine layers"}

    def _upload(self, name: str, value: Any) -> None:
        context: trt.IExecutionContext = self.context
        context.set_tensor_address(name, self.gpu.address(name, value.nbytes))
        if not context.set_input_shape(name, value.shape):
            raise _library_said(self.place, f"takes no {name} of shape {value.shape} in this engine")
        self.gpu.copy(name, np.ascontiguousarray(value))


def kept_engine(kit: Kit, place: Json, bound: Json, build: Callable[[], bytes]) -> tuple[bytes, str]:
    """Take the engine that this kit built on this machine with this library, or build and keep one."""
    folder, bound = kit.folder / "engine", {**bound, "onnx_sha256": kit.says["files"][place["graphs"][0]]}
    with suppress(OSError, ValueError):
        data, stamp = (folder / "decoder.engine").read_bytes(), json.loads((folder / "engine.json").read_bytes())
        if stamp == {**bound, "engine_sha256": sha256_of(data)}:
            return data, "built before"
    print("building the engine on this machine; this takes a while, once", flush=True)
    started, data = now(), build()
    with suppress(OSError):  # where it cannot be kept it is built again
        folder.mkdir(exist_ok=True)
        write(folder / "decoder.engine", data)
        write(folder / "engine.json", json.dumps({**bound, "engine_sha256": sha256_of(data)}).encode())
    return data, f"built in {(now() - started) / 1e9:.1f} s"


def build_engine(kit: Kit, place: Json, module: Any, logger: trt.ILogger) -> bytes:
    """Build what build.json plans: strongly typed, without TF32, one profile."""
    plan = json.loads(kit.read(place["plan"]))
    builder: trt.Builder = module.Builder(logger)
    flag = getattr(getattr(module, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED", None)
    network: trt.INetworkDefinition = builder.create_network(0 if flag is None else 1 << int(flag))
    parser: trt.OnnxParser = module.OnnxParser(network, logger)
    if not parser.parse(kit.read(place["graphs"][0])):
        raise _library_said(place, f"cannot read {place['graphs'][0]}")
    config: trt.IBuilderConfig = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)
    if place["capabilities"]:
        config.num_compute_capabilities = len(place["capabilities"])
    for i, name in enumerate(place["capabilities"]):
        config.set_compute_capability(getattr(module.ComputeCapability, name), i)
    profile: trt.IOptimizationProfile = builder.create_optimization_profile()
    for name, shapes in plan["profile"].items():
        profile.set_shape(name, *map(tuple, shapes))
    config.add_optimization_profile(profile)
    engine: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if engine is None:
        raise _library_said(place, f"cannot build {place['graphs'][0]}")
    return bytes(memoryview(engine))


def open_context(engine: trt.ICudaEngine, module: Any, place: Json) -> trt.IExecutionContext | None:
    """Make the engine's context; kernels for a new shape are compiled before its first call returns."""
    if not place["compiles_kernels"]:
        return engine.create_execution_context()
    config: trt.IRuntimeConfig = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
    return engine.create_execution_context(config)


def _library_said(place: Json, what: str) -> KitError:
    return KitError(UNAVAILABLE, f"{place['library']} {what}; its own words stand above")


RUNTIMES["tensorrt"] = TensorRT
