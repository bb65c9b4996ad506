"""Other patches and epsilons agree with upstream classes that were built with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import randomize
from test_reference_upstream import (
    SIZE_PX,
    TINY_SAM2_VISION,
    TINY_SAM_VISION,
    Pair,
    assert_agree,
    boxes,
    feed,
    images,
    masks,
    points,
    run_upstream,
)
from torch import Tensor, nn

from samx.models.checkpoint import build_reference, load_checkpoint

transformers = pytest.importorskip("transformers")
LITE_PX, LITE_GRID = 256, 64
# Keys that give a model away, with a weight of the shape that it has there.
LITE = {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(8, 3, 1, 1)}
EFFICIENT_VIT = {"image_encoder.backbone.stages.0.op_list.0.conv.weight": torch.zeros(8, 3, 3, 3)}


def small_patch_model(family: str, patch_px: int) -> Any:
    """Build Hugging Face's model of a family at another patch; the configuration alone tells it."""
    sizes = {"image_size": SIZE_PX, "patch_size": patch_px}
    if family == "sam1":
        config = transformers.SamConfig(vision_config={**TINY_SAM_VISION, **sizes}, prompt_encoder_config=sizes)
        model = transformers.SamModel(config).eval()
    else:
        config = transformers.Sam2Config(vision_config=TINY_SAM2_VISION, prompt_encoder_config=sizes)
        model = transformers.Sam2Model(config).eval()
    randomize(model)
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    return model.requires_grad_(False)


@pytest.mark.parametrize("patch_px", [8, 32])
@pytest.mark.parametrize("family", ["sam1", "sam2"])
def test_another_patch_agrees_with_hugging_face(tmp_path: Path, family: str, patch_px: int) -> None:
    model = small_patch_model(family, patch_px)
    model.save_pretrained(tmp_path)
    pair = Pair(family, model, load_checkpoint(tmp_path))
    assert (pair.spec.patch_px, pair.spec.grid) == (patch_px, SIZE_PX // patch_px)
    torch.manual_seed(0)
    image, prompt = images(pair.spec, 1), points(1, 0)
    mask = masks(4 * 4 * pair.spec.grid)  # of 4 pixels a token
    prompt = type(prompt)(prompt.points, prompt.labels, boxes(), mask)
    assert_agree(pair.ours()(**image, **feed(family, prompt)), run_upstream(pair, image, prompt, multimask=True))


class Meta(nn.Module):
    """Meta's own prompt encoder and mask decoder of SAM 1, at any grid."""

    def __init__(self, size_px: int, grid: int) -> None:
        super().__init__()
        modeling = pytest.importorskip("segment_anything.modeling")
        self.prompt_encoder = modeling.PromptEncoder(256, (grid, grid), (size_px, size_px), 16)
        transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        self.mask_decoder = modeling.MaskDecoder(transformer_dim=256, transformer=transformer)
        randomize(self)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, box: Tensor) -> dict[str, Tensor]:
        sparse, dense = self.prompt_encoder(points=None, boxes=box, masks=None)
        logits, iou = self.mask_decoder(image, self.prompt_encoder.get_dense_pe(), sparse, dense, multimask_output=True)
        return {"low_res_masks": logits, "iou_predictions": iou}

    def set_epsilon(self, eps: float) -> None:
        """Change every LayerNorm, as EfficientViT-SAM's model builder does; SAM's LayerNorm2d is none."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps


def ours(folder: Path, model: Meta, encoder: dict[str, Tensor], **options: Any) -> Any:
    torch.save({**model.state_dict(), **encoder}, folder / "model.pth")
    return build_reference(load_checkpoint(folder / "model.pth", **options))


def asked(grid: int, size_px: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    image, box = torch.randn(1, 256, grid, grid), torch.tensor([[0.2, 0.3, 0.7, 0.9]]) * size_px
    return image, box, {"point_coords": box.reshape(1, 2, 2), "point_labels": torch.tensor([[2.0, 3.0]])}


def test_litemedsams_grid_agrees_with_metas_classes(tmp_path: Path) -> None:
    model = Meta(LITE_PX, LITE_GRID)
    image, box, prompt = asked(LITE_GRID, LITE_PX)
    expected = model(image, box)
    assert_agree(ours(tmp_path, model, LITE)(image, **prompt), expected)
    at_1024_px = ours(tmp_path, model, {}, image_size=1024)  # as many tokens, and what 0.1.0 took it for
    with pytest.raises(AssertionError, match=r"e-0|e\+0"):
        assert_agree(at_1024_px(image, **prompt), expected)


def test_efficientvit_sams_epsilon_agrees_with_metas_classes(tmp_path: Path) -> None:
    model = Meta(SIZE_PX, 16)
    model.set_epsilon(1e-6)
    for weight in model.mask_decoder.transformer.layers[0].self_attn.out_proj.parameters():
        weight.mul_(1e-2)  # what the next norm gets is so small that its epsilon shows
    image, box, prompt = asked(16, SIZE_PX)
    expected = model(image, box)
    assert_agree(ours(tmp_path, model, EFFICIENT_VIT, image_size=SIZE_PX)(image, **prompt), expected)
    usual = ours(tmp_path, model, {}, image_size=SIZE_PX)
    with pytest.raises(AssertionError, match="e-0"):
        assert_agree(usual(image, **prompt), expected)
