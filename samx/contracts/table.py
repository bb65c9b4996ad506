"""The contracts: what each program feeds its decoder, what it reads from it, and which decoders can serve it. Data.

A contract is all that is known of a program here; no other module names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from samx.errors import UsageError
from samx.models.spec import DecoderSpec, MaskChoice

# Who appends SAM's padding token, label -1: the program, the graph, or the graph where no box is among the points.
Padding = Literal["program", "graph", "graph_without_box"]
# AnyLabeling feeds SAM 2 by position too, but takes a decoder for SAM 2 only by an input called high_res_feats_0.
# How programs read outputs: all of them, unpacked by place; the first ones by place; or by name.
Reading = Literal["all", "first", "named"]
# How masks reach the picture's size: through the frame, whose empty part is cut off (SAM 1), or at once (SAM 2).
Resizing = Literal["through_frame", "direct"]

FRAME_PX = 1024  # that these programs resize a picture to, whatever the file says; but for any_frame
# Of an artifact's files for other programs: the decoder, the image encoder, what programs read beside them.
CLIENT_ROLE, CLIENT_ENCODER_ROLE, CLIENT_FILE_ROLE = "client", "client_encoder", "client_file"
CLIENT_FOLDER = "client"


@dataclass(frozen=True)
class Port:
    """Name one tensor of a program's graph, and what it holds.

    `holds` is the name of the decoder's own tensor, or: boxes (corners apart from points), picture_size (H, W), unread,
    picture_masks (logits at picture size), picture_crop (one mask, cut out), or left, top, right, bottom of it.
    Shapes: `axes`, numbers or names: prompts, points, masks, flags are dynamic; size is a mask's side. None: as the
    decoder's own image input.
    """

    name: str
    holds: str
    axes: tuple[int | str, ...] | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class EncoderForm:
    """Describe the image encoder's graph that some programs load: one input, which they look up or call by this name.

    `levels`: (H, W, 3), RGB from 0 to 255, no larger than the frame; else (1, 3, S, S), normalised with ImageNet's mean
    and deviation, zeros where no picture is.
    """

    input: str
    levels: bool
    outputs: tuple[Port, ...]
    file: str = "encoder.onnx"


@dataclass(frozen=True)
class Contract:
    """Describe the decoder graph that some programs load, in the order of its inputs and outputs."""

    name: str
    programs: tuple[str, ...]  # that load it
    families: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    masks: MaskChoice  # that the decoder under it computes
    padding: Padding
    encoder: EncoderForm
    by_position: tuple[str, ...] = ()  # programs that never look at the names of inputs
    reads: Reading = "all"
    picks: bool = False  # one of all masks: token 0 for three tokens and more, else the best of the others
    clamps: bool = False  # low-resolution logits, at the family's limit
    resizing: Resizing | None = None
    objects: bool = False  # the prompts are objects of one picture: an axis in front
    any_frame: bool = False  # the programs read the frame's size of a file beside the graph
    file: str = "decoder.onnx"

    def has(self, holds: str) -> bool:
        """Tell whether an input or output holds this."""
        return any(port.holds == holds for port in (*self.inputs, *self.outputs))

    def native(self, spec: DecoderSpec) -> DecoderSpec:
        """Return the decoder that the contract's graph is written around, where these masks are asked for.

        Raises: UsageError where the contract and the decoder, or its masks, do not go together.
        """
        what = f"contract '{self.name}' does not fit"
        if spec.family not in self.families:
            others = [one.name for one in CONTRACTS.values() if spec.family in one.families]
            fix = f"Of {spec.rules.title} there are: {', '.join(others)}." if others else "Leave --contract out."
            raise UsageError(what, found=spec.rules.title, expected=" or ".join(self.families), fix=fix)
        if spec.image_size != FRAME_PX and not self.any_frame:
            found, expected = f"a frame of {spec.image_size} px", f"{FRAME_PX} px, which these programs resize to"
            raise UsageError(what, found=found, expected=expected, fix="Leave --contract out.")
        own_frame = spec.rules.spec["frame"]
        if spec.frame != own_frame:
            found, expected = f"frame '{spec.frame}'", f"'{own_frame}', as these programs fill it"
            raise UsageError(what, found=found, expected=expected, fix="Leave --contract out.")
        if spec.masks not in ("multimask", self.masks):
            expected = "one mask, as it has" if self.picks else f"{self.masks} masks, as it has"
            raise UsageError(what, found=f"masks '{spec.masks}'", expected=expected, fix="Leave the masks out.")
        if spec.mask_input and not self.has("mask_input"):
            raise UsageError(
                what, found="--mask-input", expected="no previous mask: it takes none", fix="Leave it out."
            )
        return replace(spec, masks=self.masks, mask_input=self.has("mask_input"))


def find(name: str) -> Contract:
    """Look a contract up.

    Raises: UsageError naming those that there are.
    """
    if name not in CONTRACTS:
        raise UsageError("unknown contract", found=repr(name), expected=" or ".join(CONTRACTS))
    return CONTRACTS[name]


MASK_AXES = ("masks", 1, "size", "size")
POINTS = (
    Port("point_coords", "point_coords", ("prompts", "points", 2)),
    Port("point_labels", "point_labels", ("prompts", "points")),
)
PREVIOUS = (Port("mask_input", "mask_input", MASK_AXES), Port("has_mask_input", "has_mask_input", ("flags",)))
IOU = Port("iou_predictions", "iou_predictions", ("prompts", "count"))
LOW_RES_AXES = ("prompts", "count", "size", "size")
LOW_RES = Port("low_res_masks", "low_res_masks", LOW_RES_AXES)
PICTURE_MASKS = Port("masks", "picture_masks", ("prompts", "count", "height", "width"))
BOUNDS = ("left", "top", "right", "bottom")  # of a mask that is cut out, its last pixels included
OBJECT_POINTS = (
    Port("input_points", "point_coords", (1, "objects", "points", 2)),
    Port("input_labels", "point_labels", (1, "label_objects", "points"), "int64"),
)
OBJECT_OUTPUTS = (
    Port("iou_scores", "iou_predictions", (1, "prompts", "count")),
    Port("pred_masks", "low_res_masks", (1, "prompts", "count", "size", "size")),
)
HF_FILE, HF_ENCODER_FILE = "onnx/prompt_encoder_mask_decoder.onnx", "onnx/vision_encoder.onnx"
LEVELS = (
    Port("image_embeddings.0", "high_res_features_0"), Port("image_embeddings.1", "high_res_features_1"),
    Port("image_embeddings.2", "image_embeddings"),
)  # fmt: skip

# Sources: segment_anything/utils/onnx.py; samexporter 0.5.0; osam 0.8.1; AnyLabeling 0.4.43; X-AnyLabeling 4.2.1;
# ryouchinsa/sam-cpp-macos: export_onnx.py, sam.cpp; cvat-ui/plugins/sam; transformers.js: modeling_sam.js,
# modeling_sam2.js; transformers: SamModel, Sam2Model; efficientvit: applications/efficientvit_sam; sam2-onnx 0.3.12:
# session.py, predictor.py, metadata.py.
EMBEDDINGS = (Port("image_embeddings", "image_embeddings"),)
POSITIONS = Port("image_positional_embeddings", "unread", (1, "channels", "grid", "grid"))
SAM2_ONNX_FEATURES = (
    Port("image_embed", "image_embeddings"), Port("high_res_feat_0", "high_res_features_0"),
    Port("high_res_feat_1", "high_res_features_1"),
)  # fmt: skip
META = Contract(
    "meta", programs=("CVAT's older plugin", "usls", "samexporter", "demos of SAM in browsers"), families=("sam1",),
    inputs=(
        Port("image_embeddings", "image_embeddings"), *POINTS, *PREVIOUS, Port("orig_im_size", "picture_size", (2,)),
    ),
    outputs=(PICTURE_MASKS, IOU, LOW_RES), masks="all", padding="program", resizing="through_frame",
    encoder=EncoderForm("input_image", levels=True, outputs=EMBEDDINGS),
)  # fmt: skip
CONTRACTS: Mapping[str, Contract] = {
    contract.name: contract
    for contract in (
        META,
        replace(
            META, name="meta-single", picks=True,
            programs=("AnyLabeling", "X-AnyLabeling", "sam-cpp-macos", "samexporter"),
        ),
        replace(
            META, name="osam", picks=True, programs=("osam",), encoder=EncoderForm("x", False, EMBEDDINGS),
        ),
        Contract(
            "cvat", programs=("CVAT",), families=("sam1",), inputs=META.inputs,
            outputs=(
                Port("xtl", "left", (1,), "int64"), Port("ytl", "top", (1,), "int64"),
                Port("xbr", "right", (1,), "int64"), Port("ybr", "bottom", (1,), "int64"),
                Port("masks", "picture_crop", (1, 1, "rows", "columns"), "uint8"), LOW_RES,
            ),
            masks="all", padding="graph_without_box", picks=True, resizing="through_frame", reads="named",
            encoder=META.encoder,
        ),
        Contract(
            "samexporter-sam2", programs=("samexporter", "AnyLabeling", "X-AnyLabeling"), families=("sam2",),
            inputs=(
                Port("image_embed", "image_embeddings"), Port("high_res_feats_0", "high_res_features_0"),
                Port("high_res_feats_1", "high_res_features_1"), *POINTS, *PREVIOUS,
            ),
            outputs=(Port("masks", "low_res_masks", LOW_RES_AXES), IOU), masks="multimask", padding="graph",
            by_position=("samexporter", "X-AnyLabeling"), clamps=True, reads="first",
            encoder=EncoderForm(
                "image", levels=False,
                outputs=(
                    Port("high_res_feats_0", "high_res_features_0"), Port("high_res_feats_1", "high_res_features_1"),
                    Port("image_embed", "image_embeddings"),
                ),
            ),
        ),
        Contract(
            "rectlabel", programs=("RectLabel", "osam", "usls"), families=("sam2",),
            inputs=(
                Port("image_embeddings", "image_embeddings"), Port("high_res_features1", "high_res_features_0"),
                Port("high_res_features2", "high_res_features_1"), *POINTS, *PREVIOUS,
                Port("orig_im_size", "picture_size", (2,), "int64"),
            ),
            outputs=(PICTURE_MASKS, IOU, LOW_RES), masks="all", padding="graph", by_position=("usls",), clamps=True,
            resizing="direct",
            encoder=EncoderForm(
                "input", levels=False,
                outputs=(
                    *EMBEDDINGS, Port("high_res_features1", "high_res_features_0"),
                    Port("high_res_features2", "high_res_features_1"),
                ),
            ),
        ),
        Contract(
            "sam2-onnx", programs=("sam2-onnx",), families=("sam2",),
            inputs=(
                *SAM2_ONNX_FEATURES, POINTS[0], replace(POINTS[1], dtype="int64"), PREVIOUS[0],
                replace(PREVIOUS[1], axes=("flags", 1)),
            ),
            outputs=(LOW_RES, IOU), masks="multimask", padding="graph", reads="first", any_frame=True,
            encoder=EncoderForm("image", False, SAM2_ONNX_FEATURES),
        ),
        Contract(
            "hf-sam1", programs=("transformers.js",), families=("sam1",),
            inputs=(*OBJECT_POINTS, *EMBEDDINGS, POSITIONS),
            outputs=OBJECT_OUTPUTS, masks="multimask", padding="graph", objects=True, reads="named",
            file=HF_FILE, encoder=EncoderForm("pixel_values", False, (*EMBEDDINGS, POSITIONS), HF_ENCODER_FILE),
        ),
        Contract(
            "hf-sam2", programs=("transformers.js",), families=("sam2",),
            inputs=(
                *OBJECT_POINTS, Port("input_boxes", "boxes", (1, "boxes", 4)),
                *LEVELS,
            ),
            outputs=(*OBJECT_OUTPUTS, Port("object_score_logits", "object_score_logits", (1, "prompts", 1))),
            masks="multimask", padding="graph", objects=True, reads="named",
            file=HF_FILE, encoder=EncoderForm("pixel_values", False, LEVELS, HF_ENCODER_FILE),
        ),
        Contract(
            "evit", programs=("EfficientViT-SAM's demos",), families=("sam1",),
            inputs=(Port("image_embeddings", "image_embeddings"), *POINTS),
            outputs=(Port("masks", "low_res_masks", LOW_RES_AXES), IOU), masks="all", padding="program",
            encoder=EncoderForm("input_image", False, EMBEDDINGS),
        ),
    )
}  # fmt: skip
