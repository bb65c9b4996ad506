"""What the user asks of an export, as data that every exporter understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from samx.decoders.checkpoint import LoadedDecoder
from samx.decoders.spec import DecoderSpec
from samx.spans import Span

OPSETS = (18, 23)
DEFAULT_OPSET = 18  # every backend reads it; 23 adds Attention and Gelu as operators


@dataclass(frozen=True)
class ExportOptions:
    """Say how the decoder is to be written."""

    precision: str = "fp32"
    opset: int = DEFAULT_OPSET
    split: bool = False
    simplify: bool = True
    points: Span | None = None  # a prompt's, padding counted; the graph's form is chosen for the usual number
    prompts: Span | None = None  # a call's
    islands: tuple[str, ...] = ()  # groups of operations that stay float32 in fp16, beside those that always do
    turing: bool = False  # TensorRT for RTX: for GPUs of compute capability 7.5, and no others

    def to_json(self) -> dict[str, Any]:
        """Give the options as plain data."""
        return {name: value.to_json() if isinstance(value, Span) else value for name, value in vars(self).items()}


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
