"""Hugging Face's SamModel and Sam2Model, with the weights of our checkpoint."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from samx.benchmarks.contenders import Opened, Setting, encoders
from samx.benchmarks.contenders.meta import fill
from samx.benchmarks.contenders.pytorch import Tensors, open_module, split_prompts
from samx.errors import UnavailableError
from samx.models.checkpoint import LoadedDecoder
from samx.models.encoders import hiera
from samx.models.encoders.base import Architecture, Weights
from samx.models.encoders.load import encoder_names
from samx.models.spec import DecoderSpec

# Encoders that are not called, as small as they can be.
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

    found = open_module(setting, model, call, ask=split_prompts, compiled=compiled, whole_graph=False)
    return found if compiled else replace(found, encoder=partial(encoders.opened, setting, build_encoder))


def build_encoder(architecture: Architecture, weights: Weights, picture_px: int) -> encoders.Peer:
    """Put the weights into the family's model, whose decoder is not called."""
    transformers = importlib.import_module("transformers")
    make = {"vit": _sam_with_encoder, "hiera": _sam2_with_encoder}[architecture.name]
    model = make(transformers, weights, picture_px)
    model.requires_grad_(False).eval()
    encoders.fill(model, weights, encoder_names(architecture, "", {key: key for key in model.state_dict()}))

    def call(pixels: Tensor) -> tuple[Tensor, ...]:
        found = model.get_image_embeddings(pixels)
        return (found[-1], *found[:-1]) if isinstance(found, list) else (found,)

    return encoders.Peer(model, call, picture_px)


def _sam_with_encoder(transformers: Any, weights: Weights, picture_px: int) -> Any:
    meta = encoders.vit_sizes(weights, picture_px)
    config = {
        "hidden_size": meta["embed_dim"], "num_hidden_layers": meta["depth"], "num_attention_heads": meta["num_heads"],
        "mlp_dim": round(meta["mlp_ratio"] * meta["embed_dim"]), "image_size": meta["img_size"],
        "patch_size": meta["patch_size"], "output_channels": meta["out_chans"], "window_size": meta["window_size"],
        "global_attn_indexes": meta["global_attn_indexes"],
    }  # fmt: skip
    return transformers.SamModel(transformers.SamConfig(vision_config=config))


def _sam2_with_encoder(transformers: Any, weights: Weights, picture_px: int) -> Any:
    sizes = hiera.Sizes.of(weights)
    widths = [sizes.width << stage for stage in range(hiera.STAGES)]
    config = {
        "backbone_config": {
            "model_type": "sam2_hiera_det_model", "hidden_size": sizes.width, "embed_dim_per_stage": widths,
            "blocks_per_stage": list(sizes.blocks), "global_attention_blocks": list(sizes.layout.everywhere),
            "num_attention_heads_per_stage": [sizes.layout.heads << stage for stage in range(hiera.STAGES)],
            "window_size_per_stage": list(sizes.layout.windows),
            "window_positional_embedding_background_size": [sizes.positions, sizes.positions],
            "image_size": [picture_px, picture_px],
        },
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[picture_px // step] * 2 for step in (4, 8, 16)],
    }  # fmt: skip
    prompts = {"image_size": picture_px}
    return transformers.Sam2Model(transformers.Sam2Config(vision_config=config, prompt_encoder_config=prompts))


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
