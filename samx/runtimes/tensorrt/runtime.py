"""Run an artifact's engine with TensorRT or TensorRT for RTX: one adapter over the API that both share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from samx.artifacts import trust
from samx.artifacts.store import Artifact
from samx.artifacts.trust import cache_path, read_cached, write_cached
from samx.errors import ArtifactError, PromptError, SamxError, UnavailableError
from samx.formats.tensorrt.engine import check_engine, load_engine
from samx.formats.tensorrt.library import Opened, first_error
from samx.formats.tensorrt.plan import BuildPlan, engine_file, read_plan
from samx.formats.tensorrt.stamp import STAMP_ROLE, Gpu, Machine, Stamp, describe_gpu, differs, find_gpu, open_driver
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec, TensorSpec
from samx.runtimes.base import CopiesOnly, Padding, Runtime, check_device, refuse_threads
from samx.runtimes.tensorrt.cuda import Buffers, CudaDevice

if TYPE_CHECKING:
    import tensorrt_rtx as trt

DEVICE = "cuda"
ITEM_BYTES = np.dtype(np.float32).itemsize


def open_artifact(artifact: Artifact, device: str = DEVICE, threads: int | None = None) -> TensorRTRuntime:
    """Open a verified artifact. An engine takes as many prompts at a time as it was built for.

    Raises: MissingExtraError; UnavailableError without the library's version or the GPU; ArtifactError for an engine
    that is not built yet, not trusted, or not of this machine; UsageError.
    """
    check_device(device, [DEVICE], "unsupported device of an engine")
    refuse_threads(threads, "an engine has no CPU threads to choose")
    plan = read_plan(artifact)
    opened = plan.library.start()
    name = engine_file(artifact)
    sha256 = artifact.manifest.files[name].sha256
    trust.require_trusted(sha256, artifact.path)
    driver = open_driver()
    gpu = describe_gpu(driver)
    check_stamp(artifact, plan, sha256, Machine.here(opened.version, gpu))
    memory, where = CudaDevice(driver, gpu), str(artifact.path)
    loaded = load_engine(artifact.read(name), opened, where)  # the bytes whose hash is the trusted one
    check_engine(loaded[1], opened, plan, where)
    padding = Padding.of(artifact.manifest.options, where)
    return TensorRTRuntime(artifact.manifest.spec, plan, opened, loaded, sha256, memory, padding)


def devices() -> list[str]:
    """List the devices that engines can run on here."""
    try:
        find_gpu()
    except UnavailableError:
        return []
    return [DEVICE]


def check_stamp(artifact: Artifact, plan: BuildPlan, sha256: str, here: Machine) -> None:
    """Refuse an engine that was made from another graph or belongs to another machine.

    Raises: ArtifactError naming what differs.
    """
    name = artifact.file_with_role(STAMP_ROLE)
    stamp = Stamp.from_bytes(artifact.read(name), str(artifact.path / name))
    found = differs(stamp, here)
    if (stamp.engine_sha256, stamp.onnx_sha256) != (sha256, plan.onnx_sha256):
        found.append("stamped for another engine or graph")
    if found:
        raise ArtifactError(
            f"the engine of {artifact.path} does not belong to this machine", found="; ".join(found),
            fix=f"Build it here: samx build {artifact.path}",
        )  # fmt: skip


class TensorRTRuntime(CopiesOnly, Runtime):
    """Feed an engine by tensor name. Buffers stay; a repeated call with the same shapes only copies and runs."""

    def __init__(
        self, spec: DecoderSpec, plan: BuildPlan, opened: Opened, loaded: tuple[trt.Runtime, trt.ICudaEngine],
        sha256: str, device: CudaDevice, padding: Padding | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, plan.prompts.max, padding)
        self._plan, self._opened, self._device = plan, opened, device
        self._lives_in, self._engine = loaded
        execution, self._kernels = open_context(self._engine, opened, device.gpu, sha256)
        self._context: trt.IExecutionContext = execution
        self._buffers = Buffers(device)
        self._bound: dict[str, tuple[int, tuple[int, ...]]] = {}  # what the context knows: address and shape
        self._runs = 0  # calls since the shapes or addresses changed

    def placement(self) -> Placement:
        """Count the engine's layers, as the library's inspector lists them; all of them run on the GPU."""
        opened, device, kernels = self._opened, self._device, self._kernels
        details = {
            opened.library.module: opened.version,
            "gpu": device.gpu.name,
            "compute_capability": device.gpu.compute_capability,
            "driver": device.gpu.driver,
            "kernel_cache": None if kernels is None else kernels.state,
            "buffer_bytes": self._buffers.total,
            "counted": "engine layers",
        }
        layers = count_layers(self._engine, opened)
        return Placement(opened.library.module, DEVICE, {DEVICE: layers}, details)

    def _set_image(self, image: Feed) -> None:
        for name, value in image.items():
            self._upload(name, value)
        self._device.synchronise()

    def _decode(self, prompts: Feed) -> Outputs:
        n, points = prompts["point_labels"].shape
        self._check_limits(n, points)
        for name, value in prompts.items():
            self._upload(name, value)
        shapes = {tensor.name: self._bind_output(tensor, n) for tensor in self.spec.outputs}
        if self._works:
            self._run()
        outputs = {name: np.empty(shape, np.float32) for name, shape in shapes.items()}
        for name, value in outputs.items():
            self._device.download(self._bound[name][0], value)
        self._device.synchronise()
        if self._runs == 1 and self._kernels is not None:
            self._kernels.keep()  # a new shape has compiled new kernels
        return outputs

    def _check_limits(self, prompts: int, points: int) -> None:
        plan = self._plan
        for what, count, limits in (
            ("prompts a call", prompts, plan.prompts),
            ("points a prompt", points, plan.points),
        ):
            if count not in limits:
                raise PromptError(
                    f"this engine was not built for that many {what}, padding counted", found=count,
                    expected=f"{limits.min} to {limits.max}", fix="Export again with a range that contains it.",
                )  # fmt: skip

    def _upload(self, name: str, value: FloatArray) -> None:
        if self._bind(name, value.shape) and not self._context.set_input_shape(name, value.shape):
            del self._bound[name]
            raise self._refusal(f"refuses shape {value.shape} of {name}")
        self._device.upload(self._bound[name][0], value)

    def _bind_output(self, tensor: TensorSpec, rows: int) -> tuple[int, ...]:
        """Take the shape that the engine computes, once every input has one."""
        shape = tuple(int(size) for size in self._context.get_tensor_shape(tensor.name))
        if shape != (rows, *tensor.shape[1:]):
            raise self._refusal(f"gives {tensor.name} the shape {shape} for {rows} prompts")
        self._bind(tensor.name, shape)
        return shape

    def _bind(self, name: str, shape: tuple[int, ...]) -> bool:
        """Give a tensor its memory; says whether anything changed."""
        address = self._buffers.address(name, int(np.prod(shape)) * ITEM_BYTES)
        if self._bound.get(name) == (address, shape):
            return False
        self._runs = 0
        if not self._context.set_tensor_address(name, address):
            raise self._refusal(f"refuses the memory of {name}")
        self._bound[name] = (address, shape)
        return True

    def _run(self) -> None:
        self._runs += 1
        self._opened.messages.clear()
        if not self._context.execute_async_v3(self._device.stream):
            raise self._refusal("does not run the engine")

    def _refusal(self, what: str) -> SamxError:
        title = self._opened.library.title
        return SamxError(f"{title} {what}", found=first_error(self._opened.messages), fix="Please report this.")


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
