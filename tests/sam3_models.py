"""transformers' SAM 3 tracker with few blocks and random weights, and its state as publishers save it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from checkpoint_files import meta_sam2, randomize
from torch import Tensor

from samx.models.encoders.sam3 import Layout

State = dict[str, Tensor]
SIZE_PX, PATCH_PX = 224, 14  # the decoder is full-size, its picture is not
WIDTH, BLOCKS = 32, 3
LAYOUT = Layout(heads=2, window=6, everywhere=(1,))  # windows do not divide the map of 16 tokens a side
LAYOUTS = {(WIDTH, BLOCKS): LAYOUT}
LEVELS = [4.0, 2.0, 1.0]  # with a fourth, as released, Sam3TrackerModel adds no_memory_embedding to the one it drops


def config(size_px: int = SIZE_PX, levels: int = 3, decoder: Mapping[str, Any] | None = None) -> Any:
    """Configure transformers' tracker."""
    import transformers

    grid = size_px // PATCH_PX
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": BLOCKS,
        "num_attention_heads": LAYOUT.heads, "window_size": LAYOUT.window, "image_size": size_px,
        "global_attn_indexes": list(LAYOUT.everywhere), "pretrain_image_size": 5 * PATCH_PX,
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "scale_factors": [*LEVELS, 0.5][:levels],
        "backbone_feature_sizes": [[scale * grid] * 2 for scale in (4, 2, 1)],
    }  # fmt: skip
    return transformers.Sam3TrackerConfig(
        vision_config=vision, prompt_encoder_config={"image_size": size_px}, mask_decoder_config=dict(decoder or {})
    )


def tracker(size_px: int = SIZE_PX, levels: int = 3, seed: int = 0, **decoder: Any) -> Any:
    """Build transformers' tracker; what its rotary positions are made of is no weight."""
    import transformers

    model = transformers.Sam3TrackerModel(config(size_px, levels, decoder)).eval()
    fixed = {name: tensor.clone() for name, tensor in model.named_buffers()}
    randomize(model, seed)
    for name, tensor in model.named_buffers():
        if "rotary_emb" in name or "position_ids" in name:
            tensor.copy_(fixed[name])
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    return model.requires_grad_(False)


def trunk_as_metas(state: Mapping[str, Tensor]) -> State:
    """Return an image encoder's weights under Meta's names, below its vision_backbone."""
    renames = (
        (r"^vision_encoder\.backbone\.embeddings\.patch_embeddings\.projection\.", "trunk.patch_embed.proj."),
        (r"^vision_encoder\.backbone\.layer_norm\.", "trunk.ln_pre."),
        (r"^vision_encoder\.backbone\.layers\.(\d+)\.layer_norm", r"trunk.blocks.\1.norm"),
        (r"^vision_encoder\.backbone\.layers\.(\d+)\.attention\.o_proj", r"trunk.blocks.\1.attn.proj"),
        (r"^vision_encoder\.backbone\.layers\.(\d+)\.mlp", r"trunk.blocks.\1.mlp"),
        (r"^vision_encoder\.neck\.fpn_layers\.0\.scale_layers\.0", "sam2_convs.0.dconv_2x2_0"),
        (r"^vision_encoder\.neck\.fpn_layers\.0\.scale_layers\.2", "sam2_convs.0.dconv_2x2_1"),
        (r"^vision_encoder\.neck\.fpn_layers\.1\.scale_layers\.0", "sam2_convs.1.dconv_2x2"),
        (r"^vision_encoder\.neck\.fpn_layers\.(\d)\.proj1", r"sam2_convs.\1.conv_1x1"),
        (r"^vision_encoder\.neck\.fpn_layers\.(\d)\.proj2", r"sam2_convs.\1.conv_3x3"),
    )
    found: State = {}
    for name, tensor in state.items():
        for pattern, replacement in renames:
            if re.match(pattern, name):
                found[re.sub(pattern, replacement, name)] = tensor
    for i in range(BLOCKS):
        stem = f"vision_encoder.backbone.layers.{i}.attention"
        for leaf in ("weight", "bias"):
            parts = [state[f"{stem}.{part}_proj.{leaf}"] for part in "qkv"]
            found[f"trunk.blocks.{i}.attn.qkv.{leaf}"] = torch.cat(parts)
        found[f"trunk.blocks.{i}.attn.freqs_cis"] = torch.ones(2, 2, dtype=torch.complex64)
    positions = state["vision_encoder.backbone.embeddings.position_embeddings"]
    found["trunk.pos_embed"] = torch.cat([positions[:, :1], positions], 1)  # Meta's begins with a class token's
    return found


def meta_files(state: Mapping[str, Tensor]) -> dict[str, State]:
    """Return a checkpoint in each of Meta's layouts, with this image encoder and the decoder of meta_sam2()."""
    trunk, decoder = trunk_as_metas(state), {k: v for k, v in meta_sam2().items() if k.startswith("sam_")}
    for leaf in ("weight", "bias"):
        for conv in ("conv_s0", "conv_s1"):
            decoder[f"sam_mask_decoder.{conv}.{leaf}"] = state[f"mask_decoder.{conv}.{leaf}"]
    no_memory = state["no_memory_embedding"]
    own = {**decoder, "no_mem_embed": no_memory}
    vision = {f"backbone.vision_backbone.{key}": tensor for key, tensor in trunk.items()}
    vision |= {key.replace("sam2_convs", "convs"): 2 * v for key, v in vision.items() if "sam2_convs" in key}
    later = {k.replace("sam2_convs", "interactive_convs"): v for k, v in vision.items() if "freqs_cis" not in k}
    of_16 = {f"tracker.model.{key}": 2 * tensor for key, tensor in decoder.items() if "mask_decoder" in key}
    return {
        "sam3.pt": {**under("tracker.", own), **under("detector.", vision)},
        "image model": {**under("inst_interactive_predictor.model.", own), **vision},
        "tracker with its backbone": {**own, **vision},
        "sam3.1": {
            **of_16, **under("tracker.model.interactive_", decoder), **under("detector.", later),
            "tracker.model.interactivity_no_mem_embed": no_memory,
        },
    }  # fmt: skip


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    """Put a prefix in front of all keys."""
    return {prefix + key: tensor for key, tensor in state.items()}


def hugging_face_files(model: Any) -> dict[str, State]:
    """Return a checkpoint in each of Hugging Face's layouts."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    whole: State = {"detector_model.mask_decoder.mask_embedder.layers.0.weight": torch.ones(2, 2)}
    for key, tensor in state.items():
        if key.startswith("vision_encoder.neck."):
            whole[key.replace("vision_encoder.neck.", "tracker_neck.")] = tensor
            whole[f"detector_model.{key}"] = 2 * tensor
        elif key.startswith("vision_encoder."):
            whole[f"detector_model.{key}"] = tensor
        else:
            whole[f"tracker_model.{key}"] = tensor
    return {"module": state, "whole repository": whole}
