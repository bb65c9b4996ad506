"""The names that decoder weights go by: Meta's SAM, Meta's SAM 2, Hugging Face, and what wraps them.

Everything is renamed to Meta's SAM 1 names, which are also ReferenceDecoder's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# A key of the decoder, with whatever a training framework put in front of it.
DECODER_KEY = re.compile(r"^(?P<prefix>(?:.*\.)?)(?:sam_)?(?:prompt_encoder|mask_decoder)\.")
ENCODER_KEY = re.compile(r"(?:^|\.)(?:image_encoder|vision_encoder)\.")

POSITION_KEY = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
POINT_TABLE_KEY = "prompt_encoder.point_embed.weight"  # Hugging Face's SAM 2: one row per label

# Left in place by DistributedDataParallel and torch.compile, anywhere in a name.
FRAMEWORK_PARTS = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")

# Applied in this order to names without prefix. None of them touches a Meta SAM 1 name.
RENAMES: tuple[tuple[str, str], ...] = (
    # Meta's SAM 2
    (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
    (r"(transformer\.layers\.\d+\.mlp)\.layers\.0\.", r"\1.lin1."),
    (r"(transformer\.layers\.\d+\.mlp)\.layers\.1\.", r"\1.lin2."),
    # Hugging Face's SamModel and Sam2Model
    (r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", POSITION_KEY),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^prompt_encoder\.point_embed\.(\d+)\.", r"prompt_encoder.point_embeddings.\1."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"\.layer_norm([1-4])\.", r".norm\1."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.o_proj\.", ".out_proj."),
    (r"(transformer\.layers\.\d+\.mlp)\.proj_in\.", r"\1.lin1."),
    (r"(transformer\.layers\.\d+\.mlp)\.proj_out\.", r"\1.lin2."),
)

# Hugging Face's heads: proj_in, layers.0, layers.1, ..., proj_out. Meta counts all of them as layers.
HEAD_KEY = re.compile(
    r"^(?P<head>mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head))\."
    r"(?P<part>proj_in|proj_out|layers\.(?P<index>\d+))\.(?P<leaf>weight|bias)$"
)

# Applied to the image encoder's features before they reach the decoder, so no part of it.
NOT_DECODED = ("mask_decoder.conv_s0.", "mask_decoder.conv_s1.")

# Any of these makes it a SAM 2 decoder.
SAM2_MARKS = re.compile(r"(?:^|\.)sam_mask_decoder\.|mask_decoder\.(?:obj_score_token|conv_s0)\.")
HUGGING_FACE_MARK = re.compile(r"mask_decoder\.upscale_conv1\.")


@dataclass(frozen=True)
class Variant:
    """Name a relative of SAM whose decoder differs, and the keys that give it away."""

    name: str
    mark: re.Pattern[str]
    fix: str = "Use a SAM 1 or SAM 2 checkpoint"


VARIANTS: tuple[Variant, ...] = (
    Variant("SAM-HQ", re.compile(r"mask_decoder\.(?:hf_token|hf_mlp|hq_token|hq_mask_mlp|compress_vit_)")),
    Variant(
        "SAM 3", re.compile(r"(?:^|\.)(?:tracker(?:_model)?\.(?:sam_)?mask_decoder|detector_model|tracker_neck)\.")
    ),
    Variant("SAM 3", re.compile(r"^(?:model\.)?vision_encoder\.backbone\.embeddings\.patch_embeddings\.")),
    Variant("EfficientSAM", re.compile(r"mask_decoder\.final_output_upscaling_layers\.")),
    Variant(
        "a decoder with unmerged LoRA or adapter weights",
        re.compile(r"mask_decoder\..*(?:lora_|adapter)", re.IGNORECASE),
        "Merge them into the decoder's weights and save it again",
    ),
)

# "model_type" of Hugging Face configurations whose decoder is SAM's or SAM 2's.
HUGGING_FACE_TYPES = ("sam", "sam2", "sam2_video", "edgetam", "edgetam_video")


def clean(key: str) -> str:
    """Take the names of framework wrappers out of a key."""
    return FRAMEWORK_PARTS.sub("", key)


def prefixes(keys: Iterable[str]) -> list[str]:
    """Find what stands in front of the decoders in a checkpoint; one entry per decoder."""
    found = (DECODER_KEY.match(key) for key in keys)
    return sorted({match["prefix"] for match in found if match})


def decoder_names(keys: Iterable[str], prefix: str) -> dict[str, str]:
    """Map the decoder's keys to Meta's SAM 1 names, those of POINT_TABLE_KEY and NOT_DECODED included."""
    inside = {key: key[len(prefix) :] for key in keys if key.startswith(prefix)}
    renamed = {key: _rename(name) for key, name in inside.items()}
    wanted = {key: name for key, name in renamed.items() if name.startswith(("prompt_encoder.", "mask_decoder."))}
    return _number_heads(wanted)


def _rename(name: str) -> str:
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _number_heads(names: Mapping[str, str]) -> dict[str, str]:
    heads = {match["head"] for name in names.values() if (match := HEAD_KEY.match(name)) and match["part"] == "proj_in"}
    hidden = {head: sum(f"{head}.layers.{i}.weight" in names.values() for i in range(len(names))) for head in heads}
    return {key: _number_layer(name, hidden) for key, name in names.items()}


def _number_layer(name: str, hidden: Mapping[str, int]) -> str:
    match = HEAD_KEY.match(name)
    if match is None or match["head"] not in hidden:
        return name
    head, part = match["head"], match["part"]
    ends = {"proj_in": 0, "proj_out": hidden[head] + 1}
    number = ends[part] if part in ends else int(match["index"]) + 1
    return f"{head}.layers.{number}.{match['leaf']}"
