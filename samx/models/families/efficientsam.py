"""SAM whose prompts have six tokens each, none of them a mask: EfficientSAM.

Its three masks come as SAM's do; the example of its publisher sorts them by predicted IoU.
Source: EfficientSAM: EfficientSam (preprocess, predict_masks), build_efficient_sam; its notebook that segments
everything, for the automatic mode's thresholds.
"""

from samx.models.families.base import Family, Renames

HEADS = r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))"
RENAMES: Renames = (
    (r"^prompt_encoder\.invalid_points\.", "prompt_encoder.not_a_point_embed."),
    # Those of the foreground and of a box's corners; the background has none.
    (r"^prompt_encoder\.point_embeddings\.weight$", "prompt_encoder.point_embeddings.0.weight"),
    (r"^prompt_encoder\.bbox_top_left_embeddings\.", "prompt_encoder.point_embeddings.1."),
    (r"^prompt_encoder\.bbox_bottom_right_embeddings\.", "prompt_encoder.point_embeddings.2."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.layers\.0\.0\.", r"\1.lin1."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.fc\.", r"\1.lin2."),
    (HEADS + r"\.layers\.(\d+)\.0\.", r"\1.layers.\2."),
    (HEADS + r"\.fc\.", r"\1.layers.2."),
    (r"^mask_decoder\.final_output_upscaling_layers\.0\.([01])\.", r"mask_decoder.output_upscaling.\1."),
    (r"^mask_decoder\.final_output_upscaling_layers\.1\.0\.", "mask_decoder.output_upscaling.3."),
)

FAMILY = Family(
    name="efficientsam",
    title="EfficientSAM",
    publisher="Meta",
    marks=(r"mask_decoder\.final_output_upscaling_layers\.",),
    renames=RENAMES,
    encoders=("samx.models.encoders.efficientsam",),
    spec={"image_size": 1024, "patch_px": 16, "frame": "stretch", "pixels": "imagenet", "mask_tokens": 4},
    reference="samx.models.efficientsam:EfficientDecoder",
    map_norm=True,
    resizes_floats=True,
    antialiases=False,
    cubic_masks=True,
    box_first=False,
    prompt_tokens=6,
    takes_masks=False,
    automatic_iou=0.7,
    automatic_stability=0.9,
)
