"""Run an artifact's OpenVINO files on the processor, in the arithmetic that its precision says or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, InputError, UnavailableError
from samx.extras import require
from samx.formats.openvino.compiled import ARITHMETIC, PLUGIN, check_processor, check_products, devices_of, products
from samx.formats.openvino.ir import WEIGHTS_ROLE, Ir, read
from samx.models.session import Feed, Outputs, Placement
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Runtime
from samx.runtimes.onnxruntime import ROLES

DEVICE = "cpu"
# Prompts decoded at a time: what they share stays in the cache. Sixteen cost up to 10 % more a prompt, and win nothing.
CHUNK = 4
# No fused kernels ("snippets"): in bfloat16 and fixed shapes, those of OpenVINO 2026.4 give other answers in every call
# for exactly eight tokens. They would save 2 to 5 %, and without them fixed shapes change no bit.
SETTINGS: Mapping[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "SNIPPETS_MODE": "DISABLE"}


def open_artifact(
    artifact: Artifact, device: str = DEVICE, threads: int | None = None, chunk: int = CHUNK
) -> OpenVinoRuntime:
    """Open a verified artifact.

    Raises: UnavailableError for another device, or for bfloat16 where the processor has none; ArtifactError when a file
    cannot be loaded.
    """
    manifest = artifact.manifest
    roles = ROLES if manifest.options.get("split") else ("decoder",)
    files = [_files(artifact, role) for role in roles]
    points = ShapeRange.from_json(manifest.options.get("points"), f"{artifact.path}: points")
    where = str(artifact.path)
    return open_graphs(files, manifest.spec, manifest.precision, points.opt, device, threads, chunk, where)


def open_graphs(
    files: Sequence[Ir], spec: DecoderSpec, precision: str, points: int, device: str = DEVICE,
    threads: int | None = None, chunk: int = CHUNK, where: str = "the export",
) -> OpenVinoRuntime:  # fmt: skip
    """Open a decoder's files, the image graph before the prompt graph; `points` is how many a prompt usually has.

    Raises: as open_artifact().
    """
    if device != DEVICE:
        raise UnavailableError(
            f"samx does not run OpenVINO on '{device}'", expected=DEVICE,
            fix="Choose --device cpu; OpenVINO's GPU and NPU plugins are not offered.",
        )  # fmt: skip
    core = _openvino().Core()
    check_processor(core, precision)
    compiler = Compiler(core, precision, threads, where)
    try:
        graphs = [read(one) for one in files]
    except InputError as cause:
        raise ArtifactError(f"OpenVINO cannot load {where}", found=cause, fix="Export it again.") from cause
    return OpenVinoRuntime(spec, graphs, compiler, points, chunk)


@dataclass(frozen=True)
class Compiler:
    """Compile graphs alike."""

    core: Any
    precision: str
    threads: int | None
    where: str

    def __call__(self, graph: Any) -> Any:
        """Give a request to a compiled graph.

        Raises: ArtifactError where that fails; UnavailableError where it computes in another arithmetic.
        """
        options: dict[str, Any] = {
            **SETTINGS, "INFERENCE_PRECISION_HINT": ARITHMETIC[self.precision],
            **({} if self.threads is None else {"INFERENCE_NUM_THREADS": self.threads}),
        }  # fmt: skip
        try:
            compiled = self.core.compile_model(graph, PLUGIN, options)
        except RuntimeError as cause:
            raise ArtifactError(f"OpenVINO cannot load {self.where}", found=cause, fix="Export it again.") from cause
        check_products(products([compiled]), self.precision)
        return compiled.create_infer_request()


class AnySize:
    """Ask a prompt graph that takes any number of prompts and points."""

    def __init__(self, request: Any, spec: DecoderSpec) -> None:
        self.request, self._tensor = request, _openvino().Tensor
        self._outputs = [tensor.name for tensor in spec.outputs]

    def decode(self, prompts: Feed) -> Outputs:
        """Give copies, because the next call writes into the same memory."""
        for name, value in prompts.items():
            self.request.set_tensor(name, self._tensor(value))
        self.request.infer()
        return {name: self.request.get_tensor(name).data.copy() for name in self._outputs}


class FixedSize:
    """Ask a prompt graph whose shapes are fixed, and whose memory therefore stays where it is."""

    def __init__(self, request: Any, spec: DecoderSpec) -> None:
        self.request = request
        self._inputs = {tensor.name: request.get_tensor(tensor.name).data for tensor in spec.prompt_inputs}
        self._outputs = {tensor.name: request.get_tensor(tensor.name).data for tensor in spec.outputs}

    def decode(self, prompts: Feed) -> Outputs:
        """Give copies, because the next call writes into the same memory."""
        for name, value in prompts.items():
            np.copyto(self._inputs[name], value)
        self.request.infer()
        return {name: value.copy() for name, value in self._outputs.items()}


class OpenVinoRuntime(Runtime):
    """Run one graph, or an image graph whose outputs are kept and a prompt graph.

    For the usual numbers of prompts and points the prompt graph is compiled once more when they are first asked for,
    with its shapes fixed: that takes a third of a second, and a sixth off every later call. Its answers are the same.
    """

    def __init__(
        self, spec: DecoderSpec, graphs: Sequence[Any], compiler: Compiler, points: int, chunk: int = CHUNK
    ) -> None:
        super().__init__(spec, chunk)
        self._library, self._compiler, self._points = _openvino(), compiler, points
        *first, self._graph = graphs
        self._image = [compiler(graph) for graph in first]
        self._any = AnySize(compiler(self._graph), spec)
        self._fixed: dict[tuple[int, int], FixedSize] = {}  # by prompts and points
        self._last: AnySize | FixedSize = self._any
        self._kept: dict[str, Any] = {}

    def placement(self) -> Placement:
        """Count the operations of the compiled graphs, and their products by arithmetic."""
        models = [request.get_compiled_model() for request in (*self._image, self._last.request)]
        details = {
            "openvino": self._library.get_version(),
            "threads": int(models[-1].get_property("INFERENCE_NUM_THREADS")),
            "counted": "operations of the compiled graphs",
            "arithmetic": ARITHMETIC[self._compiler.precision],
            "products": products(models),
        }
        return Placement("openvino", DEVICE, devices_of(models), details)

    def _set_image(self, image: Feed) -> None:
        self._kept = {name: self._library.Tensor(value) for name, value in image.items()}
        for request in self._image:
            _give(request, self._kept)
            request.infer()
            # In the plugin's own type, which NumPy need not have.
            self._kept = {port.get_any_name(): request.get_tensor(port) for port in request.model_outputs}
        for request in (self._any.request, *(graph.request for graph in self._fixed.values())):
            _give(request, self._kept)

    def _decode(self, prompts: Feed) -> Outputs:
        n, points = prompts["point_labels"].shape
        usual = n in (1, self._chunk) and points <= self._points
        self._last = self._of_size(n, points) if usual else self._any
        return self._last.decode(prompts)

    def _of_size(self, n: int, points: int) -> FixedSize:
        if (n, points) not in self._fixed:
            graph, sizes = self._graph.clone(), {"prompts": n, "points": points}
            graph.reshape({
                one.name: [sizes[d] if isinstance(d, str) else d for d in one.shape] for one in self.spec.prompt_inputs
            })  # fmt: skip
            found = FixedSize(self._compiler(graph), self.spec)
            _give(found.request, self._kept)
            self._fixed[n, points] = found
        return self._fixed[n, points]


def devices() -> list[str]:
    """Name the devices that samx runs OpenVINO on."""
    core = _openvino().Core()
    return [DEVICE] if PLUGIN in core.available_devices else []


def _openvino() -> ModuleType:
    return require("openvino", "openvino", "running OpenVINO files")


def _files(artifact: Artifact, role: str) -> Ir:
    return Ir(*(artifact.read(artifact.file_with_role(name)) for name in (role, role + WEIGHTS_ROLE)))


def _give(request: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
