"""The Swift example beside a package: pick the function, fill up with padded points, read the best mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from string import Template

from samx.formats.coreml.contract import Contract
from samx.formats.coreml.functions import SINGLE_FUNCTION
from samx.models.spec import PADDED_POINT, DecoderSpec, TensorSpec

SWIFT_FILE = "SamxDecoder.swift"
SCALARS: Mapping[str, str] = {"fp32": "Float", "fp16": "Float16", "int8": "Float16"}  # of what a package takes
NAMED = "    configuration.functionName = function\n"
PADDING = {False: "a prompt without a box ends with", True: "every prompt ends with"}  # by whether a box is padded
APPLE_PADDING = "the prompt encoder adds itself"


def swift_source(
    spec: DecoderSpec, contract: str, precision: str, functions: Mapping[str, int], features: Sequence[TensorSpec]
) -> str:
    """Write the example for one export; `functions` gives each function's rows as the app counts them."""
    padding = APPLE_PADDING if contract == "apple" else PADDING[spec.rules.pads_boxes]
    words: dict[str, object] = {
        "about": f"{spec.family}, {precision}, contract {contract}; up to {max(functions.values())} rows a prompt.",
        "size": spec.image_size, "padding": padding, "scalar": SCALARS[precision],
        "label": "Int32" if contract == "apple" else "Float",
        "functions": ", ".join(f'({rows}, "{name}")' for name, rows in sorted(functions.items(), key=lambda f: f[1])),
        "masks": spec.masks_out, "side": spec.mask_size, "empty": PADDED_POINT,
        "scores": "scores" if contract == "apple" else "iou_predictions",
        "features": ", ".join(f"{t.name} {t.dtype} {'x'.join(map(str, t.shape))}" for t in features),
        "named": "" if SINGLE_FUNCTION in functions else NAMED,
    }  # fmt: skip
    words["fill"] = _filled("fill", words)
    words["decode"] = _filled(f"decode_{contract}", words)
    return _filled("decoder", words)


def swift_example(spec: DecoderSpec, contract: Contract, precision: str, functions: Mapping[str, int]) -> str:
    """Write the example of an export for what the app itself hands over: image tensors, points and, if any, masks."""
    signature = contract.signatures(spec)[-1]
    features = [
        replace(tensor, shape=tuple(1 if size == "prompts" else size for size in tensor.shape))
        for tensor in (signature if precision == "fp32" else signature.in_half()).inputs
        if not {"points", "tokens"} & set(map(str, tensor.shape)) and tensor.name != "dense_embedding"
    ]
    points = {name: rows - contract.padding for name, rows in functions.items()}
    return swift_source(spec, contract.name, precision, points, features)


def _filled(name: str, words: Mapping[str, object]) -> str:
    """Fill a template in; it is read as a resource, so that it may lie in an archive."""
    template = files("samx.exporters.coreml") / "templates" / f"{name}.swift.in"
    return Template(template.read_text(encoding="utf-8")).substitute(words)
