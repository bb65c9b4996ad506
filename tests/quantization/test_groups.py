"""Every product with a constant weight, in every graph that is exported, belongs to exactly one group."""

from __future__ import annotations

import onnx
import pytest
from int8_toys import groups_of, toy_graphs

from samx.errors import UsageError
from samx.quantization import groups
from samx.quantization.groups import INTEGER, LEFT_ALONE, PRODUCTS, QUANTISABLE, STORED, group_of, products
from samx.quantization.search import check_groups

pytestmark = pytest.mark.long

VARIANTS = [
    ("sam1", "absorbed", 18, "fp32", False),
    pytest.param("sam1", "direct", 23, "fp16", False, marks=pytest.mark.slow),
    ("sam2", "direct", 18, "fp32", False),
    pytest.param("sam2", "absorbed", 23, "fp32", False, marks=pytest.mark.slow),
    pytest.param("sam1", "absorbed", 18, "fp16", False, marks=pytest.mark.slow),
    ("sam2", "absorbed", 18, "fp32", True),
]
ONLY = {
    "absorbed": {"absorbed projections", "query biases"},
    "direct": {"image projections, layer 0", "image projections, layer 1", "image projections, final"},
}
NOT_IN_TOYS: dict[str, set[str]] = {"sam1": {"object score"}, "sam2": set()}


@pytest.mark.parametrize(("family", "form", "opset", "precision", "split"), VARIANTS)
def test_every_constant_product_has_one_group(family: str, form: str, opset: int, precision: str, split: bool) -> None:
    found: set[str] = set()
    for data in toy_graphs(family, form, opset, precision, split).values():
        model = onnx.load_from_string(data)
        constants = {initializer.name for initializer in model.graph.initializer}
        weighted = [n.name for n in model.graph.node if n.op_type in PRODUCTS and set(n.input[:2]) & constants]
        assert [product.node for product in products(model)] == weighted  # group_of() refuses none and several
        found |= {product.group for product in products(model)}
    everywhere = {"upscaling 1", "upscaling 2", "token MLP", "self-attention", "mask weights", "IoU head"}
    assert everywhere | {"token projections", "point encoding"} <= found
    other = "direct" if form == "absorbed" else "absorbed"
    assert not found & (NOT_IN_TOYS[family] | (ONLY[other] - {"image projections, layer 0"}))
    assert ONLY[form] - {"query biases"} <= found
    assert ("image projections, layer 0" in found) == (form == "direct" or split)


@pytest.mark.slow
def test_outputs_lie_along_the_channel_axis() -> None:
    found = products(onnx.load_from_string(toy_graphs("sam1", "absorbed")["decoder.onnx"]))
    outputs = {product.weight.removeprefix("decoder."): product.outputs for product in found}
    assert outputs["transformer.grow.weight0"] == 128  # (256, 128)
    assert outputs["iou_head.layers.2.weight"] == 4  # (4, 256), transposed
    assert outputs["hypernetworks.weight2"] == 32  # (3, 256, 32)
    image = products(onnx.load_from_string(toy_graphs("sam2", "absorbed", split=True)["image.onnx"]))
    assert {(product.side, product.outputs) for product in image} == {(0, 128)}  # (128, 256) on the left


def test_weights_are_counted_once() -> None:
    counts = groups_of(onnx.load_from_string(toy_graphs("sam1", "absorbed")["decoder.onnx"]))
    assert counts["upscaling 1"] == 2 * 256 * 128
    assert counts["upscaling 2"] == 2 * 64 * 64  # each is used by two products
    assert counts["token MLP"] == 4 * 256 * 2048
    assert not set(counts) & set(LEFT_ALONE)


def test_a_product_that_no_group_knows_is_refused() -> None:
    data = toy_graphs("sam1", "absorbed")["decoder.onnx"]
    model = onnx.load_from_string(data.replace(b"decoder.head.grow.weight0", b"decoder.head.blow.weight0"))
    with pytest.raises(UsageError, match=r"no group or to several: found decoder\.head\.blow\.weight0"):
        products(model)


def test_a_product_of_two_groups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert group_of(["decoder.head.grow.weight0"]) == "upscaling 2"
    monkeypatch.setattr(groups, "GROUPS", {**groups.GROUPS, "planted": r"head\..*"})
    with pytest.raises(UsageError, match=r"\['planted', 'upscaling 2'\]"):
        group_of(["decoder.head.grow.weight0"])


@pytest.mark.parametrize("wrong", ["upscaling", *LEFT_ALONE])
def test_groups_that_nothing_can_be_done_with_are_refused(wrong: str) -> None:
    check_groups([*INTEGER, *STORED], QUANTISABLE)
    with pytest.raises(UsageError, match=f"unknown group of products: found {wrong}"):
        check_groups(["upscaling 1", wrong], QUANTISABLE)
