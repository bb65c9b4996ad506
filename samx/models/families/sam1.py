"""SAM 1, and what has its decoder: MobileSAM, TinySAM, EdgeSAM, RepViT-SAM, EfficientViT-SAM, MedSAM.

Source: Meta's segment_anything: SamPredictor, SamAutomaticMaskGenerator, PromptEncoder, MaskDecoder and Sam.
"""

from samx.models.families.base import HUGGING_FACE, IMAGENET, Family

FAMILY = Family(
    name="sam1",
    title="SAM",
    renames=HUGGING_FACE,
    model_types=("sam",),
    spec={"image_size": 1024, "mask_tokens": 4},
    keeps_aspect=True,
    pixels=IMAGENET,
    box_first=False,
    pads_boxes=False,
    automatic_iou=0.88,
    automatic_stability=0.95,
)
