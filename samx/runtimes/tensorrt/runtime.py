"""Run an artifact's engine with TensorRT or TensorRT for RTX: one adapter over the API that both share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from samx.artifacts import trust
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, PromptError, SamxError, UnavailableError
from samx.formats.tensorrt.engine import check_engine, load_engine
from samx.formats.tensorrt.plan import DECODER, BuildPlan, EnginePlan, Part, engine_file, read_plan, read_plan_of
from samx.formats.tensorrt.stamp import Machine, Stamp, differs, find_gpu
from samx.models.session import Feed, Outputs, Placement
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.runtimes.base import CopiesOnly, Padding, check_device, refuse_threads
from samx.runtimes.cuda import shared_device
from samx.runtimes.cuda_arrays import Lent, TakesGpuArrays, lent_image
from samx.runtimes.tensorrt.execution import Execution, count_layers

DEVICE = "cuda"


def open_artifact(artifact: Artifact, device: str = DEVICE, threads: int | None = None) -> TensorRTRuntime:
    """Open a verified artifact. An engine takes as many prompts at a time as it was built for.

    Raises: MissingExtraError; UnavailableError without the library's version or the GPU; ArtifactError for an engine
    that is not built yet, not trusted, or not of this machine; UsageError.
    """
    part = open_engine(artifact, DECODER, device, threads)
    padding = Padding.of(artifact.manifest.options, str(artifact.path))
    return TensorRTRuntime(artifact.manifest.spec, read_plan(artifact), part, padding)


def open_engine(artifact: Artifact, part: Part, device: str, threads: int | None) -> Execution:
    """Open one of a verified artifact's engines.

    Raises: as open_artifact().
    """
    check_device(device, [DEVICE], "unsupported device of an engine")
    refuse_threads(threads, "an engine has no CPU threads to choose")
    plan = read_plan_of(artifact, part)
    opened = plan.library.start()
    name = engine_file(artifact, part)
    sha256 = artifact.manifest.files[name].sha256
    trust.require_trusted(sha256, artifact.path)
    memory = shared_device()
    check_stamp(artifact, plan, sha256, Machine.here(opened.version, memory.gpu))
    where = str(artifact.path)
    loaded = load_engine(artifact.read(name), opened, where)  # the bytes whose hash is the trusted one
    check_engine(loaded[1], opened, plan, where)
    return Execution(opened, loaded, sha256, memory)


def devices() -> list[str]:
    """List the devices that engines can run on here."""
    try:
        find_gpu()
    except UnavailableError:
        return []
    return [DEVICE]


def check_stamp(artifact: Artifact, plan: EnginePlan, sha256: str, here: Machine) -> None:
    """Refuse an engine that was made from another graph or belongs to another machine.

    Raises: ArtifactError naming what differs.
    """
    name = artifact.file_with_role(plan.PART.stamp_role)
    stamp = Stamp.from_bytes(artifact.read(name), str(artifact.path / name))
    found = differs(stamp, here)
    if (stamp.engine_sha256, stamp.onnx_sha256) != (sha256, plan.onnx_sha256):
        found.append("stamped for another engine or graph")
    if found:
        raise ArtifactError(
            f"the engine of {artifact.path} does not belong to this machine", found="; ".join(found),
            fix=f"Build it here: samx build {artifact.path}",
        )  # fmt: skip


class TensorRTRuntime(CopiesOnly, TakesGpuArrays):
    """Decode with an engine."""

    def __init__(
        self, spec: DecoderSpec, plan: BuildPlan, execution: Execution, padding: Padding | None = None
    ) -> None:
        super().__init__(spec, plan.prompts.max, padding)
        self._plan, self._execution = plan, execution
        self.profile_prompts = plan.prompts  # for the gate, which asks its least, its usual and its most
        self._held: Mapping[str, Lent] = {}  # until the stream has copied them

    def placement(self) -> Placement:
        """Count the engine's layers, as the library's inspector lists them; all of them run on the GPU."""
        execution = self._execution
        opened, device, kernels = execution.opened, execution.device, execution.kernels
        details = {
            opened.library.module: opened.version,
            "gpu": device.gpu.name,
            "compute_capability": device.gpu.compute_capability,
            "driver": device.gpu.driver,
            "kernel_cache": None if kernels is None else kernels.state,
            "buffer_bytes": execution.buffers.total,
            "counted": "engine layers",
        }
        layers = count_layers(execution.engine, opened)
        return Placement(opened.library.module, DEVICE, {DEVICE: layers}, details)

    def _set_gpu_image(self, image: Mapping[str, Any]) -> None:
        """Copy features on the GPU; those that nobody changes need no waiting, for the next call waits for all."""
        device = self._execution.device
        self._held = lent_image(image, self.spec, device)
        for name, value in self._held.items():
            self._execution.put(name, value)
        if any(value.foreign for value in self._held.values()):
            device.synchronise()

    def _set_image(self, image: Feed) -> None:
        self._held = {}
        for name, value in image.items():
            self._execution.put(name, value)
        self._execution.device.synchronise()

    def _decode(self, prompts: Feed) -> Outputs:
        n, points = prompts["point_labels"].shape
        self._check_limits(n, points)
        execution = self._execution
        for name, value in prompts.items():
            execution.put(name, value)
        places = {t.name: execution.output(t.name, (n, *t.shape[1:]), f"{n} prompts") for t in self.spec.outputs}
        if self._works:
            execution.run()
        outputs = {name: np.empty(shape, np.float32) for name, (_, shape) in places.items()}
        for name, value in outputs.items():
            execution.device.download(places[name][0], value)
        execution.device.synchronise()
        self._held = {}
        execution.keep_kernels()
        return outputs

    def _check_limits(self, prompts: int, points: int) -> None:
        check_limit("prompts a call", prompts, self._plan.prompts, PromptError)
        check_limit("points a prompt", points, self._plan.points, PromptError)


def check_limit(what: str, count: int, limits: ShapeRange, error: type[SamxError]) -> None:
    """Refuse a size that an engine was not built for.

    Raises: the error.
    """
    if count not in limits:
        raise error(
            f"this engine was not built for that many {what}, padding counted", found=count,
            expected=f"{limits.min} to {limits.max}", fix="Export again with a range that contains it.",
        )  # fmt: skip
