"""SAM with one more output token, whose mask is added to SAM's: SAM-HQ, Light HQ-SAM.

Source: SysCV's sam-hq: SamPredictor, MaskDecoderHQ, model builders; transformers' SamHQModel: names, configuration.
"""

from samx.models.families.base import HUGGING_FACE, HUGGING_FACE_MARK, Family, Renames, Variant
from samx.models.families.configuration import SAM

# Hugging Face's names of the parts: a convolution, a norm, and after GELU another convolution.
PARTS = {"compress_vit": "compress_vit_feat", "encoder": "embedding_encoder", "mask": "embedding_maskfeature"}
PLACES = {"conv1": 0, "norm": 1, "conv2": 3}
RENAMES: Renames = (
    (r"^mask_decoder\.hq_token\.", "mask_decoder.hf_token."),
    (r"^mask_decoder\.hq_mask_mlp\.", "mask_decoder.hf_mlp."),
    *(
        (rf"^mask_decoder\.{theirs}_{name}\.", f"mask_decoder.{ours}.{place}.")
        for theirs, ours in PARTS.items()
        for name, place in PLACES.items()
    ),
    *HUGGING_FACE,
)

FAMILY = Family(
    name="sam_hq",
    title="SAM-HQ",
    publisher="SysCV",
    marks=(r"mask_decoder\.(?:hf_token|hf_mlp|hq_token|hq_mask_mlp|compress_vit_)",),
    renames=RENAMES,
    encoders=("samx.models.encoders.vit", "samx.models.encoders.tinyvit"),
    model_types=("sam_hq",),
    configuration={
        **SAM,
        "mask_decoder_config": {**SAM["mask_decoder_config"], "vit_dim": lambda spec: spec.interm_width},
    },
    spec={
        "image_size": 1024, "patch_px": 16, "frame": "pad", "pixels": "imagenet", "mask_tokens": 4, "hq_token": True,
        "interm_width": 768,
    },
    variants=(Variant(HUGGING_FACE_MARK.pattern, {"norm_eps": 1e-6}),),
    reference="samx.models.high_quality:HighQualityDecoder",
    features=(
        "the image encoder's output", "its image tokens after the first block that attends everywhere, channels last",
    ),
    best_alone=True,
)  # fmt: skip
