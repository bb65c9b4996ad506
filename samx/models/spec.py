"""DecoderSpec: what a decoder is and which tensors go in and out. Data, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from samx.artifacts.strict_json import Document, between, refusal
from samx.errors import UsageError
from samx.models.families import find, known
from samx.models.families.base import Family

MaskChoice = Literal["multimask", "single", "all"]

FrameRule = Literal["pad", "stretch"]  # longest side to the frame's size, zeros beside it; or both sides to that size
# What the image encoder takes, of RGB from 0 to 1: less ImageNet's mean, over its deviation; -1 to 1; the picture's own
# least and largest value moved to 0 and 1; as it is.
PixelRule = Literal["imagenet", "half", "minmax", "unit"]
# Mean and standard deviation of each; minmax: the picture's own. Source: Meta's SAM, SAM 2 and SAM 3 code; MedSAM's.
PIXELS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "minmax": ((), ()),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
PIXELS_OF_OLD = "unit"  # where nothing is recorded: what 0.1.0 gave every encoder unasked, and its demo's takes
LEAST_RANGE = 1e-8  # of a picture's values, where it has but one


def check_choice(name: str, value: str | None, choices: Any) -> None:
    """Refuse a value that is none of a Literal's.

    Raises: UsageError.
    """
    if value is not None and value not in get_args(choices):
        raise UsageError(f"{name} is unknown", found=repr(value), expected=" or ".join(get_args(choices)))


# Fixed by the upstream architectures, visible in no weight's shape.
UPSCALING = 4  # low-resolution mask pixels per image token and side
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
LABEL_WORDS = ", ".join(f"{code} {name.replace('_', ' ')}" for name, code in LABELS.items())
# Label of what fills up a fixed number of points: nothing attends to it, other than to the padding token.
PADDED_POINT = -2


def _epsilon(value: float, where: str) -> None:
    if not 0 < value < 1:
        raise refusal(f"{where} is no epsilon", str(value), "more than 0 and less than 1")


def _known_family(value: str, where: str) -> None:
    if value not in known():
        raise refusal(f"{where} is unknown", value, " or ".join(known()))


Size = Annotated[int, between(1, MOST)]
Epsilon = Annotated[float, _epsilon]


@dataclass(frozen=True)
class TensorSpec:
    """Describe one tensor that goes into the decoder or comes out; a string in the shape is a dynamic axis."""

    name: str
    shape: tuple[int | str, ...]
    unit: str
    meaning: str
    dtype: str = "float32"


@dataclass(frozen=True)
class DecoderSpec(Document):
    """Describe a mask decoder: its family, its sizes, and what an export of it takes and gives.

    Source: Meta's released SAM 1 and SAM 2/2.1 code and weights.
    """

    HEADER = {"schema_version": SCHEMA_VERSION}

    family: Annotated[str, _known_family] = "sam1"
    image_size: Size = 1024
    patch_px: Size = 16  # image pixels per image token and side
    frame: FrameRule = "pad"
    pixels: PixelRule | None = None  # None: 0.1.0 did not record it
    width: Size = 256
    depth: Size = 2
    heads: Size = 8
    norm_eps: Epsilon = 1e-5  # of the two-way layers
    final_norm_eps: Epsilon = 1e-5
    mlp_width: Size = 2048
    cross_attention_width: Size = 128
    mask_tokens: Size = 4
    iou_head_depth: Size = 3
    iou_head_width: Size = 256
    mask_prompt_channels: Size = 16
    iou_sigmoid: bool = False
    high_res_features: bool = False
    hq_token: bool = False  # HQ-SAM's output token, whose mask is added to every other
    interm_width: Annotated[int, between(0, MOST)] = 0  # channels of earlier image tokens; 0: the decoder takes none
    object_score: bool = False
    object_score_head_depth: Size = 3
    stability_fallback: bool = False
    stability_delta: float = 0.05
    stability_threshold: float = 0.98
    mask_threshold: float = 0.0
    masks: MaskChoice = "multimask"
    mask_input: bool = False
    object_pointer: bool = False  # what a video's loop keeps of an object, for each mask

    def __post_init__(self) -> None:
        if self.mask_input and not self.rules.takes_masks:
            raise UsageError(
                f"{self.rules.title} takes no mask prompts", found="mask input", expected="points and boxes",
                fix="Leave --mask-input out.",
            )  # fmt: skip

    @classmethod
    def from_json(cls, value: Any, where: str) -> DecoderSpec:
        """Read plain data; where 0.1.0 wrote it, the fields that it did not have say what it did.

        Raises: ArtifactError for anything that to_json() would not have returned.
        """
        is_old = isinstance(value, dict) and not any(name in value for name in ADDED)
        return super().from_json({**ADDED, **_frame_of(value), **value} if is_old else value, where)

    def check(self, where: str) -> None:
        """Refuse a frame that is no whole number of image tokens, and pointers of a decoder that has none."""
        if self.image_size % self.patch_px:
            found, expected = str(self.image_size), f"a multiple of patch_px, {self.patch_px}"
            raise refusal(f"{where}: image_size is no image size", found, expected)
        if self.object_pointer and not (self.object_score and self.rules.pointing):
            raise refusal(f"{where}: object_pointer is of another decoder", f"family {self.family}")

    @property
    def rules(self) -> Family:
        """Return the family: what its checkpoints, reference and predictor are like."""
        return find(self.family)

    @property
    def grid(self) -> int:
        """Return the number of image tokens per side of the embedding."""
        return self.image_size // self.patch_px

    @property
    def keeps_aspect(self) -> bool:
        """Tell whether a picture keeps its shape in the frame, with zeros beside it."""
        return self.frame == "pad"

    @property
    def picture_type(self) -> str:
        """Return the type in which an image encoder takes the levels 0 to 255: bytes, or numbers where upstream resizes
        numbers, because rounding those to bytes moves masks.
        """
        return "float32" if self.rules.resizes_floats else "uint8"

    @property
    def mask_px(self) -> float:
        """Return the number of the frame's pixels per low-resolution mask pixel and side."""
        return self.patch_px / UPSCALING

    @property
    def mask_size(self) -> int:
        """Return the number of pixels per side of the low-resolution masks."""
        return UPSCALING * self.grid

    @property
    def masks_out(self) -> int:
        """Return the number of masks per prompt that the export returns."""
        multimask = 1 if self.rules.best_alone else self.mask_tokens - 1
        return {"multimask": multimask, "single": 1, "all": self.mask_tokens}[self.masks]

    @property
    def settles_single(self) -> bool:
        """Tell whether an unstable mask 0 gives way in the decoder: HQ-SAM's mask once added, nobody can test it."""
        return self.stability_fallback and (self.masks == "single" or (self.masks == "all" and self.hq_token))

    @property
    def output_tokens(self) -> int:
        """Count the learned tokens in front of the prompt's: [object score,] IoU, masks [, HQ-SAM's]."""
        return 1 + self.mask_tokens + int(self.object_score) + int(self.hq_token)

    @property
    def image_inputs(self) -> tuple[TensorSpec, ...]:
        """List what the image encoder hands over, once per image."""
        grid, size = self.grid, self.mask_size
        shapes = {"image_embeddings": (1, self.width, grid, grid)}
        if self.high_res_features:
            fine, coarse = HIGH_RES_CHANNELS
            shapes["high_res_features_0"] = (1, fine, size, size)
            shapes["high_res_features_1"] = (1, coarse, size // 2, size // 2)
        if self.interm_width:
            shapes["interm_embeddings"] = (1, grid, grid, self.interm_width)
        said = self.rules.features[: len(shapes)]  # some decoders have no high-resolution features
        meanings = zip(shapes.items(), said, strict=True)
        return tuple(TensorSpec(name, shape, "1", meaning) for (name, shape), meaning in meanings)

    @property
    def embedding_contract(self) -> str:
        """Return what a picture's embedding has to hold, in words."""
        return "; ".join(f"{tensor.name} {tensor.shape}, {tensor.meaning}" for tensor in self.image_inputs)

    @property
    def prompt_inputs(self) -> tuple[TensorSpec, ...]:
        """List what the user's clicks, boxes and masks become."""
        inputs = (
            TensorSpec("point_coords", ("prompts", "points", 2), "px", f"(x, y) in the {self.image_size} px frame"),
            TensorSpec("point_labels", ("prompts", "points"), "1", LABEL_WORDS),
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
        """List every input, in the order of the exported graph."""
        return self.image_inputs + self.prompt_inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """List every output, in the order of the exported graph."""
        masks, size = self.masks_out, self.mask_size
        outputs = (
            TensorSpec("low_res_masks", ("prompts", masks, size, size), "logit", "mask logits"),
            TensorSpec("iou_predictions", ("prompts", masks), "1", "predicted IoU of each mask"),
        )
        if not self.object_score:
            return outputs
        score = TensorSpec("object_score_logits", ("prompts", 1), "logit", "above 0: the object is in the picture")
        if not self.object_pointer:
            return (*outputs, score)
        shape = ("prompts", masks, self.width)
        pointers = TensorSpec("object_pointers", shape, "1", "one a mask; a learned one where the object is not there")
        return (*outputs, score, pointers)


# What 0.1.0 did where its manifests say nothing; the frame's rule was the family's.
ADDED: Mapping[str, Any] = {
    "patch_px": 16, "frame": "pad", "pixels": None, "norm_eps": 1e-5, "final_norm_eps": 1e-5, "hq_token": False,
    "interm_width": 0, "object_pointer": False,
}  # fmt: skip


def _frame_of(value: Mapping[str, Any]) -> dict[str, Any]:
    family = next((family for name, family in known().items() if name == value.get("family")), None)
    return {"frame": family.spec["frame"]} if family is not None and "frame" in family.spec else {}


def family_spec(family: str, **changes: Any) -> DecoderSpec:
    """Describe the released decoder of a family.

    Raises: UsageError for a family that is not known.
    """
    return DecoderSpec(**{"family": family, **find(family).spec, **changes})


def sam1_spec(**changes: Any) -> DecoderSpec:
    """Describe SAM 1's released decoder."""
    return family_spec("sam1", **changes)


def sam2_spec(**changes: Any) -> DecoderSpec:
    """Describe SAM 2.1's released decoder."""
    return family_spec("sam2", **changes)
