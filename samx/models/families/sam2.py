"""SAM 2 and 2.1, and what has their decoder: EdgeTAM, EfficientTAM, MedSAM2, SAMURAI, SAM2Long.

Source: Meta's sam2: SAM2ImagePredictor, SAM2AutomaticMaskGenerator, SAM2Transforms, PromptEncoder and MaskDecoder.
"""

from samx.models.families.base import HUGGING_FACE, Family
from samx.models.families.configuration import SAM2

FAMILY = Family(
    name="sam2",
    title="SAM 2",
    marks=(r"(?:^|\.)sam_mask_decoder\.|mask_decoder\.(?:obj_score_token|conv_s0)\.",),
    renames=(
        (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
        (r"(transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.lin1."),
        (r"(transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.lin2."),
        *HUGGING_FACE,
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
)
