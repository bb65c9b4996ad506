"""Hugging Face's SamModel and Sam2Model, with the weights of our checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samx.benchmarks.contenders import fill, require_peer
from samx.models.checkpoint import LoadedDecoder
from samx.models.session import Feed
from samx.models.spec import DecoderSpec

# Encoders that are never called, as small as they can be.
SAM_VISION: dict[str, Any] = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "mlp_dim": 8, "global_attn_indexes": [0],
}  # fmt: skip
SAM2_VISION: dict[str, Any] = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64],
        "blocks_per_stage": [1, 1, 1, 1], "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [],
    },
    "backbone_channel_list": [64, 32, 16, 8],
}  # fmt: skip


class BoxDecoder(torch.nn.Module):
    """Decode boxes on one image: what is left of a model call when the embedding is given."""

    def __init__(self, model: Any, image: Feed) -> None:
        super().__init__()
        self.model = model
        embedding, *high = (torch.from_numpy(value.copy()) for value in image.values())
        self.embeddings = [*high, embedding] if high else embedding

    @torch.inference_mode()
    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return three masks a box. Shapes: boxes (N, 4), px of the frame -> (N, 3, S, S), (N, 3)."""
        result = self.model(image_embeddings=self.embeddings, input_boxes=boxes[None], multimask_output=True)
        return result.pred_masks[0], result.iou_scores[0]


def build(loaded: LoadedDecoder, image: Feed) -> BoxDecoder:
    """Fill the family's model, and give it an image.

    Raises: UnavailableError without transformers.
    """
    transformers: Any = require_peer("transformers")
    name, config = MODELS[loaded.spec.family]
    model = getattr(transformers, name)(config(transformers, loaded.spec))
    fill(model, loaded)
    return BoxDecoder(model.requires_grad_(False).eval(), image)


def _sam_config(transformers: Any, spec: DecoderSpec) -> Any:
    return transformers.SamConfig(
        vision_config={**SAM_VISION, "image_size": spec.image_size},
        prompt_encoder_config={"image_size": spec.image_size, "patch_size": spec.patch_px},
        mask_decoder_config={"layer_norm_eps": spec.norm_eps},
    )


def _sam2_config(transformers: Any, spec: DecoderSpec) -> Any:
    return transformers.Sam2Config(
        vision_config=SAM2_VISION,
        prompt_encoder_config={"image_size": spec.image_size, "patch_size": spec.patch_px},
        mask_decoder_config={},
    )


MODELS = {"sam1": ("SamModel", _sam_config), "sam2": ("Sam2Model", _sam2_config)}
