"""SAM 2.1 with one more output token, whose mask is added to each of SAM 2's: HQ-SAM 2.

Source: SysCV's sam-hq (sam-hq2): SAM2ImagePredictor, MaskDecoderHQ and the configuration of sam2.1_hq_hiera_large.
"""

from dataclasses import replace

from samx.models.families import sam2

FAMILY = replace(
    sam2.FAMILY,
    name="sam_hq2",
    title="HQ-SAM 2",
    publisher="SysCV",
    marks=(*sam2.FAMILY.marks, r"mask_decoder\.(?:hf_token|hf_mlp)\."),
    model_types=(),
    twin="",  # SAM 3 has no such token
    spec={**sam2.FAMILY.spec, "hq_token": True},
    reference="samx.models.high_quality:HighQualityDecoder",
    pointing="",
    remembers=False,
)
