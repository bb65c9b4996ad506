"""The encoders of mobile relatives compute what other projects' modules compute, and refuse what they do not know."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mobile_encoders import (
    CASES,
    EDGE_TAM,
    EDGE_TAM_M1,
    L0,
    REP_VIT_M1,
    TINY_VIT,
    TINY_VIT_5M,
    XL0,
    Case,
    edge_tam_case,
    efficient_vit_case,
    randomize,
    rep_vit_case,
    tiny_vit_case,
    used,
)
from torch import Tensor

from samx.errors import CheckpointError
from samx.exporters.onnx import to_onnx
from samx.models.encoders import edgetam, efficientvit, repvit, tinyvit
from samx.models.encoders.base import Encoder
from samx.models.spec import sam1_spec, sam2_spec

BOUND = 2e-6  # of the norm
MODULES = (tinyvit, repvit, efficientvit, edgetam)


def built(case: Case, monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Build our encoder of a small case."""
    monkeypatch.setattr(case.ours, "DEPTHS", (case.depths,))
    return case.ours.ENCODER.build(case.weights, case.spec)


def pixels_of(encoder: Encoder, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, encoder.picture_px, encoder.picture_px, generator=generator)


def worst_error(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    return max(float((x - y).norm() / y.norm()) for x, y in zip(ours, theirs, strict=True))


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_an_independent_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]()
    encoder = built(case, monkeypatch)
    pixels = pixels_of(encoder)
    assert len(encoder(pixels)) == len(case.spec.image_inputs)
    assert worst_error(encoder(pixels), case.reference(pixels)) <= BOUND


FULL: dict[str, tuple[Callable[[], Case], int]] = {
    "MobileSAM": (lambda: tiny_vit_case(TINY_VIT_5M, sam1_spec(), out=256), 1024),
    "EdgeSAM": (lambda: rep_vit_case(REP_VIT_M1, sam1_spec(), joins=True, out=256), 1024),
    "EfficientViT-SAM L0": (lambda: efficient_vit_case(L0, sam1_spec()), 512),
    "EfficientViT-SAM XL0": (lambda: efficient_vit_case(XL0, sam1_spec()), 1024),
    "EdgeTAM": (lambda: edge_tam_case(EDGE_TAM_M1, sam2_spec()), 1024),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_a_released_size_agrees_and_is_known(name: str) -> None:
    make, picture_px = FULL[name]
    case = make()
    encoder = case.ours.ENCODER.build(case.weights, case.spec)
    assert encoder.picture_px == picture_px
    ours = encoder(pixels_of(encoder, 1))
    assert [x.shape for x in ours] == [spec.shape for spec in case.spec.image_inputs]
    assert worst_error(ours, case.reference(pixels_of(encoder, 1))) <= BOUND


def test_released_numbers_of_blocks_are_known() -> None:
    assert (2, 2, 6, 2) in tinyvit.DEPTHS
    assert (3, 4, 16, 3) in repvit.DEPTHS  # M1
    assert (7, 8, 36, 3) in repvit.DEPTHS  # RepViT-SAM
    assert (2, 2, 14, 2) in edgetam.DEPTHS
    assert len(set(efficientvit.DEPTHS)) == 5


class TestTinyViT:
    def test_biases_are_those_that_were_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = CASES["MobileSAM"]()
        before, pixels = built(case, monkeypatch), torch.randn(2, 3, 128, 128)
        stale = before(pixels)
        name = "layers.2.blocks.0.attn.attention_biases"
        case.weights[name] = 10 * case.weights[name].flip(1)
        again = tiny_vit_case(TINY_VIT, case.spec)  # which has looked nothing up yet
        again.reference.trunk.stages[2].blocks[0].attn.attention_biases.copy_(case.weights[name])
        expected = again.reference(pixels)
        assert worst_error(built(case, monkeypatch)(pixels), expected) <= BOUND
        assert worst_error(stale, expected) > 1e-3

    def test_a_window_that_is_no_square_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = CASES["MobileSAM"]()
        case.weights["layers.1.blocks.0.attn.attention_biases"] = torch.zeros(1, 50)
        with pytest.raises(CheckpointError, match=r"\(1, 50\)"):
            built(case, monkeypatch)


def test_pictures_may_be_smaller_than_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    large, xlarge = CASES["EfficientViT-SAM L"](), CASES["EfficientViT-SAM XL"]()
    assert (large.spec.image_size, built(large, monkeypatch).picture_px) == (256, 128)
    assert (xlarge.spec.image_size, built(xlarge, monkeypatch).picture_px) == (128, 128)


def test_hugging_faces_edgetam_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {name: list(EDGE_TAM[name]) for name in ("embed_dim", "depth")}
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3], **sizes},
    )
    vision = transformers.EdgeTamVisionConfig(
        backbone_config=backbone, backbone_channel_list=sizes["embed_dim"][::-1],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
    )  # fmt: skip
    model = transformers.EdgeTamModel(transformers.EdgeTamConfig(vision_config=vision))
    randomize(model)
    names = {name.removeprefix("vision_encoder."): name for name in model.state_dict() if "vision_encoder." in name}
    names |= {name: f"mask_decoder.{name}" for n in (0, 1) for name in (f"conv_s{n}.weight", f"conv_s{n}.bias")}
    names["no_mem_embed"] = "no_memory_embedding"
    state = model.state_dict()
    assert edgetam.ENCODER.has(names)
    weights = used(edgetam, {edgetam.ENCODER.renamed(name): state[theirs] for name, theirs in names.items()})
    spec = sam2_spec(image_size=128)
    encoder = built(Case(edgetam, model, weights, EDGE_TAM["depth"], spec), monkeypatch)
    pixels = pixels_of(encoder)
    fine, coarse, tokens = model.get_image_embeddings(pixels)
    assert worst_error(encoder(pixels), (tokens, fine, coarse)) <= BOUND


