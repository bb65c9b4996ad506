"""SAM 1, and what has its decoder: MobileSAM, TinySAM, EdgeSAM, RepViT-SAM, EfficientViT-SAM, MedSAM, LiteMedSAM.

Source: Meta's segment_anything: SamPredictor, SamAutomaticMaskGenerator, PromptEncoder, MaskDecoder and Sam;
the variants': their own predictors and model builders.
"""

from samx.models.families.base import HUGGING_FACE, HUGGING_FACE_MARK, Family, Variant

FAMILY = Family(
    name="sam1",
    title="SAM",
    renames=HUGGING_FACE,
    encoders=(
        "samx.models.encoders.vit",
        "samx.models.encoders.tinyvit",
        "samx.models.encoders.repvit",
        "samx.models.encoders.efficientvit",
    ),
    model_types=("sam",),
    spec={"image_size": 1024, "patch_px": 16, "frame": "pad", "pixels": "imagenet", "mask_tokens": 4},
    variants=(
        # SamModel's two-way layers have another epsilon than Meta's, EfficientViT-SAM's and the norm after them too.
        Variant(HUGGING_FACE_MARK.pattern, {"norm_eps": 1e-6}),
        Variant(r"image_encoder\.backbone\.stages\.0\.op_list\.", {"norm_eps": 1e-6, "final_norm_eps": 1e-6}),
        # SAM-Med2D's adapters, in the encoder alone.
        Variant(r"image_encoder\.blocks\.\d+\.Adapter\.", {"frame": "stretch", "pixels": "imagenet"}),
        # LiteMedSAM's TinyViT: the others have kernels of 3 x 3 and stride 2 here.
        Variant(
            r"image_encoder\.patch_embed\.seq\.0\.c\.weight$",
            {"image_size": 256, "patch_px": 4, "frame": "pad", "pixels": "minmax"},
            shape=(1, 1),
        ),
    ),
    box_first=False,
    pads_boxes=False,
    automatic_iou=0.88,
    automatic_stability=0.95,
)
