"""The backends: one entry each. Modules are named, not imported, so that this costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samx.artifacts.manifest import FileEntry, Level, Manifest
from samx.errors import UnavailableError, UsageError
from samx.extras import require

if TYPE_CHECKING:
    from samx.artifacts.store import Artifact
    from samx.models.session import Session

INSTEAD = "--device cpu compares what the export wrote with PyTorch, on any machine."
GRAPH_ROLES = ("decoder", "image", "prompt")  # of files with a graph each: of a whole decoder, or of its two parts
INT8 = "int8"
GRAPH_DEVICE = "cpu"  # where the file that a compiler receives is run, to be compared with PyTorch
# What is left to do where the device is elsewhere: before its compiler ran, and after.
FINISH_ON_GPU = (
    "On the device: 'samx build {out}' builds the engine, {compare} compares it.",
    "On a machine with the GPU: {compare} runs the engine and compares it.",
)
FINISH_ON_MAC = (
    "On a Mac: {compare} runs the packages on the Neural Engine and compares them.",
    "On a Mac with a Neural Engine: {compare} runs the packages there and compares them.",
)


@dataclass(frozen=True)
class Backend:
    """Name a target's exporter, its runtime and what they need."""

    target: str
    title: str
    exporter: str  # module with decoder() and write()
    options: str  # "module:class" of its options
    runtime: str  # "module:function"
    devices: str  # "module:function" that names the devices this machine has for it
    precisions: Mapping[str, str]  # each with the precision whose bounds judge it; the first is the default
    library: str
    extra: str
    opens: tuple[str, ...] = GRAPH_ROLES  # roles of the files that its runtime opens
    describes: Mapping[str, str] = field(default_factory=dict)  # "module:function" of each suffix that it can describe
    quantiser: str | None = None  # "module:function" that makes INT8 of what the exporter wrote
    groups: str | None = None  # "module:name" of the groups of products that it knows
    graph: str | None = None  # what runs this target's files where its device is not; None: the runtime itself
    device: str = GRAPH_DEVICE  # the one that it is for
    needs: str | None = None  # the machine that has it, in words
    compiler: str | None = None  # "module:function" that turns the exported graph into what the runtime opens
    compiles_anywhere: bool = False  # without the device that it compiles for
    finish: tuple[str, str] = ("", "")  # what is left to do on the device, before and after its compiler
    kit: Mapping[str, tuple[str, ...]] | None = None  # the devices of its kit, each with the lines that prepare one
    encoder: str | None = None  # "module:function" that opens its image encoder; None: ONNX Runtime does, on the CPU
    encoder_precisions: tuple[str, ...] = ("fp32",)  # that its exporter writes an image encoder in
    kit_files: str | None = None  # "module:function" that makes what else lies in its kit
    client: str | None = None  # "module:function" that opens a graph for other programs, where its exporter writes one
    client_code: str | None = None  # what its client code is named after in samx/clients; None: the target
    in_browsers: bool = False  # onnxruntime-web runs its files
    triton: str | None = None  # the backend of Triton's server that runs its files

    @property
    def code(self) -> str:
        """Return the name of the templates that its client code is made from."""
        return self.client_code or self.target

    @property
    def default_precision(self) -> str:
        """Return the precision of an export that names none."""
        return next(iter(self.precisions))

    def runner(self, device: str) -> Backend:
        """Return the backend that runs this target's files on a device."""
        return RUNNERS[self.graph] if self.graph is not None and device == GRAPH_DEVICE else self

    def encoder_opener(self, device: str) -> tuple[str, str]:
        """Return what opens the image encoder, and for which device: where the target has nothing, it is the CPU."""
        own = self.runner(device).encoder
        return (ONNX_ENCODER, GRAPH_DEVICE) if own is None else (own, device)

    def encoder_precision(self, asked: str | None, decoder: str) -> str:
        """Return the precision of an image encoder: the one that was asked for, else its decoder's where it is offered.

        INT8 takes minutes and pays for few encoders: it is never a default.
        Raises: UsageError naming the precisions that there are.
        """
        if asked is not None and asked not in self.encoder_precisions:
            raise UsageError(
                f"target '{self.target}' has no image encoder in this precision", found=asked,
                expected=" or ".join(self.encoder_precisions),
            )  # fmt: skip
        offered = set(self.encoder_precisions) - {INT8}
        return asked or (decoder if decoder in offered else "fp32")

    def opened(self, manifest: Manifest, device: str) -> list[FileEntry]:
        """List the files that are opened on a device; where they are still to be compiled, what they are made from."""
        for runner in (self.runner(device), self.runner(GRAPH_DEVICE)):
            if found := [file for file in manifest.files.values() if file.role in runner.opens]:
                return found
        return []

    def next_step(self, manifest: Manifest, out: Path) -> str | None:
        """Return what is left to do with an artifact on the device; None: nothing."""
        shown = {evidence.level for evidence in manifest.evidence}
        if self.compiler is None or "device" in shown:
            return None
        compare = f"'samx validate {out} --device {self.device}'"
        return self.finish["lowered" in shown].format(compare=compare, out=out)

    def level(self, device: str) -> Level:
        """Return what a passed comparison on a device shows."""
        return "device" if self.graph is not None and device != GRAPH_DEVICE else "graph"

    def option_fields(self) -> dict[str, Field[Any]]:
        """Return the options that its exporter declares, by name."""
        return {declared.name: declared for declared in fields(load(self.options))}

    def check_options(self, given: Iterable[str]) -> None:
        """Refuse an option that the target has not, whatever its value.

        Raises: UsageError naming it.
        """
        own, known = self.option_fields(), option_fields()
        for name in given:
            if name not in own:
                raise UsageError(
                    f"target '{self.target}' has no such option", found=flag_of(name, known.get(name)),
                    expected=", ".join(flag_of(*one) for one in own.items()), fix="Leave it out.",
                )  # fmt: skip

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that the target does not export.

        Raises: UsageError naming the precisions it has.
        """
        if precision not in self.precisions:
            raise UsageError(
                f"target '{self.target}' does not export this precision", found=precision,
                expected=" or ".join(self.precisions),
                fix="samx never changes a precision silently; choose a listed one.",
            )  # fmt: skip

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


def _precisions(*names: str) -> dict[str, str]:
    return {name: name for name in names}


PIP = "python3 -m pip install numpy"
ON_CPU = {"cpu": (f"{PIP} 'onnxruntime>=1.20'",)}  # where the exported graph runs, too
BUILD = "python3 samx.pyz build artifact"
# Targets that are given ONNX files name the products in them alike.
ONNX_ENCODER = "samx.runtimes.onnxruntime:open_encoder"  # and of targets that have none of their own
ONNX_GROUPS = "samx.quantization.groups:QUANTISABLE"
TENSORRT: Mapping[str, Any] = {
    "exporter": "samx.exporters.tensorrt", "runtime": "samx.runtimes.tensorrt.runtime:open_artifact",
    "devices": "samx.runtimes.tensorrt.runtime:devices",
    "precisions": _precisions("fp32", "fp16", "int8"), "quantiser": "samx.quantization.onnx:quantise_for_tensorrt",
    "groups": ONNX_GROUPS, "graph": "onnx", "device": "cuda", "needs": "an NVIDIA GPU", "finish": FINISH_ON_GPU,
    "opens": ("engine",), "compiler": "samx.exporters.tensorrt.lower:lower",
    "encoder": "samx.runtimes.tensorrt.encoder:open_encoder", "encoder_precisions": ("fp32", "fp16"),
    "client_code": "trt",
}  # fmt: skip

BACKENDS: tuple[Backend, ...] = (
    Backend(
        "onnx", "ONNX Runtime", "samx.exporters.onnx", "samx.exporters.onnx:OnnxOptions",
        "samx.runtimes.onnxruntime:open_artifact", "samx.runtimes.onnxruntime:devices",
        _precisions("fp32", "fp16", "int8"), "onnxruntime", "onnxruntime",
        quantiser="samx.quantization.onnx:quantise", groups=ONNX_GROUPS,
        kit={**ON_CPU, "cuda": (f"{PIP} 'onnxruntime-gpu>=1.20'",)},
        describes={".onnx": "samx.contracts.lint:describe"},
        encoder=ONNX_ENCODER, encoder_precisions=("fp32", "fp16", INT8),
        client="samx.runtimes.onnxruntime:open_client", in_browsers=True,
        triton="onnxruntime",
    ),
    Backend(
        "trt", "TensorRT", options="samx.exporters.tensorrt:TensorRTOptions", library="tensorrt", extra="trt",
        triton="tensorrt",
        kit={"cuda": ("# JetPack 6.1 or newer brings it to a Jetson; elsewhere:", f"{PIP} 'tensorrt>=10.3'", BUILD),
             **ON_CPU}, **TENSORRT,
    ),
    Backend(
        "trt-rtx", "TensorRT for RTX", options="samx.exporters.tensorrt:RtxOptions", library="tensorrt_rtx",
        extra="trt-rtx", compiles_anywhere=True,
        kit={"cuda": (f"{PIP} 'tensorrt-rtx-cu13>=1.7,<1.8'", BUILD), **ON_CPU}, **TENSORRT,
    ),
    Backend(
        "openvino", "OpenVINO", "samx.exporters.openvino", "samx.exporters.openvino:OpenVinoOptions",
        "samx.runtimes.openvino:open_artifact", "samx.runtimes.openvino:devices",
        _precisions("fp32", "fp16", "bf16", "int8"), "openvino", "openvino",
        opens=(*GRAPH_ROLES, *(f"{role}_weights" for role in GRAPH_ROLES)),
        describes={".xml": "samx.formats.openvino:describe"},
        quantiser="samx.quantization.openvino:quantise", groups=ONNX_GROUPS,
        kit={"cpu": (f"{PIP} 'openvino>=2025.0'",)},
        encoder="samx.runtimes.openvino:open_encoder", encoder_precisions=("fp32", "fp16", "bf16", INT8),
    ),
    Backend(
        "coreml", "Core ML", "samx.exporters.coreml.export", "samx.exporters.coreml:CoreMLOptions",
        "samx.runtimes.coreml.runtime:open_artifact", "samx.runtimes.coreml.runtime:devices",
        _precisions("fp16", "fp32", "int8"), "coremltools", "coreml",  # the Neural Engine computes in float16
        quantiser="samx.quantization.coreml:quantise", groups="samx.quantization.coreml_rewrite:QUANTISABLE",
        graph="mil", device="cpu+ane", needs="a Mac", compiler="samx.runtimes.coreml.compute_plan:lower",
        finish=FINISH_ON_MAC, opens=("package",), kit_files="samx.kits.phone:phone",
        encoder="samx.runtimes.coreml.runtime:open_encoder", encoder_precisions=("fp16", "fp32"),
        kit=dict.fromkeys(("cpu+ane", "cpu+gpu", "all", "coreml-cpu"), (f"{PIP} 'coremltools>=9,<10'",)),
    ),
    Backend(
        "aoti", "AOTInductor", "samx.exporters.aoti", "samx.exporters.aoti:AotiOptions",
        "samx.runtimes.aoti:open_artifact", "samx.runtimes.aoti:devices", _precisions("fp32", "fp16"), "torch",
        "export", opens=("package",), encoder="samx.runtimes.aoti:open_encoder",
    ),
)  # fmt: skip

DEFAULT_TARGET = BACKENDS[0].target

# What runs a graph without its device: ONNX Runtime, or the evaluator of Core ML's programs, which exports nothing.
RUNNERS: Mapping[str, Backend] = {
    "onnx": BACKENDS[0],
    "mil": Backend(
        "mil", "MIL evaluator", "", "", "samx.runtimes.mil.runtime:open_artifact", "samx.runtimes.mil.runtime:devices",
        {}, "coremltools", "coreml", opens=("package",), encoder="samx.runtimes.mil.runtime:open_encoder",
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


def option_fields() -> dict[str, Field[Any]]:
    """Return the options of all targets, by name."""
    return {name: declared for entry in BACKENDS for name, declared in entry.option_fields().items()}


def flag_of(name: str, declared: Field[Any] | None) -> str:
    """Return how an option is written on the command line."""
    flag = None if declared is None else declared.metadata["flag"]
    return flag or "--" + name.replace("_", "-")


def load(reference: str) -> Any:
    """Import what an entry names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def open_session(artifact: Artifact, device: str, threads: int | None) -> Session:
    """Open a verified artifact's decoder where its target runs.

    Raises: MissingExtraError, UnavailableError; ArtifactError when a file cannot be loaded.
    """
    entry = backend(artifact.manifest.target)
    entry.require_device(device)
    session: Session = load(entry.runner(device).runtime)(artifact, device=device, threads=threads)
    return session