@pytest.mark.parametrize("name", ["MobileSAM", "EdgeSAM", "EfficientViT-SAM L", "EdgeTAM"])
def test_onnx_runtime_computes_the_same_for_any_number_of_pictures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    case = CASES[name]()
    encoder = built(case, monkeypatch)
    outputs = [tensor.name for tensor in case.spec.image_inputs]
    axes = ({0: torch.export.Dim("pictures", min=1, max=8)},)
    model = to_onnx(encoder, (pixels_of(encoder),), opset=18, inputs=["pixels"], outputs=outputs, dynamic_shapes=axes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = pixels_of(encoder, 3)
    found = session.run(outputs, {"pixels": pixels.numpy()})
    assert worst_error(tuple(map(torch.from_numpy, found)), encoder(pixels)) <= 1e-5


def axes_of(encoder: Encoder) -> int:
    """Count the axes of the tensor that has the most, of all that an encoder computes."""
    program = torch.export.export(encoder, (pixels_of(encoder),))
    values = (node.meta.get("val") for node in program.graph.nodes)
    return max(value.ndim for value in values if isinstance(value, Tensor))


@pytest.mark.parametrize("name", ["MobileSAM", "EdgeSAM", "EfficientViT-SAM L", "EdgeTAM"])
def test_no_tensor_has_more_axes_than_apples_devices_take(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert axes_of(built(CASES[name](), monkeypatch)) <= 5


@pytest.mark.parametrize("name", CASES)
def test_keys_tell_one_architecture(name: str) -> None:
    case = CASES[name]()
    assert [module for module in MODULES if module.ENCODER.has(case.weights)] == [case.ours]


def kinds(weights: dict[str, Tensor]) -> list[str]:
    """Name one weight of each kind: of those whose names differ in numbers alone, the last."""
    return list({re.sub(r"\d+", "*", name): name for name in weights}.values())


@pytest.mark.parametrize("name", ["MobileSAM", "EdgeSAM", "EfficientViT-SAM L", "EdgeTAM"])
class TestRefusals:
    def test_another_number_of_blocks(self, name: str) -> None:
        case = CASES[name]()
        with pytest.raises(CheckpointError, match=rf"another number of blocks: found {re.escape(str(case.depths))}"):
            case.ours.ENCODER.build(case.weights, case.spec)

    def test_a_weight_too_few(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Leave out one of each kind in turn: none may be filled in by what a module begins with."""
        case = CASES[name]()
        whole = dict(case.weights)
        for missing in kinds(whole):
            case.weights = {key: weight for key, weight in whole.items() if key != missing}
            with pytest.raises(CheckpointError) as error:
                built(case, monkeypatch)
            assert "\n" not in str(error.value)

    def test_a_weight_too_many(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        case = CASES[name]()
        case.weights["blocks.0.adapter.weight"] = torch.ones(3)
        with pytest.raises(CheckpointError, match=r"should not have: found blocks\.0\.adapter\.weight"):
            built(case, monkeypatch)

    def test_weights_of_other_shapes(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give one of each kind one more channel, or another rank, in turn."""
        case = CASES[name]()
        whole = dict(case.weights)
        for wrong in kinds(whole):
            for other in (torch.cat((whole[wrong], whole[wrong][:1])), whole[wrong][None]):
                case.weights = {**whole, wrong: other}
                with pytest.raises(CheckpointError) as error:
                    built(case, monkeypatch)
                assert "\n" not in str(error.value)
