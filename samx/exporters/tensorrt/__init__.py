"""Write graphs for TensorRT and TensorRT for RTX, and build engines from them. Here: what can be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from samx.exporters.base import ExportOptions, check_keep_float32, keep_float32_option, option, remedy_in_half
from samx.exporters.onnx import check_opset, opset_option, simplify_option
from samx.models.spec import DecoderSpec


@dataclass(frozen=True)
class TensorRTOptions(ExportOptions):
    """Declare the options of TensorRT's graphs."""

    opset: int = opset_option()
    simplify: bool = simplify_option()
    keep_float32: tuple[str, ...] = keep_float32_option()

    def check(self, precision: str, spec: DecoderSpec | None = None) -> None:
        """Refuse an opset that samx does not write, and groups to keep in float32 where everything is."""
        check_opset(self.opset)
        check_keep_float32(self.keep_float32, precision)

    def remedy(self, precision: str) -> str | None:
        """Say what to try when float16 differs."""
        return remedy_in_half(precision)


@dataclass(frozen=True)
class RtxOptions(TensorRTOptions):
    """Declare the options of TensorRT for RTX."""

    turing: bool = option(False, "Build for Turing GPUs (SM 7.5) instead of Ampere and later.")
