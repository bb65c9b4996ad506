"""Run an artifact's ONNX files in ONNX Runtime, on the device that was asked for or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samx.artifacts.manifest import ENCODER_ROLE
from samx.artifacts.store import Artifact
from samx.contracts.gate import Opened
from samx.devices.cpu import usable_cpus
from samx.errors import ArtifactError, UnavailableError
from samx.extras import require, require_version
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import DEFAULT_CHUNK, Padding, Runtime, graph_roles
from samx.runtimes.cuda import CudaDevice, shared_device
from samx.runtimes.cuda_arrays import FLOAT32, DeviceArray, TakesGpuArrays, lent_image, own_array

MINIMUM, UPDATE = (1, 20), "Update it with: pip install --upgrade onnxruntime"
PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
BOUND_DEVICE = "cuda"  # where ONNX Runtime is told that arrays on the GPU lie
# Prompts decoded at a time on a processor where the image's part is kept, if there are fewer than threads: what two of
# them touch stays in the cache, and sixteen cost an eighth more each. More prompts go to a thread pool. A whole graph
# works on the image in every call, so there more is less.
SPLIT_CHUNK = 2


def open_artifact(artifact: Artifact, device: str = "cpu", threads: int | None = None) -> OnnxRuntimeRuntime:
    """Open a verified artifact.

    Raises: UnavailableError when the device is not there; ArtifactError when a file cannot be loaded.
    """
    options = artifact.manifest.options
    files = {name: artifact.read(name) for name in map(artifact.file_with_role, graph_roles(options))}
    return open_models(files, artifact.manifest.spec, options, device, threads, str(artifact.path))


def open_models(
    models: Mapping[str, bytes], spec: DecoderSpec, options: Mapping[str, Any], device: str = "cpu",
    threads: int | None = None, where: str = "the export", chunk: int | None = None,
) -> OnnxRuntimeRuntime:  # fmt: skip
    """Open a decoder's files, the image graph before the prompt graph; `options` are the export's.

    With `chunk`, so many prompts are decoded at a time, for somebody's graph that takes no more.
    Raises: as open_artifact().
    """
    sessions = [_session(name, model, device, threads) for name, model in models.items()]
    pooled = device == "cpu" and options.get("split")
    kind = OnnxRuntimeRuntime if device == "cpu" else GpuRuntime
    return kind(
        spec, sessions, device, chunk or usual_chunk(options, device), Padding.of(options, where),
        side_by_side=threads or usable_cpus() if pooled else 0,
        open_single=partial(_session, *list(models.items())[-1], device, threads=1),
    )  # fmt: skip


def usual_chunk(options: Mapping[str, Any], device: str) -> int:
    """Return how many prompts to decode at a time; `options` are the export's."""
    return SPLIT_CHUNK if options.get("split") and device == "cpu" else DEFAULT_CHUNK


def open_encoder(
    artifact: Artifact, device: str = "cpu", threads: int | None = None
) -> Callable[[Mapping[str, NDArray[Any]]], Mapping[str, Any]]:
    """Open an artifact's own image encoder: a function from its inputs by name to its outputs by name.

    Those of a GPU stay there until somebody asks for them.

    Raises: as open_artifact().
    """
    files = artifact.manifest.files
    beside = {name: artifact.read(name) for name, file in files.items() if file.role == f"{ENCODER_ROLE}_weights"}
    name = artifact.file_with_role(ENCODER_ROLE)
    session = _session(name, artifact.read(name), device, threads, beside)
    if device != "cpu":
        return partial(_run_on_gpu, session, shared_device())
    outputs = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(outputs, session.run(None, dict(inputs)), strict=True))


def open_client(artifact: Artifact, role: str, threads: int | None = None) -> Opened:
    """Open a graph that an artifact holds for other programs, as they do: on the processor.

    Raises: as open_artifact().
    """
    name, files = artifact.file_with_role(role), artifact.manifest.files
    beside = {Path(n).name: artifact.read(n) for n, file in files.items() if file.role == f"{role}_weights"}
    session = _session(name, artifact.read(name), "cpu", threads, beside)
    inputs, outputs = ([port.name for port in ports] for ports in (session.get_inputs(), session.get_outputs()))
    return Opened(inputs, outputs, lambda values: session.run(None, dict(zip(inputs, values, strict=True))))


