"""Turn an engine's bytes into an engine, and read back what it says about itself. This needs the GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samx.errors import ArtifactError, UnavailableError
from samx.formats.tensorrt.library import Opened
from samx.formats.tensorrt.messages import first_error
from samx.formats.tensorrt.plan import BuildPlan
from samx.formats.tensorrt.readback import CAPABILITIES, Understood, engine_ports, engine_profiles, mismatches

if TYPE_CHECKING:
    import tensorrt_rtx as trt

CUDA_ERROR = re.compile(r"cudaError|CUDA (?:driver|initialization|error)|Cuda Runtime", re.IGNORECASE)


@dataclass(frozen=True)
class Loaded:
    """Hold an engine and the runtime that it lives in."""

    runtime: trt.Runtime
    engine: trt.ICudaEngine


def load_engine(data: bytes, opened: Opened, where: str) -> Loaded:
    """Deserialise bytes whose origin is trusted and whose hash was checked: they become code.

    Raises: UnavailableError without a working GPU; ArtifactError when the library refuses the engine.
    """
    title = opened.library.title
    opened.messages.clear()
    try:
        runtime: trt.Runtime = opened.module.Runtime(opened.logger)
    except TypeError as cause:  # the bindings' way to say that the library gave no runtime
        raise UnavailableError(f"{title} cannot start here", found=first_error(opened.messages)) from cause
    engine: trt.ICudaEngine | None = runtime.deserialize_cuda_engine(data)
    if engine is not None:
        return Loaded(runtime, engine)
    found = first_error(opened.messages)
    if CUDA_ERROR.search(found):
        raise UnavailableError(f"{title} finds no usable GPU", found=found, fix="Run this on the device.")
    reasons = _reasons(runtime, opened, data)
    raise ArtifactError(
        f"{title} {opened.version} refuses the engine of {where}", found=reasons or found,
        fix=f"Build it here with 'samx build {where}'.",
    )  # fmt: skip


def understood(engine: trt.ICudaEngine, opened: Opened, plan: BuildPlan) -> Understood:
    """Read back tensors and profiles. What an engine does not tell about itself is left as planned."""
    way = opened.module.TensorIOMode
    inputs, outputs = engine_ports(engine, way.INPUT), engine_ports(engine, way.OUTPUT)
    return Understood(
        inputs, outputs, engine_profiles(engine, tuple(plan.profile)), capabilities=CAPABILITIES[plan.compute]
    )


def check_engine(engine: trt.ICudaEngine, opened: Opened, plan: BuildPlan, where: str) -> Understood:
    """Compare an engine with the plan that it shall come from.

    Raises: ArtifactError.
    """
    found = understood(engine, opened, plan)
    wrong = mismatches(found, plan)
    if wrong:
        raise ArtifactError(
            f"the engine of {where} is not what its plan says", found="; ".join(wrong),
            fix=f"Build it here with 'samx build {where}'.",
        )  # fmt: skip
    return found


def _reasons(runtime: trt.Runtime, opened: Opened, data: bytes) -> str:
    """Ask why an engine is not valid here, where the library can tell."""
    if not opened.library.tells_validity:
        return ""
    _, bits = runtime.get_engine_validity(data[: runtime.engine_header_size])
    names = opened.module.EngineInvalidityDiagnostics.__members__
    return ", ".join(name for name, member in names.items() if int(bits) & int(member))
