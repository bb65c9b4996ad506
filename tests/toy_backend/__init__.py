"""A backend that samx does not have: ONNX Runtime in a box of its own. Its files, and this entry for the registry."""

from __future__ import annotations

from samx.registry import ONNX_GROUPS, Backend

BACKEND = Backend(
    target="toy", title="Toy", exporter="toy_backend.exporter", options="toy_backend.exporter:ToyOptions",
    runtime="toy_backend.runtime:open_artifact", devices="toy_backend.runtime:devices",
    precisions={"fp32": "fp32", "toy16": "fp16", "int8": "int8"}, library="onnxruntime", extra="onnxruntime",
    opens=("toy_engine",), describes={".toy": "toy_backend.compiler:describe"},
    quantiser="samx.quantization.onnx:quantise", groups=ONNX_GROUPS, graph="onnx", device="toybox", needs="a toy box",
    compiler="toy_backend.compiler:lower", kit={"toybox": ("python3 -m pip install numpy onnxruntime",)},
)  # fmt: skip
