"""From a photo to its masks with the encoder of a checkpoint: what Meta's predictors give with the same file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_operators
from upstream_encoders import meta_vit
from upstream_predictors import iou

import samx
from samx.demo.scenes import generate_scene
from samx.validators.other_size import told

SHAPES = ((300, 200), (180, 400))  # (H, W)
LOGITS, SCORES = 1e-5, 1e-5  # of the largest logit; absolute


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


@pytest.mark.parametrize("build", [meta_sam1, pytest.param(meta_sam2, marks=pytest.mark.slow)])
def test_a_photo_gives_metas_masks(build: Any, tmp_path: Path) -> None:
    checkpoint, meta = build(tmp_path)
    artifact = samx.export(checkpoint, tmp_path / "artifact", masks="all")
    with samx.open(artifact) as ours:
        for shape in SHAPES:
            picture = np.asarray(generate_scene(900_003, shape[::-1]).image)
            assert picture.shape[:2] == shape
            for predictor in (ours, meta):
                predictor.set_image(picture)
            assert_same(ours, meta, shape)


def assert_same(ours: Any, meta: Any, shape: tuple[int, int]) -> None:
    box = np.array([0.1 * shape[1], 0.2 * shape[0], 0.7 * shape[1], 0.9 * shape[0]])
    point = {"point_coords": np.array([[shape[1] / 3, shape[0] / 2]]), "point_labels": np.array([1])}
    for prompt in (point, {"box": box}, {**point, "box": box}):
        found, expected = (predictor.predict(**prompt, multimask_output=True) for predictor in (ours, meta))
        assert expected[2].std() > 0
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