def open_float_encoder(model: bytes, name: str, threads: int | None = None) -> Callable[[FloatArray], Feed]:
    """Open somebody's image encoder: a function from one prepared picture (1, 3, S, S) to its outputs by name.

    Raises: ArtifactError when it cannot be loaded; when called, where it does not take one picture of that size.
    """
    session = _session(name, model, "cpu", threads)
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]

    def run(frame: FloatArray) -> Feed:
        shape = [d if isinstance(d, int) else n for d, n in zip(inputs[0].shape, frame.shape, strict=False)]
        if len(inputs) != 1 or tuple(shape) != frame.shape:
            found, expected = ", ".join(f"{i.name} {i.shape}" for i in inputs), f"one {frame.shape}"
            raise ArtifactError(f"encoder '{name}' does not take this picture", found=found, expected=expected)
        return dict(zip(outputs, session.run(None, {inputs[0].name: frame}), strict=True))

    return run


class OnnxRuntimeRuntime(Runtime):
    """Run one graph, or an image graph whose outputs are kept and a prompt graph."""

    def __init__(
        self, spec: DecoderSpec, sessions: list[Any], device: str, chunk: int = DEFAULT_CHUNK,
        padding: Padding | None = None, side_by_side: int = 0, open_single: Callable[[], Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, chunk, padding, side_by_side)
        self._sessions, self._device, self._open_single = sessions, device, open_single
        self._shared: Any = None  # works on the thread that calls it; opened with the first batch
        self._kept: dict[str, Any] = {}

    def placement(self) -> Placement:
        """Count the graph nodes that each execution provider took."""
        ort, counts = _library(), Counter[str]()
        for session in self._sessions:
            counts.update({_device_of(provider): nodes for provider, nodes in _nodes(session).items()})
        details = {
            "onnxruntime": ort.__version__,
            "providers": self._sessions[0].get_providers(),
            "threads": self._sessions[0].get_session_options().intra_op_num_threads or os.cpu_count(),
            "counted": "graph nodes" if _tells_nodes(self._sessions[0]) else "graphs",
        }
        return Placement("onnxruntime", self._device, dict(counts), details)

    def _set_image(self, image: Feed) -> None:
        if len(self._sessions) == 1:
            self._kept = dict(image)
            return
        names = [output.name for output in self._sessions[0].get_outputs()]
        self._kept = dict(zip(names, self._sessions[0].run(None, dict(image)), strict=True))

    def _decode(self, prompts: Feed) -> Outputs:
        return self._run(self._sessions[-1], prompts)

    def _run(self, session: Any, prompts: Feed) -> Outputs:
        return self._named(session.run([tensor.name for tensor in self.spec.outputs], {**self._kept, **prompts}))

    def _decoder_of_a_thread(self) -> Callable[[Feed], Outputs]:
        """Share one session among the threads."""
        if self._shared is None:
            single = None if self._side_by_side == 1 else self._open_single
            self._shared = self._sessions[-1] if single is None else single()
        return partial(self._run, self._shared)


class GpuRuntime(TakesGpuArrays, OnnxRuntimeRuntime):
    """Keep an image's features, or what its graph makes of them, on the GPU; masks are what comes back."""

    @cached_property
    def _memory(self) -> CudaDevice:
        return shared_device()

    def _set_image(self, image: Feed) -> None:
        arrays = {name: DeviceArray.empty(self._memory, value.shape) for name, value in image.items()}
        for name, value in image.items():
            self._memory.upload(arrays[name].address, value)
        self._keep(arrays)

    def _set_gpu_image(self, image: Mapping[str, Any]) -> None:
        found = lent_image(image, self.spec, self._memory)
        self._keep({name: own_array(value, self._memory) for name, value in found.items()})

    def _keep(self, image: dict[str, DeviceArray]) -> None:
        """Wait for copies: ONNX Runtime works on a stream of its own."""
        self._memory.synchronise()
        self._kept = image if len(self._sessions) == 1 else _run_on_gpu(self._sessions[0], self._memory, image)

    def _run(self, session: Any, prompts: Feed) -> Outputs:
        binding = _bound(session, {**self._kept, **prompts})
        for tensor in self.spec.outputs:
            binding.bind_output(tensor.name)  # on the host
        session.run_with_iobinding(binding)
        return self._named(binding.copy_outputs_to_cpu())


def _run_on_gpu(session: Any, memory: CudaDevice, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> dict[str, Any]:
    """Run a graph whose inputs lie anywhere and whose outputs stay on the GPU; an open axis is that of the inputs."""
    count = len(next(iter(inputs.values())))
    binding, found = _bound(session, inputs), dict[str, DeviceArray]()
    for output in session.get_outputs():
        shape = tuple(size if isinstance(size, int) else count for size in output.shape)
        found[output.name] = value = DeviceArray.empty(memory, shape)
        binding.bind_output(output.name, BOUND_DEVICE, 0, FLOAT32, shape, value.address)
    session.run_with_iobinding(binding)  # waits until it is done
    return found


def _bound(session: Any, inputs: Mapping[str, NDArray[Any] | DeviceArray]) -> Any:
    """Bind inputs where they lie."""
    binding = session.io_binding()
    for name, value in inputs.items():
        if isinstance(value, DeviceArray):
            binding.bind_input(name, BOUND_DEVICE, 0, FLOAT32, value.shape, value.address)
        else:
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
    return binding


def devices() -> list[str]:
    """List the devices that this installation of ONNX Runtime can be asked for.

    Raises: MissingExtraError; UnavailableError where it is too old.
    """
    ort = _library()
    available = ort.get_available_providers()
    return [device for device, provider in PROVIDERS.items() if provider in available]


def _library() -> ModuleType:
    ort = require("onnxruntime", "onnxruntime", "running ONNX files")
    require_version("ONNX Runtime", str(ort.__version__), MINIMUM, UPDATE)
    return ort


def _tells_nodes(session: Any) -> bool:
    return hasattr(session, "get_provider_graph_assignment_info")  # since 1.24


def _nodes(session: Any) -> Mapping[str, int]:
    """Count a session's nodes by execution provider, or its graph as one where it tells no nodes."""
    if not _tells_nodes(session):
        return {session.get_providers()[0]: 1}
    counts: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counts[part.ep_name] += len(part.get_nodes())
    return counts


def _device_of(provider: str) -> str:
    return {name: device for device, name in PROVIDERS.items()}.get(provider, provider)


def _session(
    name: str, model: bytes, device: str, threads: int | None, weights: Mapping[str, bytes] | None = None
) -> Any:
    """Load bytes whose hash was checked; never fall back to another device. Weights may lie in files beside a graph."""
    ort = _library()
    provider = PROVIDERS.get(device)
    if provider is None or provider not in ort.get_available_providers():
        raise UnavailableError(
            f"ONNX Runtime cannot run on '{device}' here", found=", ".join(ort.get_available_providers()),
            expected=provider or " or ".join(PROVIDERS), fix="Choose another --device, or run 'samx doctor'.",
        )  # fmt: skip
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    # Else idle threads spin on after a call, and take the processor from what comes next: another session, the masks.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if weights:
        _give_weights(options, weights)
    try:
        return ort.InferenceSession(model, options, providers=[provider])
    except Exception as cause:  # onnxruntime's own exceptions share no base class
        raise ArtifactError(f"ONNX Runtime cannot load '{name}'", found=str(cause), fix="Export it again.") from cause


def _give_weights(options: Any, weights: Mapping[str, bytes]) -> None:
    """Hand weights over from memory: read by path, they could be others than those that were checked."""
    if not hasattr(options, "add_external_initializers_from_files_in_memory"):
        raise UnavailableError("this ONNX Runtime takes no weights beside a graph from memory", fix=UPDATE)
    sizes = [len(data) for data in weights.values()]
    options.add_external_initializers_from_files_in_memory(list(weights), list(weights.values()), sizes)
