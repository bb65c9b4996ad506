"""SAM 3's image encoder computes what transformers' vision model does, whoever saved it, also in ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import sam3_models as models
import torch
import upstream_encoders as upstream
from torch import Tensor

from samx.errors import CheckpointError
from samx.exporters.onnx import to_onnx
from samx.models.checkpoint import load_checkpoint
from samx.models.encoders import sam3
from samx.models.encoders.load import Found, find_encoder
from samx.models.weight_files import open_weights

pytest.importorskip("transformers")
TOLERANCE, IN_ONNX = 2e-6, 1e-5  # float32 sums in another order
META = ("sam3.pt", "image model", "tracker with its backbone", "sam3.1")
HUGGING_FACE = ("module", "whole repository")


@pytest.fixture(autouse=True)
def _small_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small encoder be one of the released."""
    monkeypatch.setattr(sam3, "LAYOUTS", {**sam3.LAYOUTS, **models.LAYOUTS})


@pytest.fixture(scope="module")
def theirs() -> Any:
    return models.tracker()


def load(folder: Path, state: Any, image_size: int = models.SIZE_PX) -> Found:
    path = folder / "model.pth"
    torch.save(state, path)
    return find_encoder(open_weights(path), load_checkpoint(path, image_size=image_size).spec)


def errors(found: Found, model: Any, image_size: int = models.SIZE_PX) -> list[float]:
    assert found.encoder is not None
    assert found.encoder.architecture.name == "sam3"
    pixels = upstream.pictures(image_size)
    fine, coarse, embedding = model.get_image_embeddings(pixels)
    pairs = zip(found.encoder.module(pixels), (embedding, fine, coarse), strict=True)
    return [upstream.relative_error(ours, other) for ours, other in pairs]


@pytest.mark.parametrize("layout", HUGGING_FACE)
def test_hugging_faces_layouts(tmp_path: Path, theirs: Any, layout: str) -> None:
    assert max(errors(load(tmp_path, models.hugging_face_files(theirs)[layout]), theirs)) <= TOLERANCE


@pytest.mark.parametrize("layout", META)
def test_metas_layouts(tmp_path: Path, theirs: Any, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam3, "META_EPS", sam3.HUGGING_FACE_EPS)  # transformers' is the reference
    assert max(errors(load(tmp_path, models.meta_files(theirs.state_dict())[layout]), theirs)) <= TOLERANCE


def test_metas_norms_have_another_epsilon(tmp_path: Path, theirs: Any) -> None:
    found = load(tmp_path, models.meta_files(theirs.state_dict())["sam3.pt"]).encoder
    assert found is not None
    norms = [module for module in found.module.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * models.BLOCKS + 1
    assert {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize("image_size", [168, 308])
def test_another_size_as_upstream_builds_it(tmp_path: Path, theirs: Any, image_size: int) -> None:
    other = models.tracker(image_size)
    other.load_state_dict(theirs.state_dict())
    assert max(errors(load(tmp_path, models.hugging_face_files(theirs)["module"], image_size), other, image_size)) <= (
        TOLERANCE
    )


def test_a_fourth_level_is_left_out(tmp_path: Path) -> None:
    released = models.tracker(levels=4)
    three = models.tracker()
    three.load_state_dict(released.state_dict(), strict=False)
    found = load(tmp_path, models.hugging_face_files(released)["module"])
    assert max(errors(found, three)) <= TOLERANCE
    # What transformers does with four: the embedding goes without no_memory_embedding. Meta's predictor adds it.
    without = released.get_image_embeddings(upstream.pictures(models.SIZE_PX))[2]
    with_it = three.get_image_embeddings(upstream.pictures(models.SIZE_PX))[2]
    assert torch.allclose(with_it - without, released.no_memory_embedding.reshape(1, -1, 1, 1), atol=1e-4)


def test_a_graph_computes_what_the_module_does(tmp_path: Path, theirs: Any) -> None:
    found = load(tmp_path, models.hugging_face_files(theirs)["module"]).encoder
    assert found is not None
    pixels, names = upstream.pictures(models.SIZE_PX), ["embedding", "fine", "coarse"]
    model = to_onnx(found.module, (pixels,), opset=18, inputs=["pixels"], outputs=names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ran = [torch.from_numpy(output) for output in session.run(None, {"pixels": pixels.numpy()})]
    pairs = zip(ran, found.module(pixels), strict=True)
    assert max(upstream.relative_error(ours, own) for ours, own in pairs) <= IN_ONNX
    assert not any(node.op_type.startswith("Complex") for node in model.graph.node)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("trunk.ln_pre.weight", "lacks weights: found trunk.ln_pre.weight"),
        ("trunk.blocks.1.attn.qkv.bias", "lacks weights: found trunk.blocks.1.attn.qkv.bias"),
        ("sam2_convs.1.dconv_2x2.weight", "lacks weights: found convs.1.dconv_2x2.weight"),
        ("no_mem_embed", "lacks weights: found no_mem_embed"),
        ("conv_s1.bias", "lacks weights"),
        ("+trunk.blocks.0.attn.rel_pos_h", "has weights that it should not have: found trunk.blocks.0.attn.rel_pos_h"),
        ("+trunk.blocks.0.ls1.gamma", "has weights that it should not have: found trunk.blocks.0.ls1.gamma"),
        ("+trunk.blocks.3.norm1.weight", "has sizes that none has: found 32 wide, 4 blocks"),
    ],
)
def test_half_of_one_or_another_is_refused(tmp_path: Path, theirs: Any, change: str, said: str) -> None:
    state = models.meta_files(theirs.state_dict())["image model"]
    if change.startswith("+"):
        state[f"backbone.vision_backbone.{change[1:]}"] = torch.ones(4)
    else:
        state = {key: tensor for key, tensor in state.items() if not key.endswith(change)}
    with pytest.raises(CheckpointError, match=said) as caught:
        load(tmp_path, state)
    assert "\n" not in str(caught.value)


def test_two_of_three_projections_are_refused(tmp_path: Path, theirs: Any) -> None:
    state: dict[str, Tensor] = models.hugging_face_files(theirs)["module"]
    del state["vision_encoder.backbone.layers.0.attention.k_proj.weight"]
    with pytest.raises(CheckpointError, match=r"lacks weights: found trunk.blocks.0.attn.k_proj.weight"):
        load(tmp_path, state)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "relu", "expected 'gelu'"),
        ("layer_norm_eps", 1e-5, "expected 1e-06"),
        ("global_attn_indexes", [0], "expected [1]"),
        ("window_size", 4, "expected 6"),
        ("num_attention_heads", 4, "expected 2"),
        ("layer_scale_init_value", 0.1, "expected None"),
        ("rope_parameters", {"rope_theta": 100.0, "rope_type": "axial"}, "expected 10000.0"),
    ],
)
@pytest.mark.parametrize("nested", [False, True], ids=["tracker", "whole repository"])
def test_a_configuration_of_another_encoder_is_refused(
    tmp_path: Path, theirs: Any, field: str, value: object, said: str, nested: bool
) -> None:
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    assert find_encoder(open_weights(tmp_path), load_checkpoint(tmp_path).spec).encoder is not None
    config["vision_config"]["backbone_config"][field] = value
    config = {"model_type": "sam3_video", "detector_config": {}, "tracker_config": config} if nested else config
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match="differs from the released") as caught:
        find_encoder(open_weights(tmp_path), load_checkpoint(tmp_path).spec)
    assert f"vision_config.backbone_config.{field}" in str(caught.value)
    assert said in str(caught.value)
