"""Whose packages an artifact holds, samx's own or those of the public SAM 2.1 apps: tensors, and how they are called.

Data and NumPy only: the exporter and both runtimes read it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts import strict_json as read
from samx.errors import ArtifactError, PromptError
from samx.formats.coreml.package import DECODER
from samx.formats.coreml.program import Program
from samx.formats.coreml.tensors import TensorType
from samx.models.session import Feed
from samx.models.shape_range import MOST, ShapeRange
from samx.models.spec import LABELS, DecoderSpec, TensorSpec

FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
FLOATS, INTEGER = ("fp16", "fp32"), "int32"
FLOAT32_INPUTS = ("point_coords", "point_labels", "points")  # a float16 pixel beyond 1024 is a whole one
APPLE_FAMILY = "sam2"
PROMPT_ENCODER, MASK_DECODER = "prompt_encoder.mlpackage", "mask_decoder.mlpackage"
IMAGE_NAMES = {
    "image_embeddings": "image_embedding",
    "high_res_features_0": "feats_s0",
    "high_res_features_1": "feats_s1",
}


def _check_name(name: str, where: str) -> None:
    if not FUNCTION_NAME.fullmatch(name):
        raise read.refusal(f"{where} has a name that no function can have", repr(name[: read.SHOWN_CHARACTERS]))


BY_NAME = Mapping[Annotated[str, _check_name], Annotated[int, read.between(1, MOST)]]  # rows of points


def functions_of(options: Mapping[str, Any], where: str) -> dict[int, str]:
    """Read the functions of an artifact's packages from its options, by their rows of points, fewest first.

    Raises: ArtifactError naming `where`.
    """
    rows: dict[str, int] = read.take(BY_NAME, options.get("functions"), f"{where}: functions")
    if not rows or len(set(rows.values())) != len(rows):
        expected = "at least one, each with its own number of points"
        raise read.refusal(f"{where}: functions do not tell points apart", str(rows), expected)
    points = ShapeRange.from_json(options.get("points"), f"{where}: points")
    least, most = min(rows.values()), max(rows.values())
    if (points.min, points.max) != (least, most):
        expected = f"{least} to {most}, as the functions take"
        raise read.refusal(f"{where}: points and functions disagree", f"points {points}", expected)
    return {count: name for name, count in sorted(rows.items(), key=lambda item: item[1])}


Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[str, str, Arrays], Arrays]  # package, function, feed -> its outputs


@dataclass(frozen=True)
class Signature:
    """Name the tensors of one package; `points`, `tokens` and `prompts` in a shape get each function's size."""

    folder: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def in_half(self) -> Signature:
        """Return it with everything float16 that is not a coordinate, a label or an integer."""
        return replace(self, inputs=tuple(map(_half, self.inputs)), outputs=tuple(map(_half, self.outputs)))


@dataclass(frozen=True)
class Contract:
    """Describe the packages that apps of one kind load. The last one takes the image."""

    name: str
    signatures: Callable[[DecoderSpec], tuple[Signature, ...]]  # raises ArtifactError for a spec that it does not fit
    decode: Callable[[Call, str, Arrays, Feed], Arrays]  # call, function, image, prompts -> DecoderSpec.outputs
    padding: int = 0  # rows of a prompt that the packages add themselves, as SAM's own encoder does
    image_names: Mapping[str, str] = field(default_factory=dict)  # where they differ from the spec's

    def function_name(self, rows: int) -> str:
        """Name the function for that many rows a prompt, padding counted."""
        return f"points_{rows - self.padding}"

    def sizes(self, rows: int, prompts: int = 1) -> Mapping[str, int]:
        """Return the sizes that stand in the shapes of that function."""
        return {"points": rows - self.padding, "tokens": rows, "prompts": prompts}

    def image(self, image: Feed) -> Arrays:
        """Rename the image's tensors to the packages' names."""
        return {self.image_names.get(name, name): value for name, value in image.items()}

    def check(
        self, programs: Mapping[str, Program], functions: Mapping[int, str], spec: DecoderSpec, prompts: int
    ) -> None:
        """Compare every function's inputs and outputs with what the contract says, for so many prompts a call.

        Raises: ArtifactError.
        """
        for signature in self.signatures(spec):
            for rows, name in functions.items():
                program, sizes = programs[signature.folder], self.sizes(rows, prompts)
                _check(program.inputs(name), signature.inputs, sizes, f"inputs of '{name}' in {program.where}")
                _check(program.outputs(name), signature.outputs, sizes, f"outputs of '{name}' in {program.where}")


