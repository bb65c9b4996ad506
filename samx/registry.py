"""The backends: one line each. Modules are named, not imported, so that this costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from samx.artifacts.manifest import Level
from samx.errors import UnavailableError, UsageError
from samx.extras import require

INSTEAD = "--device cpu compares what the export wrote with PyTorch, on any machine."
GRAPH_DEVICE = "cpu"  # where the file that a compiler receives is run, to be compared with PyTorch


@dataclass(frozen=True)
class Backend:
    """Name a target's exporter, its runtime and what they need."""

    target: str
    title: str
    exporter: str  # "module:function"
    runtime: str  # "module:function"
    devices: str  # "module:function" that names the devices this machine has for it
    precisions: tuple[str, ...]
    library: str
    extra: str
    options: tuple[str, ...] = ()  # fields of ExportOptions that not every target has
    quantiser: str | None = None  # "module:function" that makes INT8 of what the exporter wrote
    groups: str | None = None  # "module:name" of the groups of products that it knows
    graph: str | None = None  # what runs this target's files where its device is not; None: the runtime itself
    device: str = GRAPH_DEVICE  # the one that it is for
    needs: str | None = None  # the machine that has it, in words
    compiler: str | None = None  # "module:function" that turns the exported graph into what the runtime opens
    compiles_anywhere: bool = False  # without the device that it compiles for

    def runner(self, device: str) -> Backend:
        """Give the backend that runs this target's files on a device."""
        return RUNNERS[self.graph] if self.graph is not None and device == GRAPH_DEVICE else self

    def level(self, device: str) -> Level:
        """Say what a passed comparison on a device shows."""
        return "device" if self.graph is not None and device != GRAPH_DEVICE else "graph"

    def require_runtime(self) -> None:
        """Check that what runs this target is installed.

        Raises: MissingExtraError naming the extra.
        """
        require(self.library, self.extra, f"running target '{self.target}'")

    def require_export(self) -> None:
        """Check that what an export of this target needs is installed, beside what every export needs.

        Raises: MissingExtraError naming the extra.
        """
        self.runner(GRAPH_DEVICE).require_runtime()
        if self.compiles_anywhere:
            self.require_runtime()

    def here(self) -> list[str]:
        """Name the devices of this machine that the target's own runtime can use; none without its library."""
        try:
            self.require_runtime()
            return list(load(self.devices)())
        except UnavailableError:
            return []

    def require_device(self, device: str) -> None:
        """Check that this machine has the device for this target.

        Raises: MissingExtraError; UnavailableError naming the devices that are there.
        """
        if self.runner(device) is not self:
            return self.runner(device).require_device(device)
        self.require_runtime()
        found = load(self.devices)()
        if device not in found:
            fix = "Choose another --device, or run 'samx doctor'."
            raise UnavailableError(
                f"target '{self.target}' cannot run on '{device}' here", found=", ".join(found) or "no device",
                expected=self.needs, fix=fix if self.graph is None else f"{INSTEAD} {fix}",
            )  # fmt: skip


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "onnx", "ONNX Runtime", "samx.exporters.onnx:export", "samx.runtimes.onnxruntime:open_artifact",
        "samx.runtimes.onnxruntime:devices", ("fp32", "int8"), "onnxruntime", "onnxruntime",
        ("opset", "split", "simplify", "exclude", "min_iou"), quantiser="samx.quantization.onnx:quantise",
        groups="samx.quantization.groups:QUANTISABLE",
    ),
    Backend(
        "trt", "TensorRT", "samx.exporters.tensorrt.export:export", "samx.runtimes.tensorrt.runtime:open_artifact",
        "samx.runtimes.tensorrt.runtime:devices", ("fp32", "fp16", "int8"), "tensorrt", "trt",
        ("opset", "simplify", "islands", "exclude", "min_iou"),
        quantiser="samx.quantization.onnx:quantise_for_tensorrt", groups="samx.quantization.groups:QUANTISABLE",
        graph="onnx", device="cuda", needs="an NVIDIA GPU", compiler="samx.exporters.tensorrt.lower:lower",
    ),
    Backend(
        "trt-rtx", "TensorRT for RTX", "samx.exporters.tensorrt.export:export",
        "samx.runtimes.tensorrt.runtime:open_artifact", "samx.runtimes.tensorrt.runtime:devices_rtx",
        ("fp32", "fp16", "int8"), "tensorrt_rtx", "trt-rtx",
        ("opset", "simplify", "islands", "turing", "exclude", "min_iou"),
        quantiser="samx.quantization.onnx:quantise_for_tensorrt", groups="samx.quantization.groups:QUANTISABLE",
        graph="onnx", device="cuda", needs="an NVIDIA GPU", compiler="samx.exporters.tensorrt.lower:lower",
        compiles_anywhere=True,
    ),
    Backend(
        "openvino", "OpenVINO", "samx.exporters.openvino:export", "samx.runtimes.openvino:open_artifact",
        "samx.runtimes.openvino:devices", ("fp32", "fp16", "bf16", "int8"), "openvino", "openvino",
        ("split", "simplify", "exclude", "min_iou"), quantiser="samx.quantization.openvino:quantise",
        groups="samx.quantization.groups:QUANTISABLE",
    ),
    Backend(
        "coreml", "Core ML", "samx.exporters.coreml.export:export", "samx.runtimes.coreml.runtime:open_artifact",
        "samx.runtimes.coreml.runtime:devices", ("fp32", "fp16", "int8"), "coremltools", "coreml",
        ("ios", "contract", "weights", "exclude", "min_iou"), quantiser="samx.quantization.coreml:quantise",
        groups="samx.quantization.coreml_groups:QUANTISABLE",
        graph="mil", device="cpu+ane", needs="a Mac", compiler="samx.runtimes.coreml.lower:lower",
    ),
    Backend(
        "aoti", "AOTInductor", "samx.exporters.aoti:export", "samx.runtimes.aoti:open_artifact",
        "samx.runtimes.aoti:devices", ("fp32", "fp16"), "torch", "export", ("islands",),
    ),
)  # fmt: skip


# What runs a graph without its device: ONNX Runtime, or the evaluator of Core ML's programs, which exports nothing.
RUNNERS: Mapping[str, Backend] = {
    "onnx": BACKENDS[0],
    "mil": Backend(
        "mil", "MIL evaluator", "", "samx.runtimes.mil.runtime:open_artifact", "samx.runtimes.mil.runtime:devices", (),
        "coremltools", "coreml",
    ),
}  # fmt: skip


def backend(target: str) -> Backend:
    """Look a target up.

    Raises: UsageError for a name that no backend has.
    """
    known = {entry.target: entry for entry in BACKENDS}
    if target not in known:
        raise UsageError(
            "unknown export target", found=repr(target), expected=" or ".join(known),
            fix="Run 'samx doctor' to see the backends.",
        )  # fmt: skip
    return known[target]


def check_precision(entry: Backend, precision: str) -> None:
    """Refuse a precision that the target does not export.

    Raises: UsageError naming the precisions it has.
    """
    if precision not in entry.precisions:
        raise UsageError(
            f"target '{entry.target}' does not export this precision", found=precision,
            expected=" or ".join(entry.precisions), fix="samx never changes a precision silently; choose a listed one.",
        )  # fmt: skip


def load(reference: str) -> Callable[..., Any]:
    """Import what a registry line names."""
    module, _, name = reference.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
