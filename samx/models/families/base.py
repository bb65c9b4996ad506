"""What a model family is: how its checkpoints are named, what its decoder has, what its predictor does. No torch.

Everything is renamed to Meta's SAM 1 names, which are also ReferenceDecoder's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, NamedTuple

from samx.errors import PromptError
from samx.models.families.configuration import SAM, Sections

Renames = tuple[tuple[str, str], ...]

# Left in place by DistributedDataParallel and torch.compile, anywhere in a name.
FRAMEWORK_PARTS = re.compile(r"(?<![^.])(?:_orig_mod|module)\.")
ENCODER_KEY = re.compile(r"(?:^|\.)(?:image_encoder|vision_encoder)\.")
HUGGING_FACE_MARK = re.compile(r"mask_decoder\.upscale_conv1\.")
# Hugging Face's SamModel and Sam2Model. Nothing here touches a name of Meta's SAM 1.
HUGGING_FACE: Renames = (
    (
        r"^(?:shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
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
# Hugging Face's SAM 2 has a row for each label.
TABLES = {"prompt_encoder.point_embed.weight": "prompt_encoder.point_embeddings.{}.weight"}
# Hugging Face's heads: proj_in, layers.0, layers.1, ..., proj_out. Meta counts all of them as layers.
HEAD_KEY = re.compile(
    r"^(?P<head>mask_decoder\.(?:output_hypernetworks_mlps\.\d+|hf_mlp|iou_prediction_head|pred_obj_score_head)|"
    r"object_pointer\.proj)\."
    r"(?P<part>proj_in|proj_out|layers\.(?P<index>\d+))\.(?P<leaf>weight|bias)$"
)


class Variant(NamedTuple):
    """Tell a family's checkpoints that differ in fields of DecoderSpec, by a key and the end of its weight's shape."""

    mark: str
    spec: Mapping[str, Any]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Family:
    """Describe a family of models. Units: px of the picture's frame; logits."""

    name: str  # in specs and on the command line
    title: str  # as people call it
    publisher: str = "Meta"

    # Checkpoints. All marks are found among a checkpoint's keys; the family with the most marks has it.
    marks: tuple[str, ...] = ()
    decoder_key: str = r"^(?P<prefix>(?:.*\.)?)(?:sam_)?(?:prompt_encoder|mask_decoder)\."
    renames: Renames = HUGGING_FACE  # applied in this order to names without the prefix
    tables: Mapping[str, str] = field(default_factory=lambda: TABLES)  # weights whose rows are weights of their own
    left_out: tuple[
        str, ...
    ] = ()  # of the decoder in the checkpoint, but applied to the encoder's features: all or none
    model_types: tuple[str, ...] = ()  # of Hugging Face configurations
    configuration: Sections = field(default_factory=lambda: SAM)  # what their fields must say
    # A key without which a decoder may be that of another model, whose weights have the same names and shapes
    evidence: str = ""
    twin: str = ""  # the name of that model's family
    frame_step_px: int = 1  # what a frame of this one is a multiple of, and of the other is not

    # Modules that define its image encoders, which import torch; and where one lies in a checkpoint, if not as SAM's
    encoders: tuple[str, ...] = ()
    places: Renames = ()

    # The decoder and its pictures: fields of DecoderSpec, where a checkpoint does not tell; and what computes it.
    spec: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    reference: str = "samx.models.reference:ReferenceDecoder"
    pointing: str = ""  # the same with object pointers, for a video's loop; none: samx knows none of this family
    remembers: bool = False  # it has samx.models.memory_encoder's memory encoder

    # Pictures. What each image input of the decoder is, of the encoder's outputs
    features: tuple[str, ...] = (
        "the image encoder's output", "its features of stride 4", "its features of stride 8",
    )  # fmt: skip
    resizes_floats: bool = False  # a picture is resized as numbers, or rounded to 8 bits
    antialiases: bool = True  # what gets smaller is resized with a wider filter

    # Prompts: pixels of the frame, to whose centres an offset is added inside the decoder
    point_offset_px: float = 0.5
    box_first: bool = False  # box corners before the points, or after them
    pads_boxes: bool = False  # a padding token after a box too, or only after points without a box
    predicts_batches: bool = False  # predict() takes several prompts at once
    prompt_tokens: int = 0  # that every prompt is filled up to, and none has more; 0: any number
    takes_masks: bool = True  # a previous mask is a prompt too

    # Masks
    map_norm: bool = False  # the first upscaling is normalised over its whole map, or pixel by pixel
    cubic_masks: bool = False  # logits are resized to a picture with a bicubic filter, or a bilinear one
    best_alone: bool = False  # multimask output is the mask of the highest predicted IoU, not all of them
    mask_limit: float = float("inf")  # where the predictor cuts low-resolution logits off before it hands them back
    float_masks: bool = False  # predict() returns masks as float32, not as bool
    # Of the automatic mode: predicted IoU, stability and its logits up and down, IoU of boxes that are the same, points
    automatic_iou: float = 0.88
    automatic_stability: float = 0.95
    automatic_offset: float = 1.0
    automatic_box_iou: float = 0.7
    automatic_points_per_side: int = 32
    automatic_refines: bool = False  # it can feed masks back, return one mask a click, and take another threshold
    automatic_mends_logits: bool = False  # small holes and islands go before masks are resized, or at the end

    def rows(self, points: int, has_box: bool) -> list[int]:
        """Return the order of a prompt's tokens as the predictor has it.

        They are numbered points first, box corners next; -1 is the padding token. A mask alone has none.
        Raises: PromptError for more than the decoder takes.
        """
        clicks, corners = list(range(points)), [points, points + 1] if has_box else []
        ordered = corners + clicks if self.box_first else clicks + corners
        if self.prompt_tokens:
            return self._filled(ordered)
        is_padded = self.pads_boxes if has_box else points > 0
        return [*ordered, -1] if is_padded else ordered

    def padding_words(self) -> str:
        """Say which padding tokens a prompt has."""
        if self.prompt_tokens:
            return f"points (0, 0) with label -1 after the points and the box, up to {self.prompt_tokens} tokens"
        other = " or the box" if self.pads_boxes else "; none beside a box"
        return f"one point (0, 0) with label -1 after the points{other}"

    def _filled(self, ordered: list[int]) -> list[int]:
        spare = self.prompt_tokens - len(ordered)
        if spare < 0:
            raise PromptError(
                f"{self.title} takes no prompt of so many points", found=f"{len(ordered)}, a box counted as two",
                expected=f"at most {self.prompt_tokens}", fix="Leave some out.",
            )  # fmt: skip
        return [*ordered, *[-1] * spare]

    def reference_class(self, object_pointer: bool = False) -> Any:
        """Import the class of the reference decoder, or of the one that returns object pointers too."""
        module, _, name = (self.pointing if object_pointer else self.reference).partition(":")
        return getattr(import_module(module), name)

    def has(self, keys: Iterable[str]) -> bool:
        """Tell whether all marks are found among the keys."""
        keys = list(keys)
        return all(any(re.search(mark, key) for key in keys) for mark in self.marks)

    def prefixes(self, keys: Iterable[str]) -> list[str]:
        """Find what stands in front of the decoders in a checkpoint; one entry per decoder.

        A mask decoder without a prompt encoder, such as a detector's, counts only where there is no other.
        """
        keys = list(keys)
        found = sorted({match["prefix"] for key in keys if (match := re.match(self.decoder_key, key))})
        return [prefix for prefix in found if self._is_whole(keys, prefix)] or found

    def _is_whole(self, keys: Iterable[str], prefix: str) -> bool:
        names = self.decoder_names(keys, prefix).values()
        return {name.partition(".")[0] for name in names} == {"prompt_encoder", "mask_decoder"}

    def without_others(self, keys: Iterable[str], prefix: str | None) -> list[str]:
        """Leave out what belongs to decoders other than the one with this prefix (None: the only whole one)."""
        keys = list(keys)
        found = self.prefixes(keys)
        chosen = found if prefix is None else [prefix]
        others = tuple(other for other in found if other not in chosen and other)
        parts = {key: match["prefix"] for key in keys if (match := re.match(self.decoder_key, key))}
        return [key for key in keys if not key.startswith(others) and (key not in parts or parts[key] in chosen)]

    def place(self, key: str) -> str:
        """Return a checkpoint's key as if its image encoder lay where SAM's does."""
        return next((re.sub(where, place, key) for where, place in self.places if re.search(where, key)), key)

    def decoder_names(self, keys: Iterable[str], prefix: str) -> dict[str, str]:
        """Map the decoder's keys to the reference's names; those of `tables` and `left_out` are among them."""
        return self.names_of(("prompt_encoder.", "mask_decoder."), keys, prefix)

    def names_of(self, parts: tuple[str, ...], keys: Iterable[str], prefix: str) -> dict[str, str]:
        """Map the keys of modules, which begin as `parts` do, to the reference's names."""
        renamed = {key: self._rename(key[len(prefix) :]) for key in keys if key.startswith(prefix)}
        return _number_heads({key: name for key, name in renamed.items() if name.startswith(parts)})

    def _rename(self, name: str) -> str:
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


@dataclass(frozen=True)
class Relative:
    """Name a relative of SAM whose decoder differs, and the keys that give it away."""

    title: str
    mark: str
    fix: str = "Use a checkpoint of SAM, SAM 2 or SAM 3"
    family: str = ""  # of this name, it may have such keys


MERGE = "Merge them into the decoder's weights (peft: merge_and_unload()) and save the whole model again"
# Refused, unless a family of that title is known; the first that is found gives the reason.
RELATIVES: tuple[Relative, ...] = (
    Relative(
        "SAM 3's detector without its tracker", r"(?:^|\.)(?:detector_model|vision_backbone|detector\.backbone)\.",
        "Use the whole checkpoint, which has the tracker too", family="sam3",
    ),
    Relative("weights of peft beside the originals", r"\.(?:modules_to_save|original_module)\.", MERGE),
    Relative(
        "a decoder with unmerged adapter weights", r"(?i)(?:mask_decoder|prompt_encoder)\..*(?:lora_|adapter)",
        MERGE,
    ),
)  # fmt: skip


def clean(key: str) -> str:
    """Take the names of framework wrappers out of a key."""
    return FRAMEWORK_PARTS.sub("", key)


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
