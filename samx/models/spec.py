"""DecoderSpec: what a decoder is and which tensors cross its border. Data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, Literal, get_args

from samx.errors import ArtifactError

Family = Literal["sam1", "sam2"]
MaskChoice = Literal["multimask", "single", "all"]

# Fixed by the upstream architectures, visible in no weight's shape.
IMAGE_PATCH_PX = 16  # image pixels per cell of the embedding grid
UPSCALING = 4  # low-resolution mask pixels per cell of the embedding grid
HIGH_RES_CHANNELS = (32, 64)  # of high_res_features_0 and _1: width / 8 and width / 4
SCHEMA_VERSION = 1
MOST = 8192  # of anything counted in a spec; the largest released number is the MLP's 2048

LABELS: Mapping[str, int] = {
    "padding": -1,
    "background": 0,
    "foreground": 1,
    "box_top_left": 2,
    "box_bottom_right": 3,
}
# In a graph of fixed shapes: nothing is here, and nothing attends to it.
PADDED_POINT = -2


@dataclass(frozen=True)
class TensorSpec:
    """Describe one tensor at the decoder's border; a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    unit: str
    meaning: str
    dtype: str = "float32"


@dataclass(frozen=True)
class DecoderSpec:
    """Describe a mask decoder: its family, its sizes, and what an export of it takes and gives.

    Source: Meta's released SAM 1 and SAM 2/2.1 code and weights.
    """

    family: Family = "sam1"
    image_size: int = 1024
    width: int = 256
    depth: int = 2
    heads: int = 8
    mlp_width: int = 2048
    cross_attention_width: int = 128
    mask_tokens: int = 4
    iou_head_depth: int = 3
    iou_head_width: int = 256
    mask_prompt_channels: int = 16
    iou_sigmoid: bool = False
    high_res_features: bool = False
    object_score: bool = False
    object_score_head_depth: int = 3
    stability_fallback: bool = False
    stability_delta: float = 0.05
    stability_threshold: float = 0.98
    mask_threshold: float = 0.0
    masks: MaskChoice = "multimask"
    mask_input: bool = False

    @property
    def grid(self) -> int:
        """Cells per side of the image embedding."""
        return self.image_size // IMAGE_PATCH_PX

    @property
    def mask_size(self) -> int:
        """Pixels per side of the low-resolution masks."""
        return UPSCALING * self.grid

    @property
    def masks_out(self) -> int:
        """Masks per prompt that the export returns."""
        return {"multimask": self.mask_tokens - 1, "single": 1, "all": self.mask_tokens}[self.masks]

    @property
    def output_tokens(self) -> int:
        """Learned tokens in front of the prompt's: [object score,] IoU, masks."""
        return 1 + self.mask_tokens + int(self.object_score)

    @property
    def image_inputs(self) -> tuple[TensorSpec, ...]:
        """What the image encoder hands over, once per image."""
        grid, size = self.grid, self.mask_size
        inputs = (TensorSpec("image_embeddings", (1, self.width, grid, grid), "1", "image encoder output"),)
        if not self.high_res_features:
            return inputs
        fine, coarse = HIGH_RES_CHANNELS
        return (
            *inputs,
            TensorSpec("high_res_features_0", (1, fine, size, size), "1", "stride-4 features after conv_s0"),
            TensorSpec(
                "high_res_features_1", (1, coarse, size // 2, size // 2), "1", "stride-8 features after conv_s1"
            ),
        )

    @property
    def prompt_inputs(self) -> tuple[TensorSpec, ...]:
        """What the user's clicks, boxes and masks become."""
        inputs = (
            TensorSpec("point_coords", ("prompts", "points", 2), "px", f"(x, y) in the {self.image_size} px frame"),
            TensorSpec("point_labels", ("prompts", "points"), "1", f"label codes {dict(LABELS)}"),
        )
        if not self.mask_input:
            return inputs
        size = self.mask_size
        return (
            *inputs,
            TensorSpec("mask_input", ("prompts", 1, size, size), "logit", "previous low-resolution mask"),
            TensorSpec("has_mask_input", ("prompts",), "1", "1 where mask_input is used, 0 where it is not"),
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Every input, in the order of the exported graph."""
        return self.image_inputs + self.prompt_inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Every output, in the order of the exported graph."""
        masks, size = self.masks_out, self.mask_size
        outputs = (
            TensorSpec("low_res_masks", ("prompts", masks, size, size), "logit", "mask logits"),
            TensorSpec("iou_predictions", ("prompts", masks), "1", "predicted IoU of each mask"),
        )
        if not self.object_score:
            return outputs
        score = TensorSpec("object_score_logits", ("prompts", 1), "logit", "above 0: the object is in the picture")
        return (*outputs, score)

    def to_json(self) -> dict[str, Any]:
        """Give the fields as plain data."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DecoderSpec:
        """Read the fields back.

        Raises: ArtifactError on another schema, unknown fields or a value of the wrong type.
        """
        values = dict(data)
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ArtifactError(
                "decoder spec has another schema version",
                found=version,
                expected=SCHEMA_VERSION,
                fix="Use the samx version that wrote it, or export again.",
            )
        defaults = {field.name: field.default for field in fields(cls)}
        if set(values) != set(defaults):
            raise ArtifactError(
                "decoder spec has other fields",
                found=sorted(set(values) ^ set(defaults)) or "none",
                fix="Export again with this version of samx.",
            )
        for name, value in values.items():
            _check_field(name, value, defaults[name])
        return cls(**values)


def _check_field(name: str, value: object, default: object) -> None:
    """Refuse a value of another type, or one that no decoder has."""
    choices = {"family": get_args(Family), "masks": get_args(MaskChoice)}.get(name)
    expected = " or ".join(choices) if choices else type(default).__name__
    fits = type(value) is type(default) and (choices is None or value in choices)
    if isinstance(value, int) and not isinstance(value, bool):
        expected = f"1 to {MOST}"
        fits = fits and 1 <= value <= MOST
    if isinstance(value, float):
        fits = fits and isfinite(value)
    if name == "image_size" and fits:
        expected = f"a multiple of {IMAGE_PATCH_PX}"
        fits = int(str(value)) % IMAGE_PATCH_PX == 0
    if not fits:
        raise ArtifactError(
            f"decoder spec field '{name}' cannot be", found=repr(value), expected=expected, fix="Export again."
        )


def sam1_spec(**changes: Any) -> DecoderSpec:
    """Describe SAM 1's released decoder."""
    return DecoderSpec(**{"family": "sam1", **changes})


def sam2_spec(**changes: Any) -> DecoderSpec:
    """Describe SAM 2.1's released decoder."""
    sam2: dict[str, Any] = {
        "family": "sam2",
        "iou_sigmoid": True,
        "high_res_features": True,
        "object_score": True,
        "stability_fallback": True,
    }
    return DecoderSpec(**{**sam2, **changes})
