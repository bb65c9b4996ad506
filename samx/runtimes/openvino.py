"""Run an artifact's OpenVINO files on the processor, in the arithmetic that its precision says or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.errors import ArtifactError, InputError
from samx.extras import require
from samx.formats.openvino import (
    ARITHMETIC,
    PLUGIN,
    WEIGHTS_ROLE,
    Ir,
    check_processor,
    check_products,
    devices_of,
    products,
    read,
)
from samx.models.session import Feed, Outputs, Placement
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Runtime, check_device, graph_roles

DEVICE = "cpu"
# Prompts decoded at a time: what they share stays in the cache. Sixteen cost up to 10 % more a prompt, and win nothing.
CHUNK = 4
# No fused kernels ("snippets"): in bfloat16 and fixed shapes, those of OpenVINO 2026.4 give other answers in every call
# for exactly eight tokens. They would save 2 to 5 %, and without them fixed shapes change no bit.
# Threads are not tied to processors: each process would take the first ones, and two of one thread share one of them
# (two processes then did no more than one; left free they did 1.4 times as much and more, and one lost nothing).
SETTINGS: Mapping[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "SNIPPETS_MODE": "DISABLE", "ENABLE_CPU_PINNING": False,
}  # fmt: skip


def open_artifact(artifact: Artifact, device: str = DEVICE, threads: int | None = None) -> OpenVinoRuntime:
    """Open a verified artifact.

    Raises: UnavailableError for another device, or for bfloat16 where the processor has none; ArtifactError when a file
    cannot be loaded.
    """
    manifest = artifact.manifest
    files = [_files(artifact, role) for role in graph_roles(manifest.options)]
    points = ShapeRange.from_json(manifest.options.get("points"), f"{artifact.path}: points")
    where = str(artifact.path)
    return open_graphs(files, manifest.spec, manifest.precision, points.opt, device, threads, where)


def open_graphs(
    files: Sequence[Ir], spec: DecoderSpec, precision: str, points: int, device: str = DEVICE,
    threads: int | None = None, where: str = "the export",
) -> OpenVinoRuntime:  # fmt: skip
    """Open a decoder's files, the image graph before the prompt graph; `points` is how many a prompt usually has.

    Raises: as open_artifact().
    """
    graphs, compiler = _read(files, precision, device, threads, where)
    return OpenVinoRuntime(spec, graphs, compiler, precision, points)


def open_encoder(
    artifact: Artifact, device: str = DEVICE, threads: int | None = None
) -> Callable[[Mapping[str, NDArray[Any]]], Feed]:
    """Open an artifact's own image encoder: a function from its inputs by name to its outputs by name.

    Raises: as open_artifact().
    """
    entry, where = artifact.manifest.encoder, str(artifact.path)
    assert entry is not None, "one that takes levels"
    (graph,), compiler = _read([_files(artifact, ENCODER_ROLE)], entry.precision, device, threads, where)
    request, outputs = compiler(graph), [port.get_any_name() for port in graph.outputs]

    def run(inputs: Mapping[str, NDArray[Any]]) -> Feed:
        """Return copies, because the next call writes into the same memory."""
        _give(request, {name: _openvino().Tensor(np.ascontiguousarray(value)) for name, value in inputs.items()})
        request.infer()
        return {name: request.get_tensor(name).data.copy() for name in outputs}

    return run


def _read(
    files: Sequence[Ir], precision: str, device: str, threads: int | None, where: str
) -> tuple[list[Any], Callable[[Any], Any]]:
    """Read graphs; return with them what compiles one for the device, and gives a request to it."""
    check_device(device, [DEVICE], "samx does not run OpenVINO there", "Its GPU and NPU plugins are not offered.")
    core = _openvino().Core()
    check_processor(core, precision)
    try:
        graphs = [read(one) for one in files]
    except InputError as cause:
        raise ArtifactError(f"OpenVINO cannot load {where}", found=cause, fix="Export it again.") from cause
    return graphs, partial(_compiled, core, precision, threads, where)


class Request:
    """Ask a prompt graph. One whose shapes are fixed has memory that stays where it is; any other is given arrays."""

    def __init__(self, request: Any, spec: DecoderSpec, fixed: bool) -> None:
        self.request, self._tensor = request, _openvino().Tensor
        self._inputs = {one.name: request.get_tensor(one.name).data for one in spec.prompt_inputs if fixed}
        self._outputs = [tensor.name for tensor in spec.outputs]

    def decode(self, prompts: Feed) -> Outputs:
        """Return copies, because the next call writes into the same memory."""
        for name, value in prompts.items():
            if name in self._inputs:
                np.copyto(self._inputs[name], value)
            else:
                self.request.set_tensor(name, self._tensor(value))
        self.request.infer()
        return {name: self.request.get_tensor(name).data.copy() for name in self._outputs}


class OpenVinoRuntime(Runtime):
    """Run one graph, or an image graph whose outputs are kept and a prompt graph.

    For the usual numbers of prompts and points the prompt graph is compiled once more when they are first asked for,
    with its shapes fixed: that takes a third of a second, and a sixth off every later call. Its answers are the same.
    """

    def __init__(
        self, spec: DecoderSpec, graphs: Sequence[Any], compiler: Callable[[Any], Any], precision: str, points: int
    ) -> None:  # fmt: skip
        super().__init__(spec, CHUNK)
        self._library, self._compiler, self._precision, self._points = _openvino(), compiler, precision, points
        *first, self._graph = graphs
        self._image = [compiler(graph) for graph in first]
        self._any = Request(compiler(self._graph), spec, fixed=False)
        self._fixed: dict[tuple[int, int], Request] = {}  # by prompts and points
        self._last = self._any
        self._kept: dict[str, Any] = {}

    def placement(self) -> Placement:
        """Count the operations of the compiled graphs, and their products by arithmetic."""
        models = [request.get_compiled_model() for request in (*self._image, self._last.request)]
        details = {
            "openvino": self._library.get_version(),
            "threads": int(models[-1].get_property("INFERENCE_NUM_THREADS")),
            "counted": "operations of the compiled graphs",
            "arithmetic": ARITHMETIC[self._precision],
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

    def _of_size(self, n: int, points: int) -> Request:
        if (n, points) not in self._fixed:
            graph, sizes = self._graph.clone(), {"prompts": n, "points": points}
            graph.reshape({
                one.name: [sizes[d] if isinstance(d, str) else d for d in one.shape] for one in self.spec.prompt_inputs
            })  # fmt: skip
            found = Request(self._compiler(graph), self.spec, fixed=True)
            _give(found.request, self._kept)
            self._fixed[n, points] = found
        return self._fixed[n, points]


def devices() -> list[str]:
    """List the devices that samx runs OpenVINO on."""
    core = _openvino().Core()
    return [DEVICE] if PLUGIN in core.available_devices else []


def _compiled(core: Any, precision: str, threads: int | None, where: str, graph: Any) -> Any:
    """Return a request to a compiled graph.

    Raises: ArtifactError where that fails; UnavailableError where it computes in another arithmetic.
    """
    options = {**SETTINGS, "INFERENCE_PRECISION_HINT": ARITHMETIC[precision]}
    options |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    try:
        compiled = core.compile_model(graph, PLUGIN, options)
    except RuntimeError as cause:
        raise ArtifactError(f"OpenVINO cannot load {where}", found=cause, fix="Export it again.") from cause
    check_products(products([compiled]), precision)
    return compiled.create_infer_request()


def _openvino() -> ModuleType:
    return require("openvino", "openvino", "running OpenVINO files")


def _files(artifact: Artifact, role: str) -> Ir:
    return Ir(*(artifact.read(artifact.file_with_role(name)) for name in (role, role + WEIGHTS_ROLE)))


def _give(request: Any, tensors: Mapping[str, Any]) -> None:
    for name, tensor in tensors.items():
        request.set_tensor(name, tensor)
