"""SAM 2 and 2.1, and what has their decoder: EdgeTAM, EfficientTAM, MedSAM2, SAMURAI, SAM2Long.

Source: Meta's sam2: SAM2ImagePredictor, SAM2AutomaticMaskGenerator, SAM2Transforms, PromptEncoder and MaskDecoder.
"""

from samx.models.families.base import HUGGING_FACE, Family, Renames
from samx.models.families.configuration import SAM2

# Beside the decoder, for a video's loop: Meta's names, then Hugging Face's.
VIDEO: Renames = (
    (r"^(?:obj_ptr_proj|object_pointer_proj)\.", "object_pointer.proj."),
    (r"^(?:no_obj_ptr|no_object_pointer)$", "object_pointer.absent"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"^(memory_encoder\.fuser\.layers\.\d+)\.depthwise_conv\.", r"\1.dwconv."),
    (r"^(memory_encoder\.fuser\.layers\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"^(memory_encoder\.fuser\.layers\.\d+)\.pointwise_conv([12])\.", r"\1.pwconv\2."),
    (r"^(memory_encoder\.fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"^memory_encoder\.mask_downsampler\.final_conv\.", "memory_encoder.mask_downsampler.encoder.12."),
    *(
        (
            rf"^memory_encoder\.mask_downsampler\.layers\.{i}\.{part}\.",
            f"memory_encoder.mask_downsampler.encoder.{3 * i + j}.",
        )
        for i in range(4)
        for j, part in enumerate(("conv", "layer_norm"))
    ),
)

FAMILY = Family(
    name="sam2",
    title="SAM 2",
    marks=(r"(?:^|\.)sam_mask_decoder\.|mask_decoder\.(?:obj_score_token|conv_s0)\.",),
    renames=(
        (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
        (r"(transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.lin1."),
        (r"(transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.lin2."),
        *HUGGING_FACE,
        *VIDEO,
    ),
    left_out=tuple(f"mask_decoder.conv_s{level}.{part}" for level in (0, 1) for part in ("weight", "bias")),
    encoders=("samx.models.encoders.hiera", "samx.models.encoders.edgetam"),
    model_types=("sam2", "sam2_video", "edgetam", "edgetam_video"),
    configuration=SAM2,
    evidence=r"(?:^|\.)(?:image_encoder\.|vision_encoder\.|memory_attention\.layers\.\d+\.norm1\.)",
    twin="sam3",
    frame_step_px=32,
    spec={
        "image_size": 1024,
        "patch_px": 16,
        "frame": "stretch",
        "pixels": "imagenet",
        "mask_tokens": 4,
        "iou_sigmoid": True,
        "high_res_features": True,
        "object_score": True,
        "stability_fallback": True,
        "stability_delta": 0.05,
        "stability_threshold": 0.98,
    },
    pointing="samx.models.object_pointer:PointingDecoder",
    remembers=True,
    features=(
        "the image encoder's coarsest features, no_mem_embed added",
        "its features of stride 4, after conv_s0",
        "its features of stride 8, after conv_s1",
    ),
    resizes_floats=True,
    box_first=True,
    pads_boxes=True,
    predicts_batches=True,
    mask_limit=32.0,
    float_masks=True,
    automatic_iou=0.8,
    automatic_stability=0.95,
    automatic_refines=True,
    automatic_mends_logits=True,
)
