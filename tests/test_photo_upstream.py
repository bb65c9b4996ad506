"""From a photo to its masks with the encoder of a checkpoint: what Meta's predictors give with the same file."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_operators
from checkpoint_files import randomize
from hq_upstream import hq_sam, hq_sam2_decoder, louder
from safetensors.torch import save_file
from torch import nn
from upstream_encoders import meta_vit
from upstream_predictors import iou

sys.path.insert(0, str(Path(__file__).parent / "models" / "encoders"))
from mobile_encoders import TINY_VIT, tiny_vit_case

import samx
from samx.demo.scenes import generate_scene
from samx.models.spec import sam1_spec
from samx.validators.other_size import told

pytestmark = pytest.mark.long

SHAPES = ((300, 200), (180, 400))  # (H, W)
LOGITS, SCORES = 1e-5, 1e-5  # of the largest logit; absolute
HQ_PX = 128  # the frame of HQ-SAM's decoders, whose last convolutions cost most of a prompt
LOUD = 50  # logits of the largest of HQ-SAM's decoders, at least


def meta_sam1(folder: Path) -> tuple[Path, Any]:
    """Build Meta's SAM with few blocks and a frame of 256 px; return its checkpoint and its predictor."""
    modeling = import_module("segment_anything.modeling")
    torch.manual_seed(0)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    sam = modeling.Sam(
        meta_vit(256, out=256), modeling.PromptEncoder(256, (16, 16), (256, 256), 16),
        modeling.MaskDecoder(transformer_dim=256, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=256),
        [123.675, 116.28, 103.53], [58.395, 57.12, 57.375],
    ).eval()  # fmt: skip
    torch.save(sam.state_dict(), folder / "sam.pth")
    return folder / "sam.pth", import_module("segment_anything").SamPredictor(sam)


def meta_sam2(folder: Path) -> tuple[Path, Any]:
    """Build Meta's SAM 2.1 with Hiera-T as released, without its training; return its checkpoint and its predictor."""
    torchvision_operators.define()
    torch.manual_seed(0)
    model = import_module("sam2.build_sam").build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", None, device="cpu")
    torch.save({"model": model.state_dict()}, folder / "sam2.pt")
    return folder / "sam2.pt", import_module("sam2.sam2_image_predictor").SAM2ImagePredictor(model)


def light(size_px: int) -> tuple[Any, Any]:
    """Build TinyViT as Light HQ-SAM has it, small; return it, and a layer that returns what goes to the decoder too."""
    case = tiny_vit_case({**TINY_VIT, "depths": (2, 2, 6, 2)}, sam1_spec(image_size=size_px), out=256)
    return case, case.reference.trunk.stages[2].downsample


def syscv_sam_hq(folder: Path) -> tuple[Path, Any]:
    """Build HQ-SAM with few blocks and a small frame."""
    sam = hq_sam(HQ_PX)
    torch.save(sam.state_dict(), folder / "sam_hq.pth")
    return folder / "sam_hq.pth", import_module("segment_anything").SamPredictor(sam)


def syscv_light_hq_sam(folder: Path) -> tuple[Path, Any]:
    """Build Light HQ-SAM, with timm's TinyViT for its encoder."""
    case, early = light(HQ_PX)
    sam = hq_sam(HQ_PX, First(case.reference), early, interm=TINY_VIT["embed_dims"][2])
    decoder = {name: value for name, value in sam.state_dict().items() if not name.startswith("image_encoder.")}
    encoder = {f"image_encoder.{name}": value for name, value in case.weights.items()}
    path, state = folder / "sam_hq_vit_tiny.safetensors", {**decoder, **encoder}
    # TinyViT's weights have no size of pictures.
    save_file({name: value.clone() for name, value in state.items()}, path, {"image_size": str(HQ_PX)})
    return path, import_module("segment_anything").SamPredictor(sam)


def syscv_hq_sam2(folder: Path) -> tuple[Path, Any]:
    """Build HQ-SAM 2 with Hiera-T, without its training."""
    path, predictor = meta_sam2(folder)
    decoder = hq_sam2_decoder()
    convolutions = {name: getattr(predictor.model.sam_mask_decoder, name) for name in ("conv_s0", "conv_s1")}
    for name, convolution in convolutions.items():
        setattr(decoder, name, convolution)
    randomize(decoder.eval())
    louder(decoder)
    predictor.model.sam_mask_decoder = decoder.requires_grad_(False)
    torch.save({"model": predictor.model.state_dict()}, path)
    return path, predictor


class First(nn.Module):
    """Return the one output of an encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.img_size = encoder, HQ_PX

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        (embedding,) = self.encoder(pixels)
        return embedding


BUILT = [
    meta_sam1,
    syscv_sam_hq,
    syscv_light_hq_sam,
    *(pytest.param(b, marks=pytest.mark.slow) for b in (meta_sam2, syscv_hq_sam2)),
]


@pytest.mark.parametrize("build", BUILT)
def test_a_photo_gives_metas_masks(build: Any, tmp_path: Path) -> None:
    checkpoint, meta = build(tmp_path)
    artifact = samx.export(checkpoint, tmp_path / "artifact", masks="all")
    with samx.open(artifact) as ours:
        for shape in SHAPES:
            picture = np.asarray(generate_scene(900_003, shape[::-1]).image)
            assert picture.shape[:2] == shape
            for predictor in (ours, meta):
                predictor.set_image(picture)
            assert_same(ours, meta, shape, loud=LOUD if ours.spec.hq_token else 0)


def assert_same(ours: Any, meta: Any, shape: tuple[int, int], loud: float) -> None:
    box = np.array([0.1 * shape[1], 0.2 * shape[0], 0.7 * shape[1], 0.9 * shape[0]])
    point = {"point_coords": np.array([[shape[1] / 3, shape[0] / 2]]), "point_labels": np.array([1])}
    for prompt, multimask in ((point, True), ({"box": box}, True), ({**point, "box": box}, True), (point, False)):
        found, expected = (predictor.predict(**prompt, multimask_output=multimask) for predictor in (ours, meta))
        assert expected[2].std() > 0
        assert np.abs(expected[2]).max() >= min(loud, ours.spec.rules.mask_limit)
        np.testing.assert_allclose(found[2], expected[2], rtol=0, atol=LOGITS * np.abs(expected[2]).max())
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=SCORES)
        assert iou(found[0], expected[0]) > 0.9999


def test_another_size_is_reported_beside_the_own_one(tmp_path: Path) -> None:
    checkpoint, _ = meta_sam1(tmp_path)
    artifact = samx.export(checkpoint, tmp_path / "artifact", image_size=192)
    found = artifact.manifest.options["other_size"]
    assert (found["own_px"], found["px"]) == (256, 192)
    assert 0 < found["mask_iou_mean"] <= 1
    assert min(found["seconds"], found["own_seconds"]) > 0
    assert f"mean mask IoU {found['mask_iou_mean']:.4f} with the masks at 256 px" in told(found)
    assert artifact.manifest.encoder is not None
    assert artifact.manifest.encoder.picture_px == 192
