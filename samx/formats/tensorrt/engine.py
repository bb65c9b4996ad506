"""Open engines; read back what a library understood before and after the build; compare it with the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samx.errors import ArtifactError, UnavailableError
from samx.formats.tensorrt.library import Opened, first_error
from samx.formats.tensorrt.plan import EnginePlan, Limits, Port

if TYPE_CHECKING:
    import tensorrt_rtx as trt

# The library's names of element types. What is not listed here is shown as the library calls it.
DTYPES: Mapping[str, str] = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64", "INT8": "int8",
    "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
DYNAMIC = -1
CAPABILITIES: Mapping[str, tuple[str, ...]] = {"this_gpu": (), "ampere_plus": (), "sm75": ("SM75",)}
CUDA_ERROR = re.compile(r"cudaError|CUDA (?:driver|initialization|error)|Cuda Runtime", re.IGNORECASE)


@dataclass(frozen=True)
class Understood:
    """What a network or an engine says about itself, in the plan's words."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    profiles: tuple[Mapping[str, Limits], ...]
    shape_tensors: tuple[str, ...] = ()  # inputs whose values would decide shapes
    strongly_typed: bool = True
    tf32: bool = False
    compute_capabilities: tuple[str, ...] = ()


def network_ports(network: trt.INetworkDefinition) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Read the inputs and outputs of a parsed network."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return tuple(map(_port, inputs)), tuple(map(_port, outputs))


def shape_tensors(network: trt.INetworkDefinition) -> tuple[str, ...]:
    """Name the inputs whose values decide shapes."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    return tuple(name for tensor in tensors if (name := _shape_tensor(tensor)) is not None)


def engine_ports(engine: trt.ICudaEngine, inputs: object) -> tuple[Port, ...]:
    """Read the tensors of an engine that go one way; `inputs` is the library's word for that way."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    names = [name for name in names if engine.get_tensor_mode(name) == inputs]
    return tuple(_port_of(n, engine.get_tensor_shape(n), engine.get_tensor_dtype(n).name) for n in names)


def limits_of(shapes: Sequence[Sequence[int]]) -> Limits:
    """Take the library's three shapes; nothing where it has none for an input."""
    if not shapes:
        return (), (), ()
    low, opt, high = (tuple(int(size) for size in shape) for shape in shapes)
    return low, opt, high


def mismatches(found: Understood, plan: EnginePlan) -> list[str]:
    """Return in words where what was read back differs from the plan."""
    pairs = [
        *_port_pairs("input", found.inputs, plan.inputs, plan.fixed),
        *_port_pairs("output", found.outputs, plan.outputs, plan.fixed),
        ("profiles", [dict(profile) for profile in found.profiles], [dict(plan.profile)]),
        ("shape tensors", found.shape_tensors, ()),
        ("strongly typed", found.strongly_typed, True),
        ("TF32", found.tf32, False),
        ("compute capabilities", found.compute_capabilities, CAPABILITIES[plan.compute]),
    ]
    return [f"{what}: found {a}, expected {b}" for what, a, b in pairs if a != b]


def _port_pairs(
    what: str, found: Sequence[Port], planned: Sequence[Port], fixed: Mapping[str, int]
) -> list[tuple[str, object, object]]:
    """Pair names first: a library may list tensors in another order."""
    there, wanted = ({port.name: port for port in ports} for ports in (found, planned))
    pairs: list[tuple[str, object, object]] = [(f"{what}s", sorted(there), sorted(wanted))]
    for name in sorted(there.keys() & wanted.keys()):
        seen, plan = there[name], wanted[name]
        pairs += [
            (f"{what} {name}", *_shapes(seen.shape, plan.shape, fixed)),
            (f"{what} {name}", seen.dtype, plan.dtype),
        ]
    return pairs


def _shapes(
    found: Sequence[int | str], planned: Sequence[int | str], fixed: Mapping[str, int]
) -> tuple[list[int | str], list[int | str]]:
    """Write both alike. An axis of one size only may be read back as that size."""
    names = [*planned, *[""] * len(found)]
    seen = ["?" if isinstance(a, str) or a == fixed.get(str(b)) else a for a, b in zip(found, names, strict=False)]
    return seen, ["?" if isinstance(b, str) else b for b in planned]


def _port(tensor: trt.ITensor) -> Port:
    return _port_of(tensor.name, tensor.shape, tensor.dtype.name)


def _shape_tensor(tensor: trt.ITensor) -> str | None:
    return str(tensor.name) if tensor.is_shape_tensor else None


def _port_of(name: str, shape: Sequence[int], dtype: str) -> Port:
    sizes = tuple("?" if size == DYNAMIC else int(size) for size in shape)
    return Port(str(name), sizes, DTYPES.get(dtype, dtype))


def load_engine(data: bytes, opened: Opened, where: str) -> tuple[trt.Runtime, trt.ICudaEngine]:
    """Deserialise bytes whose origin is trusted and whose hash was checked: they become code.

    The engine needs the runtime as long as it lives.
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
        return runtime, engine
    found = first_error(opened.messages)
    if CUDA_ERROR.search(found):
        raise UnavailableError(f"{title} finds no usable GPU", found=found, fix="Run this on the device.")
    reasons = _reasons(runtime, opened, data)
    raise ArtifactError(
        f"{title} {opened.version} refuses the engine of {where}", found=reasons or found,
        fix=f"Build it here with 'samx build {where}'.",
    )  # fmt: skip


def check_engine(engine: trt.ICudaEngine, opened: Opened, plan: EnginePlan, where: str) -> Understood:
    """Compare an engine with the plan that it shall come from. What it does not tell about itself is left as planned.

    Raises: ArtifactError.
    """
    way = opened.module.TensorIOMode
    inputs, outputs = engine_ports(engine, way.INPUT), engine_ports(engine, way.OUTPUT)
    profiles = [
        {name: limits_of(engine.get_tensor_profile_shape(name, i)) for name in plan.profile}
        for i in range(engine.num_optimization_profiles)
    ]
    found = Understood(inputs, outputs, tuple(profiles), compute_capabilities=CAPABILITIES[plan.compute])
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
