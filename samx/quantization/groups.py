"""Which products of an exported graph belong together, and what INT8 may do with each.

Constants keep the paths of the modules that they come from. A product is known by its own constants, or by those of the
addition after it, where the exporter made up a name for a transposed weight.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from samx.errors import UsageError

PRODUCTS = ("MatMul", "Gemm")
LAYER = r"transformer\.layers\.{}\."
IMAGE_SIDE = r"(token_to_image\.(keys?|values?)\.weight|image_to_token\.(query|queries|out)\.weight)"

# By the names of constants, behind the root module's. The image's thousands of tokens go through the first five: their
# products are worth integers. What a few tokens go through costs little time, but holds most of the weights.
INTEGER: Mapping[str, str] = {
    "image projections, layer 0": LAYER.format(0) + IMAGE_SIDE,
    "image projections, layer 1": LAYER.format(1) + IMAGE_SIDE,
    "image projections, final": r"transformer\.final_attention\.(key|value)\.weight",
    "upscaling 1": r"transformer\.grow\.weight\d",
    "upscaling 2": r"head\.grow\.weight\d",
}
STORED: Mapping[str, str] = {
    "self-attention": LAYER.format(r"\d") + r"tokens\.self_attention\.(query|key|value|out)\.(weight|bias)",
    "token MLP": LAYER.format(r"\d") + r"tokens\.mlp\.lin\d\.(weight|bias)",
    "token projections": r"transformer\.((layers\.\d\.token_to_image|final_attention)\.(query|out)|"
    r"layers\.\d\.image_to_token\.(tokens\.)?(key|value))\.weight",
    "absorbed projections": r"transformer\.((layers\.\d\.token_to_image|final_attention)\.(key|value)|"
    r"layers\.\d\.image_to_token\.(query|tokens\.out))",
    "position scores": r"transformer\.final_attention\.positions",
    "mask weights": r"hypernetworks\.(weight|bias)\d",
    "IoU head": r"iou_head\.layers\.\d\.(weight|bias)",
    "object score": r"object_score_head\.layers\.\d\.(weight|bias)",
}
# Small tables; what a coordinate loses there, the whole mask loses.
LEFT_ALONE: Mapping[str, str] = {
    "point encoding": r"points\..*",
    "object pointer": r"object_pointer\..*",
    "high-quality mask": r"hq_(features|mask)\..*",
    "query biases": LAYER.format(r"\d") + r"image_to_token\.query_bias",
}
QUANTISABLE: tuple[str, ...] = (*INTEGER, *STORED)
GROUPS: Mapping[str, str] = {**INTEGER, **STORED, **LEFT_ALONE}


@dataclass(frozen=True)
class Product:
    """Describe a product of a tensor with a constant weight."""

    node: str
    op: str
    group: str
    weight: str
    side: int  # of the weight: 0 left, 1 right
    channel_axis: int  # of the weight, along which the outputs lie
    shape: tuple[int, ...]  # of the weight
    tensor: str  # the other factor

    @property
    def outputs(self) -> int:
        """How many values each value of the other factor goes into."""
        return self.shape[self.channel_axis]


def products(model: onnx.ModelProto) -> list[Product]:
    """Find a graph's products with constant weights, in the order of the computation.

    Raises: UsageError where one belongs to no group or to several: the graph is of a form that is not known here.
    """
    constants = {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}
    nodes, found = list(model.graph.node), []
    for node in nodes:
        weights = [name for name in node.input[:2] if name in constants]
        if node.op_type in PRODUCTS and weights:
            found.append(_product(node, weights[0], constants[weights[0]], _paths(node, nodes, constants)))
    return found


def group_of(paths: Collection[str]) -> str:
    """Name the group that a product's constants say.

    Raises: UsageError when they say none, or several.
    """
    groups = {group for path in paths for group, pattern in GROUPS.items() if _matches(pattern, path)}
    if len(groups) != 1:
        raise UsageError(
            "a product of the graph belongs to no group or to several", found=f"{', '.join(paths)}: {sorted(groups)}",
            expected="a graph in the form 'absorbed' or 'direct'",
        )  # fmt: skip
    return groups.pop()


def _matches(pattern: str, path: str) -> bool:
    return re.fullmatch(rf"\w+\.({pattern})", path) is not None


def _product(node: onnx.NodeProto, weight: str, shape: tuple[int, ...], paths: Collection[str]) -> Product:
    side = list(node.input).index(weight)
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    axis = len(shape) - 2 if transposed or side == 0 else len(shape) - 1
    return Product(node.name, node.op_type, group_of(paths), weight, side, axis, shape, node.input[1 - side])


def _paths(node: onnx.NodeProto, nodes: Sequence[onnx.NodeProto], constants: Collection[str]) -> list[str]:
    """Return the constants that say where a product comes from."""
    own = [name for name in node.input if name in constants and "." in name]
    if own:
        return own
    after = [other for other in nodes if set(node.output) & set(other.input)]
    return [name for other in after for name in other.input if name in constants and "." in name]


def weights_of(model: onnx.ModelProto, groups: Collection[str]) -> Iterator[Product]:
    """Yield one product for each weight of some groups."""
    seen: set[str] = set()
    for product in products(model):
        if product.group in groups and product.weight not in seen:
            seen.add(product.weight)
            yield product
