"""Say which programs would take an ONNX decoder, ours or anybody's, and what would go wrong in which: by the table.

A file tells its tensors, not what they mean: what can only be supposed is said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from samx.contracts.adapt import CONTRACT_KEY
from samx.contracts.table import CONTRACTS, FRAME_PX, Contract, Padding, Port
from samx.formats.onnx import ELEMENT_TYPES, METADATA_PREFIX, described, read
from samx.models.spec import HIGH_RES_CHANNELS, UPSCALING, family_spec

if TYPE_CHECKING:
    import onnx

PATCH_PX = 16  # of the released decoders
IMAGE_AXIS = 2  # the first of a feature's, behind pictures and channels
TAKES, FAILS, WRONG = "takes it", "fails", "runs, and shows wrong masks"
FED_SIZES = {"size": FRAME_PX // (PATCH_PX // UPSCALING), "grid": FRAME_PX // PATCH_PX}  # of what programs feed
NAMES = {number: name for name, number in ELEMENT_TYPES.items()}


class Tensor(NamedTuple):
    """Describe an input or output of a file; a size that is open is None, and so is a shape that is not stated."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


def describe(path: Path) -> dict[str, Any]:
    """Return what an ONNX file says about itself, and of a decoder which programs take it.

    Raises: as formats.onnx.read().
    """
    model = read(path)
    facts = described(model)
    found = programs(model, facts["samx"])
    return {**facts, "programs": found} if found else facts


def programs(model: onnx.ModelProto, own: dict[str, Any]) -> dict[str, str]:
    """Return a verdict of each program on a decoder; none of another graph. `own` is samx's metadata in the file."""
    weights = {tensor.name for tensor in model.graph.initializer}  # that old files list among their inputs
    inputs = [_tensor(value) for value in model.graph.input if value.name not in weights]
    outputs = [_tensor(value) for value in model.graph.output]
    shapes = [tensor.shape or () for tensor in inputs]
    if not any(len(shape) >= 3 and shape[-1] == 2 for shape in shapes):  # points
        return {}
    is_sam2 = any(len(shape) == 4 and shape[1] in HIGH_RES_CHANNELS for shape in shapes)
    family, padding = "sam2" if is_sam2 else "sam1", _padding(own)
    fitting = [contract for contract in CONTRACTS.values() if family in contract.families]
    return {
        f"{program} ({contract.name})": _verdict(contract, program, inputs, outputs, padding)
        for contract in fitting
        for program in contract.programs
    }


def _padding(own: dict[str, Any]) -> Padding | None:
    """Return who appends the padding token to a file's prompts; None where it does not say."""
    name = own.get(CONTRACT_KEY.removeprefix(METADATA_PREFIX))
    if isinstance(name, str) and name in CONTRACTS:
        return CONTRACTS[name].padding
    return "program" if "spec" in own else None


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    of = value.type.tensor_type
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in of.shape.dim)
    dtype = NAMES.get(of.elem_type, f"type {of.elem_type}")
    return Tensor(str(value.name), dtype, sizes if of.HasField("shape") else None)


def _verdict(
    contract: Contract, program: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], padding: Padding | None
) -> str:
    """Return what a program does with a file."""
    by_position = program in contract.by_position
    failures = [*_fed(contract, inputs, by_position), *_read(contract, outputs)]
    if failures:
        return f"{FAILS}: {'; '.join(failures)}"
    faults = list(_faults(contract, inputs, outputs, padding))
    if faults:
        return f"{WRONG}: {'; '.join(faults)}"
    return TAKES if padding is not None else f"{TAKES}, if {_WANTED[contract.padding]}, which no file tells"


_WANTED = {
    "program": "it adds no padding point itself",
    "graph": "it adds the padding point itself",
    "graph_without_box": "it adds the padding point itself where there is no box",
}


