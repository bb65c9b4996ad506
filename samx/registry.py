"""The backends: one line each. Modules are named, not imported, so that this costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from samx.artifacts.manifest import Level
from samx.errors import UnavailableError, UsageError
from samx.extras import require

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
    compiler: str | None = None  # "module:function" that turns the exported graph into what the runtime opens
    compiles_anywhere: bool = False  # without the device that it compiles for

    def runner(self, device: str) -> Backend:
        """Give the backend that runs this target's files on a device: a graph before its compiler is plain ONNX."""
        return BACKENDS[0] if self.compiler is not None and device == GRAPH_DEVICE else self

    def level(self, device: str) -> Level:
        """Say what a passed comparison on a device shows."""
        return "device" if self.compiler is not None and device != GRAPH_DEVICE else "graph"

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
            raise UnavailableError(
                f"target '{self.target}' cannot run on '{device}' here", found=", ".join(found) or "no device",
                fix="Choose another --device, or run 'samx doctor'.",
            )  # fmt: skip


BACKENDS: tuple[Backend, ...] = (
    Backend(
        "onnx", "ONNX Runtime", "samx.exporters.onnx:export", "samx.runtimes.onnxruntime:open_artifact",
        "samx.runtimes.onnxruntime:devices", ("fp32",), "onnxruntime", "onnxruntime",
    ),
    Backend(
        "trt", "TensorRT", "samx.exporters.tensorrt:export", "samx.runtimes.tensorrt:open_artifact",
        "samx.runtimes.tensorrt:devices", ("fp32", "fp16"), "tensorrt", "trt", "samx.engines.lower:lower",
    ),
    Backend(
        "trt-rtx", "TensorRT for RTX", "samx.exporters.tensorrt:export", "samx.runtimes.tensorrt:open_artifact",
        "samx.runtimes.tensorrt:devices_rtx", ("fp32", "fp16"), "tensorrt_rtx", "trt-rtx", "samx.engines.lower:lower",
        compiles_anywhere=True,
    ),
)  # fmt: skip


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
