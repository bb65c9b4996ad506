"""Write an image encoder in a program's signature: nodes before and after the unchanged nodes of an exported one."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from samx.contracts.adapt import FLOAT, INNER, UINT8, Nodes, as_model, declared, integers
from samx.contracts.table import CLIENT_FILE_ROLE, CLIENT_FOLDER, Contract
from samx.extras import require
from samx.formats.onnx import ELEMENT_TYPES
from samx.models.spec import PIXELS, DecoderSpec

if TYPE_CHECKING:
    import onnx

WHITE = 255.0
SAID = ("image_size", "width", "patch_px", "masks_out", "mask_threshold")  # of a decoder, to programs that ask
HALF, LOWEST, HIGHEST = np.float32(0.5), np.float32(0), np.float32(WHITE)
MEAN, STD = (np.array(values, np.float32).reshape(1, 3, 1, 1) * np.float32(WHITE) for values in PIXELS["imagenet"])


def adapted_encoder(
    encoder: onnx.ModelProto, contract: Contract, spec: DecoderSpec, positions: NDArray[np.float32]
) -> onnx.ModelProto:
    """Return an image encoder of one picture in a contract's signature.

    Shapes: positions (1, C, G, G), the image tokens' positional encoding, which a few programs carry about.
    """
    onnx, form = require("onnx", "export", "writing a contract's graph"), contract.encoder
    assert form is not None
    inner, before, after = onnx.compose.add_prefix(encoder, INNER), Nodes("before"), Nodes("after")
    taken = {value.name.removeprefix(INNER): value.type.tensor_type.elem_type for value in inner.graph.input}
    if form.levels:
        picture, valid = _of_levels(before, form.input, spec.image_size)
    else:
        picture, valid = _of_pixels(before, form.input)
    before.rename(_typed(before, picture, taken["picture"]), f"{INNER}picture")
    if "valid" in taken:
        before.rename(
            before.add("Unsqueeze", before.add("Cast", valid, to=ELEMENT_TYPES["int32"]), integers(0)), f"{INNER}valid"
        )
    for port in form.outputs:
        after.rename(positions if port.holds == "unread" else INNER + port.holds, port.name)
    axes = ("height", "width", 3) if form.levels else (1, 3, spec.image_size, spec.image_size)
    graph = onnx.helper.make_graph(
        [*before.nodes, *inner.graph.node, *after.nodes], contract.name,
        [onnx.helper.make_tensor_value_info(form.input, FLOAT, axes)],
        [declared(port, contract, spec) for port in form.outputs],
        [*before.constants, *inner.graph.initializer, *after.constants],
    )  # fmt: skip
    return as_model(graph, encoder, contract)


def _of_levels(nodes: Nodes, given: str, size_px: int) -> tuple[str, str]:
    """Fill a frame up. Shapes: (H, W, 3) -> (1, S, S, 3), (2)."""
    valid = nodes.size(given, 0, 2)
    missing = nodes.add("Sub", integers(size_px, size_px), valid)
    pads = nodes.add("Concat", integers(0, 0, 0), missing, integers(0), axis=0)
    return nodes.add("Unsqueeze", nodes.add("Pad", given, pads), integers(0)), valid


def _of_pixels(nodes: Nodes, given: str) -> tuple[str, str]:
    """Return levels of normalised pixels, and how far the picture reaches: beyond it they are exactly 0.

    No level is normalised to 0, for ImageNet's mean is none. Shapes: (1, 3, S, S) -> (1, S, S, 3), (2).
    """
    levels = nodes.add("Add", nodes.add("Mul", given, STD), MEAN)
    size, ends = nodes.add("Abs", given), []
    for other in (3, 2):
        line = nodes.add("Sign", nodes.add("ReduceMax", size, integers(0, 1, other), keepdims=0))
        last = nodes.add("ArgMax", line, axis=0, keepdims=1, select_last_index=1)
        ends.append(nodes.add("Add", last, integers(1)))
    return nodes.add("Transpose", levels, perm=[0, 2, 3, 1]), nodes.add("Concat", *ends, axis=0)


def _typed(nodes: Nodes, picture: str, kind: int) -> str:
    """Return levels as the encoder takes them: bytes are rounded."""
    if kind != UINT8:
        return picture
    whole = nodes.add("Floor", nodes.add("Add", picture, HALF))
    return nodes.add("Cast", nodes.add("Clip", whole, LOWEST, HIGHEST), to=UINT8)


def positional_encoding(matrix: NDArray[np.float32], grid: int) -> NDArray[np.float32]:
    """Encode the places of image tokens as the decoder does. Shapes: (2, C / 2) -> (1, C, G, G)."""
    centres = (np.arange(grid) + 0.5) / grid
    y, x = np.meshgrid(centres, centres, indexing="ij")
    angles = 2 * np.pi * ((2 * np.stack([x, y], axis=-1) - 1) @ matrix.astype(np.float64))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).transpose(2, 0, 1)[None].astype(np.float32)


def write_companions(contract: Contract, spec: DecoderSpec, name: str, directory: Path) -> dict[str, str]:
    """Write what a contract's programs read beside the graphs; return the files with their role.

    name: of the model, as programs shall show it.
    """
    written: dict[str, str] = {}
    facts = {"name": name, "title": f"{name} (samx)", **{fact: getattr(spec, fact) for fact in SAID}}
    quoted = {key: json.dumps(value) for key, value in facts.items()}  # of JSON, which YAML reads too
    templates = files("samx.contracts") / "templates" / contract.name
    for template in sorted(templates.iterdir(), key=lambda one: one.name) if templates.is_dir() else ():
        path = f"{CLIENT_FOLDER}/{template.name.removesuffix('.in')}"
        text = Template(template.read_text(encoding="utf-8")).substitute(quoted)
        (directory / path).write_text(text, encoding="utf-8")
        written[path] = CLIENT_FILE_ROLE
    return written
