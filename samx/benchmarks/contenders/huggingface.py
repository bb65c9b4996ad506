"""Hugging Face's SamModel and Sam2Model, with the weights of our checkpoint."""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor

from samx.benchmarks.contenders import Opened, Setting
from samx.benchmarks.contenders.meta import fill
from samx.benchmarks.contenders.pytorch import Tensors, open_module, split_prompts
from samx.errors import UnavailableError
from samx.models.checkpoint import LoadedDecoder
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


def open_hugging_face(setting: Setting, compiled: bool = False) -> Opened:
    """Open the family's model as its users call it: all prompts of a call at once, with the embedding given.

    Raises: UnavailableError where it has not the masks that are asked for.
    """
    spec = setting.loaded.spec
    if spec.masks != "multimask":
        raise UnavailableError("it has other masks", found="multimask", expected=spec.masks)
    model = build(setting.loaded)

    def call(image: Tensors, coords: Tensor, labels: Tensor, boxes: Tensor) -> Tensors:
        points = {"input_points": coords[None], "input_labels": labels[None].int()} if coords.shape[1] else {}
        corners = {"input_boxes": boxes[None]} if boxes.shape[1] else {}
        embeddings = [*image[1:], image[0]] if len(image) > 1 else image[0]
        result = model(image_embeddings=embeddings, multimask_output=True, **points, **corners)
        scores = (result.object_score_logits[0],) if spec.object_score else ()
        return result.pred_masks[0], result.iou_scores[0], *scores

    return open_module(setting, model, call, ask=split_prompts, compiled=compiled, whole_graph=False)


def build(loaded: LoadedDecoder) -> Any:
    """Fill the family's model."""
    transformers = importlib.import_module("transformers")
    name, config = MODELS[loaded.spec.family]
    model = getattr(transformers, name)(config(transformers, loaded.spec))
    fill(model, loaded)
    return model.requires_grad_(False).eval()


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
