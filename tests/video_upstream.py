"""SAM 2's video models at random weights, small frames: Meta's SAM2Base and transformers' Sam2VideoModel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_files import randomize
from torch import Tensor

from samx.models.checkpoint import LoadedDecoder, load_checkpoint
from samx.models.reference import ReferenceDecoder

SIZE_PX = 256  # the decoder is full-size, its image is not
GRID, WIDTH, MEMORY = SIZE_PX // 16, 256, 64
TOKEN_ENCODER = {"memory_attention.layers.0.norm1.weight": torch.zeros(1)}  # what tells SAM 2 from SAM 3
TINY_VISION: dict[str, Any] = {
    "backbone_config": {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "embed_dim_per_stage": [8, 16, 32, 64],
        "blocks_per_stage": [1, 1, 1, 1], "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [],
    },
    "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
}  # fmt: skip


def meta_memory_encoder() -> Any:
    """Build Meta's memory encoder as every released configuration does."""
    parts = pytest.importorskip("sam2.modeling.memory_encoder")
    position = pytest.importorskip("sam2.modeling.position_encoding").PositionEmbeddingSine(MEMORY)
    masks = parts.MaskDownSampler(WIDTH, kernel_size=3, stride=2, padding=1)
    return parts.MemoryEncoder(MEMORY, masks, parts.Fuser(parts.CXBlock(WIDTH, 7, 3), 2), position)


def meta_video(spatial: bool = True) -> Any:
    """Build Meta's model but for its image encoder and memory attention; `spatial`: SAM 2.1's, not SAM 2's."""
    base = pytest.importorskip("sam2.modeling.sam2_base")
    model = base.SAM2Base(
        SimpleNamespace(neck=SimpleNamespace(d_model=WIDTH)), None, meta_memory_encoder(), image_size=SIZE_PX,
        sigmoid_scale_for_mem_enc=20.0, sigmoid_bias_for_mem_enc=-10.0, binarize_mask_from_pts_for_mem_enc=True,
        use_high_res_features_in_sam=True, multimask_output_in_sam=True, iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True, pred_obj_scores=True, pred_obj_scores_mlp=True, fixed_no_obj_ptr=True,
        multimask_output_for_tracking=True, use_multimask_token_for_obj_ptr=True, use_mlp_for_obj_ptr_proj=True,
        no_obj_embed_spatial=spatial,
        sam_mask_decoder_extra_args={
            "dynamic_multimask_via_stability": True, "dynamic_multimask_stability_delta": 0.05,
            "dynamic_multimask_stability_thresh": 0.98,
        },
    )  # fmt: skip
    return _randomized(model)


def _randomized(model: Any) -> Any:
    model = model.eval().requires_grad_(False)
    randomize(model)
    for name, tensor in model.named_parameters():
        if "." not in name:  # learned rows beside the modules
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))))
    return model


def meta_file(model: Any, path: Path, **changes: Tensor) -> Path:
    """Save a model as Meta does, with what stands for its other parts."""
    torch.save({"model": {**model.state_dict(), **TOKEN_ENCODER, **changes}}, path)
    return path


def hugging_face_video(folder: Path, name: str = "Sam2Video", **config: Any) -> Any:
    """Build transformers' model of a family, and save it in a folder."""
    transformers = pytest.importorskip("transformers")
    vision = (
        tiny_edge_tam(transformers) if name == "EdgeTamVideo" else {**TINY_VISION, "model_type": "sam2_vision_model"}
    )
    given = {"vision_config": vision, "prompt_encoder_config": {"image_size": SIZE_PX}, "image_size": SIZE_PX, **config}
    model = _randomized(getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**given)))
    shared = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(shared)
    model.save_pretrained(folder)
    return model


def tiny_edge_tam(transformers: Any) -> Any:
    """Describe a small image encoder of EdgeTAM's."""
    channels = TINY_VISION["backbone_channel_list"]
    sizes = {"embed_dim": channels[::-1], "depth": [2, 2, 2, 2]}
    backbone = transformers.TimmWrapperConfig(
        architecture="repvit_m1",
        model_args={"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3], **sizes},
    )
    return transformers.EdgeTamVisionConfig(
        backbone_config=backbone, backbone_channel_list=channels,
        backbone_feature_sizes=TINY_VISION["backbone_feature_sizes"],
    )  # fmt: skip


def loaded(path: Path) -> LoadedDecoder:
    return load_checkpoint(path, image_size=SIZE_PX, object_pointer=True)


def shift_score(decoder: ReferenceDecoder, head: Any, **feed: Tensor) -> None:
    """Move the bias of an upstream's object score, and of ours, so that half of the prompts' objects are not there."""
    ours = decoder.mask_decoder.get_submodule("pred_obj_score_head.layers.2").get_parameter("bias")
    middle = decoder(**feed)["object_score_logits"].sort(0).values[1:3].mean()
    for bias in (ours, head):
        bias.data -= middle


def images(count: int, seed: int = 0) -> dict[str, Tensor]:
    """Draw features of so many frames, each object's own."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"image_embeddings": (WIDTH, GRID), "high_res_features_0": (32, 4 * GRID)}
    shapes["high_res_features_1"] = (64, 2 * GRID)
    return {
        name: torch.randn(count, channels, side, side, generator=generator) for name, (channels, side) in shapes.items()
    }
