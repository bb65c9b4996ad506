"""SAM 3's tracker, whose decoder answers clicks: SAM 3, SAM 3.1, Sam3Tracker.

Beside it lie a detector of concepts and, in SAM 3.1, a video decoder of 16 objects: neither is read.
Source: Meta's sam3: SAM3InteractiveImagePredictor, Sam3Processor, Sam3TrackerBase, model_builder; transformers'
Sam3Tracker.
"""

from samx.models.families.base import Family, Renames, Variant
from samx.models.families.configuration import SAM2
from samx.models.families.sam2 import FAMILY as SAM_2

INTERACTIVE = r"(?:^|\.)interactive_sam_(?:prompt_encoder|mask_decoder)\."
# The released file, the image model, the tracker by itself (SAM 2: memory_attention), its image encoder.
OWN = "|".join(
    (
        r"(?:^|\.)(?:tracker(?:_model)?\.(?:sam_)?mask_decoder|detector_model|tracker_neck)\.",
        r"(?:^|\.)inst_interactive_predictor\.model\.",
        r"(?:^|\.)transformer\.encoder\.layers\.\d+\.cross_attn_image\.",
        r"(?:^|\.)vision_backbone\.(?:trunk|convs|sam2_convs|interactive_convs)\.",
        r"(?:^|\.)vision_encoder\.backbone\.embeddings\.patch_embeddings\.",
        INTERACTIVE,
    )
)
# Where the image encoder lies. The detector has a neck of its own.
PLACES: Renames = (
    (r"^.*detector_model\.vision_encoder\.neck\.", "detector."),
    (r"^(?:.*\.)?vision_backbone\.trunk\.", "image_encoder.trunk."),
    (r"^(?:.*\.)?vision_backbone\.(?:sam2_convs|interactive_convs)\.", "image_encoder.convs."),
    (r"^(?:.*\.)?vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^(?:.*\.)?(?:tracker_neck|vision_encoder\.neck)\.fpn_layers\.", "image_encoder.convs."),
    (r"^(?:.*\.)?(?:interactivity_no_mem_embed|no_mem_embed|no_memory_embedding)$", "no_mem_embed"),
    (r"^(?:.*\.)?(?:interactive_sam_|sam_)?mask_decoder\.(conv_s[01]\.)", r"mask_decoder.\1"),
)

FAMILY = Family(
    name="sam3",
    title="SAM 3",
    marks=(SAM_2.marks[0], OWN),
    decoder_key=r"^(?P<prefix>(?:.*\.)?(?:interactive_)?)(?:sam_)?(?:prompt_encoder|mask_decoder)\.",
    renames=SAM_2.renames,
    encoders=("samx.models.encoders.sam3",),
    places=PLACES,
    left_out=SAM_2.left_out,
    model_types=("sam3_tracker", "sam3_tracker_video", "sam3_video"),
    configuration=SAM2,
    spec={**SAM_2.spec, "image_size": 1008, "patch_px": 14, "pixels": "half"},
    frame_step_px=14,
    variants=(Variant(INTERACTIVE, {"iou_sigmoid": False}),),
    features=SAM_2.features,
    resizes_floats=False,  # Meta's Sam3Processor and transformers resize bytes
    box_first=True,
    pads_boxes=True,
    predicts_batches=True,
    mask_limit=32.0,
    float_masks=True,
    automatic_iou=0.88,  # transformers': Meta's has no automatic mode
    automatic_stability=0.95,
)
