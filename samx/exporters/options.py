"""What the user asks of an export, as data that every exporter understands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

from samx.errors import UsageError
from samx.models.checkpoint import LoadedDecoder
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec

OPSETS = (18, 23)
# How the options that not every target has are written on the command line.
FLAGS: Mapping[str, str] = {
    "opset": "--opset", "split": "--split", "simplify": "--no-simplify", "islands": "--keep-float32",
    "turing": "--turing", "ios": "--ios", "contract": "--contract", "weights": "--weights",
    "exclude": "--exclude", "min_iou": "--min-iou",
}  # fmt: skip
DEFAULT_OPSET = 18  # every backend reads it; 23 adds Attention and Gelu as operators


@dataclass(frozen=True)
class ExportOptions:
    """Say how the decoder is to be written."""

    precision: str = "fp32"
    opset: int = DEFAULT_OPSET
    split: bool = False
    simplify: bool = True
    points: ShapeRange | None = None  # a prompt's, padding counted; the graph's form is chosen for the usual number
    prompts: ShapeRange | None = None  # a call's
    islands: tuple[str, ...] = ()  # groups of operations that stay float32 in fp16, beside those that always do
    turing: bool = False  # for GPUs of compute capability 7.5, and no others
    ios: int = 18  # the oldest that a package is for; below 18 it has one function
    contract: str = "samx"  # whose names and packages
    weights: str | None = None  # how a package stores them, if not as they are
    exclude: tuple[str, ...] = ()  # groups of products that stay in floating point in int8
    min_iou: float | None = None  # mean mask IoU that int8 must keep; None: what the gate asks for

    def refuse_foreign(self, target: str, takes: Collection[str]) -> None:
        """Refuse an option that was set and that the target has not.

        Raises: UsageError naming it.
        """
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in FLAGS and option.name not in takes and value != option.default:
                raise UsageError(
                    f"target '{target}' has no such option", found=FLAGS[option.name],
                    expected=", ".join(FLAGS[name] for name in takes) or "none of its own", fix="Leave it out.",
                )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """Give the options as plain data."""
        return {name: value.to_json() if isinstance(value, ShapeRange) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class ExportJob:
    """Bring together the weights, the spec of the export (its masks, its mask input), the options and the target."""

    loaded: LoadedDecoder
    spec: DecoderSpec
    options: ExportOptions
    target: str = "onnx"


@dataclass(frozen=True)
class Exported:
    """Name the files an exporter wrote, each with its role, and what the manifest shall remember."""

    files: Mapping[str, str]  # file name -> role
    options: Mapping[str, Any]
    tools: Mapping[str, str]
    most_points: int | None = None  # that a prompt may have, padding counted; None: any number
    notes: tuple[str, ...] = ()  # what people should read about the files
