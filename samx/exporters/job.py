"""What the user asks of an export, as data that every exporter understands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from samx.decoders.checkpoint import LoadedDecoder
from samx.decoders.spec import DecoderSpec

OPSETS = (18, 23)
DEFAULT_OPSET = 18  # every backend reads it; 23 adds Attention and Gelu as operators
DEFAULT_PROMPTS = 1  # prompts in a usual call: a click
DEFAULT_POINTS = 8  # largest point count that the graph's form is chosen for, padding counted


@dataclass(frozen=True)
class ExportOptions:
    """Say how the decoder is to be written."""

    precision: str = "fp32"
    opset: int = DEFAULT_OPSET
    split: bool = False
    simplify: bool = True
    points: int = DEFAULT_POINTS
    prompts: int = DEFAULT_PROMPTS

    def to_json(self) -> dict[str, Any]:
        """Give the options as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class ExportJob:
    """Bring together the weights, the spec of the export (its masks, its mask input) and the options."""

    loaded: LoadedDecoder
    spec: DecoderSpec
    options: ExportOptions


@dataclass(frozen=True)
class Exported:
    """Name the files an exporter wrote, each with its role, and what the manifest shall remember."""

    files: Mapping[str, str]  # file name -> role
    options: Mapping[str, Any]
    tools: Mapping[str, str]