def _half(tensor: TensorSpec) -> TensorSpec:
    keeps = tensor.name in FLOAT32_INPUTS or tensor.dtype == INTEGER
    return tensor if keeps else replace(tensor, dtype="float16")


def sized(tensor: TensorSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a tensor's shape in a function of these sizes."""
    return tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)


def contract_of(options: Mapping[str, Any], where: str) -> Contract:
    """Read an artifact's options.

    Raises: ArtifactError for a contract that samx does not know.
    """
    name = options.get("contract")
    if not isinstance(name, str) or name not in CONTRACTS:
        raise ArtifactError(
            f"{where} follows a contract that is not known", found=repr(name)[:80], expected=" or ".join(CONTRACTS),
            fix="Update samx, or export again.",
        )  # fmt: skip
    return CONTRACTS[name]


def _samx_signatures(spec: DecoderSpec) -> tuple[Signature, ...]:
    return (Signature(DECODER, spec.inputs, spec.outputs),)


def _samx_decode(call: Call, function: str, image: Arrays, prompts: Feed) -> Arrays:
    return call(DECODER, function, {**image, **prompts})


def _apple_signatures(spec: DecoderSpec) -> tuple[Signature, ...]:
    """Source: the public Core ML packages of SAM 2.1 and the apps that load them."""
    if spec.family != APPLE_FAMILY or spec.mask_input:
        found = f"{spec.family}{' with mask prompts' if spec.mask_input else ''}"
        raise ArtifactError("no app of this contract loads such a decoder", found=found, expected=APPLE_FAMILY)
    image, fine, coarse = (replace(tensor, name=IMAGE_NAMES[tensor.name]) for tensor in spec.image_inputs)
    points = TensorSpec("points", (1, "points", 2), "px", f"(x, y) in the {spec.image_size} px frame")
    labels = TensorSpec("labels", (1, "points"), "1", "label codes; -2 fills up what is not used", INTEGER)
    sparse = TensorSpec("sparse_embedding", (1, "tokens", spec.width), "1", "one row a point, and the padding")
    dense = TensorSpec("dense_embedding", image.shape, "1", "no mask prompt")
    encoded = (replace(sparse, name="sparse_embeddings"), replace(dense, name="dense_embeddings"))
    masks, scores, *others = spec.outputs  # the apps read by name, and do not mind one output more
    return (
        Signature(PROMPT_ENCODER, (points, labels), encoded),
        Signature(MASK_DECODER, (image, sparse, dense, fine, coarse), (masks, replace(scores, name="scores"), *others)),
    )


def _apple_decode(call: Call, function: str, image: Arrays, prompts: Feed) -> Arrays:
    encoded = call(PROMPT_ENCODER, function, _without_padding(prompts))
    sparse, dense = encoded["sparse_embeddings"], encoded["dense_embeddings"]
    found = call(MASK_DECODER, function, {**image, "sparse_embedding": sparse, "dense_embedding": dense})
    return {**found, "iou_predictions": found["scores"]}


def _without_padding(prompts: Feed) -> Arrays:
    """Take out the row that the prompt encoder adds itself.

    Raises: PromptError for a prompt that has none.
    """
    labels = prompts["point_labels"]
    at = np.flatnonzero(labels[0] == LABELS["padding"])
    if len(labels) != 1 or not len(at):
        raise PromptError(
            "these packages add SAM 2's padding row themselves", found=f"labels {labels[0].tolist()}",
            expected=f"a prompt that ends with label {LABELS['padding']}",
        )  # fmt: skip
    return {"points": np.delete(prompts["point_coords"], at[0], 1), "labels": np.delete(labels, at[0], 1)}


def _check(found: Iterable[TensorType], specs: Iterable[TensorSpec], sizes: Mapping[str, int], what: str) -> None:
    expected = {spec.name: sized(spec, sizes) for spec in specs}
    types = {spec.name: (INTEGER,) if spec.dtype == INTEGER else FLOATS for spec in specs}
    tensors = tuple(found)
    fits = {tensor.name: tensor.shape for tensor in tensors} == expected
    if not fits or any(tensor.dtype not in types[tensor.name] for tensor in tensors):
        raise ArtifactError(
            f"the {what} are not the decoder's", found="; ".join(map(str, tensors)),
            expected="; ".join(f"{name} {shape} {' or '.join(types[name])}" for name, shape in expected.items()),
            fix="Export it again.",
        )  # fmt: skip


CONTRACTS: Mapping[str, Contract] = {
    contract.name: contract
    for contract in (
        Contract("samx", _samx_signatures, _samx_decode),
        Contract("apple", _apple_signatures, _apple_decode, padding=1, image_names=IMAGE_NAMES),
    )
}
