"""A family that samx does not have: SAM 1's mathematics under names, and with a predictor, of its own."""

from samx.models.families.base import Family

FAMILY = Family(
    name="toy",
    title="Toy",
    marks=(r"(?:^|\.)toy_decoder\.",),
    decoder_key=r"^(?P<prefix>(?:.*\.)?)toy_(?:prompts|decoder)\.",
    renames=(
        (r"^toy_prompts\.", "prompt_encoder."),
        (r"^toy_decoder\.", "mask_decoder."),
        (r"^mask_decoder\.answers\.", "mask_decoder.mask_tokens."),
    ),
    spec={"image_size": 256, "frame": "pad", "pixels": "unit", "iou_sigmoid": True},
    reference="toy_reference:ToyDecoder",
    box_first=True,
    pads_boxes=False,
)