def _fed(contract: Contract, inputs: Sequence[Tensor], by_position: bool) -> Iterator[str]:
    """Say what keeps a runtime from taking what a program feeds."""
    ports = contract.inputs
    if by_position and len(inputs) != len(ports):
        yield f"it has {len(inputs)} inputs, the program feeds {len(ports)} by position"
        return
    given = {tensor.name: tensor for tensor in inputs}
    if not by_position:
        yield from _unlike("input", [port.name for port in ports], list(given))
    pairs = zip(ports, inputs, strict=True) if by_position else ((p, given[p.name]) for p in ports if p.name in given)
    for port, tensor in pairs:
        yield from _mistyped(port, tensor, _axes(port, contract))


def _unlike(side: str, wanted: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    if missing := [name for name in wanted if name not in found]:
        yield f"no {side} {', '.join(missing)}"
    if side == "input" and (unknown := [name for name in found if name not in wanted]):
        yield f"nothing is fed to {', '.join(unknown)}"


def _mistyped(port: Port, tensor: Tensor, axes: Sequence[int | None]) -> Iterator[str]:
    """Compare type, number of axes and sizes with what is fed."""
    if tensor.dtype != port.dtype:
        yield f"{tensor.name} takes {tensor.dtype}, is fed {port.dtype}"
    if tensor.shape is None:
        return
    unlike = any(None not in pair and pair[0] != pair[1] for pair in zip(axes, tensor.shape, strict=False))
    if len(axes) != len(tensor.shape) or unlike:
        yield f"{tensor.name} has shape {_words(tensor.shape)}, is fed {_words(axes)}"


def _axes(port: Port, contract: Contract) -> tuple[int | None, ...]:
    """Return the sizes that a program feeds or reads; one that is open is None. Features are the released decoders'."""
    if port.axes is not None:
        sizes = {} if contract.any_frame else FED_SIZES
        return tuple(n if isinstance(n, int) else sizes.get(n) for n in port.axes)
    shape = next(tensor.shape for tensor in family_spec("sam2").image_inputs if tensor.name == port.holds)
    sides = len(shape) if not contract.any_frame else IMAGE_AXIS
    return tuple(n if isinstance(n, int) and axis < sides else None for axis, n in enumerate(shape))


def _read(contract: Contract, outputs: Sequence[Tensor]) -> Iterator[str]:
    """Say what keeps a program from reading the outputs."""
    wanted = [port.name for port in contract.outputs]
    if contract.reads == "named":
        yield from _unlike("output", wanted, [tensor.name for tensor in outputs])
    elif len(outputs) < len(wanted) or (contract.reads == "all" and len(outputs) > len(wanted)):
        yield f"it has {len(outputs)} outputs, the program reads {len(wanted)}"
    else:
        for port, tensor in zip(contract.outputs, outputs, strict=False):
            axes = _axes(port, contract)
            if tensor.shape is not None and len(tensor.shape) != len(axes):
                yield f"output {tensor.name} has shape {_words(tensor.shape)}, is read as {_words(axes)}"


def _faults(
    contract: Contract, inputs: Sequence[Tensor], outputs: Sequence[Tensor], padding: Padding | None
) -> Iterator[str]:
    """Say what no runtime reports: the masks are others."""
    if padding is not None and padding != contract.padding:
        adds = "the program adds none" if contract.padding != "program" else "the program adds one already"
        yield f"the padding point: {adds}, and the file {'adds none' if padding == 'program' else 'adds one'}"
    first = next(
        (i for i, port in enumerate(contract.outputs) if port.holds in ("picture_masks", "low_res_masks")), None
    )
    if first is None or contract.reads == "named":
        return
    shape = outputs[first].shape or ()
    if contract.picks and len(shape) == 4 and shape[1] not in (1, None):
        yield f"it has {shape[1]} masks, and the program shows the first, which is not the best one"
    resized = contract.outputs[first].holds == "picture_masks"
    if resized and len(shape) == 4 and None not in shape[2:]:
        yield f"its masks are always {shape[2]} x {shape[3]} pixels, and the program takes them for the picture's"


def _words(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
