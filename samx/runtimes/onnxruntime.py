"""Run an artifact's ONNX files in ONNX Runtime, on the device that was asked for or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from samx.artifacts.store import Artifact
from samx.devices.processor import usable_cpus
from samx.errors import ArtifactError, UnavailableError
from samx.extras import require
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import DEFAULT_CHUNK, PaddedShape, Runtime

PROVIDERS: Mapping[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ROLES = ("image", "prompt")  # of a split artifact; else one file with the role 'decoder'
# Prompts decoded at a time on a processor where the image's part is kept, if there are fewer than threads: what two of
# them touch stays in the cache, and sixteen cost an eighth more each. More prompts go to a crew. A whole graph works on
# the image in every call, so there more is less.
SPLIT_CHUNK = 2


def open_artifact(
    artifact: Artifact, device: str = "cpu", threads: int | None = None, chunk: int | None = None
) -> OnnxRuntimeRuntime:
    """Open a verified artifact; without a `chunk` of prompts decoded at a time, the one that suits it is taken.

    Raises: UnavailableError when the device is not there; ArtifactError when a file cannot be loaded.
    """
    options = artifact.manifest.options
    roles = ROLES if options.get("split") else ("decoder",)
    files = {name: artifact.read(name) for name in map(artifact.file_with_role, roles)}
    return open_models(files, artifact.manifest.spec, options, device, threads, chunk, str(artifact.path))


def open_models(
    models: Mapping[str, bytes], spec: DecoderSpec, options: Mapping[str, Any], device: str = "cpu",
    threads: int | None = None, chunk: int | None = None, where: str = "the export",
) -> OnnxRuntimeRuntime:  # fmt: skip
    """Open a decoder's files, the image graph before the prompt graph; `options` are the export's.

    Raises: as open_artifact().
    """
    sessions = [_session(name, model, device, threads) for name, model in models.items()]
    padded, crew = PaddedShape.of(options, where), None
    if chunk is None and padded is None and device == "cpu" and options.get("split"):
        name, model = list(models.items())[-1]
        crew = Crew(threads or usable_cpus(), lambda: _session(name, model, device, threads=1))
    return OnnxRuntimeRuntime(spec, sessions, device, chunk or usual_chunk(options, device), padded, crew)


def usual_chunk(options: Mapping[str, Any], device: str) -> int:
    """Say how many prompts to decode at a time; `options` are the export's."""
    return SPLIT_CHUNK if options.get("split") and device == "cpu" else DEFAULT_CHUNK


def open_encoder(model: bytes, name: str, threads: int | None = None) -> Callable[[FloatArray], Feed]:
    """Open an image encoder: a function from one prepared picture (1, 3, S, S) to the encoder's outputs by name.

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


def run_encoder(model: bytes, name: str, frame: FloatArray, threads: int | None = None) -> Feed:
    """Run an image encoder on one prepared picture. Shapes: (1, 3, S, S) -> the encoder's outputs by name.

    Raises: ArtifactError when it does not take one picture of that size.
    """
    return open_encoder(model, name, threads)(frame)


@dataclass(frozen=True)
class Crew:
    """Decode prompts side by side, each on a thread of its own, in one session that all of them share.

    No operation then waits for another thread's share of it, which costs a tenth with two threads.
    """

    threads: int
    open: Callable[[], Any]  # a session that works on the thread that calls it


class OnnxRuntimeRuntime(Runtime):
    """Run one graph, or an image graph whose outputs are kept and a prompt graph."""

    def __init__(
        self, spec: DecoderSpec, sessions: list[Any], device: str, chunk: int = DEFAULT_CHUNK,
        padded: PaddedShape | None = None, crew: Crew | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, chunk, padded)
        self._sessions, self._device, self._crew = sessions, device, crew
        self._shared: Any = None  # the crew's session, from the first batch on
        self._kept: dict[str, Any] = {}

    def placement(self) -> Placement:
        """Count the graph nodes that each execution provider took."""
        ort = require("onnxruntime", "onnxruntime", "running ONNX files")
        counts: Counter[str] = Counter()
        for session in self._sessions:
            for part in session.get_provider_graph_assignment_info():
                counts[_device_of(part.ep_name)] += len(part.get_nodes())
        details = {
            "onnxruntime": ort.__version__,
            "providers": self._sessions[0].get_providers(),
            "threads": self._sessions[0].get_session_options().intra_op_num_threads or os.cpu_count(),
            "counted": "graph nodes",
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
        names = [tensor.name for tensor in self.spec.outputs]
        values = session.run(names, {**self._kept, **prompts})
        return dict(zip(names, [np.asarray(value) for value in values], strict=True))

    def _chunk_of(self, prompts: int) -> int:
        return 1 if self._crew is not None and prompts >= self._crew.threads else self._chunk

    def _decode_parts(self, parts: Sequence[dict[str, FloatArray]]) -> Iterator[Outputs]:
        if self._crew is None or len(parts) < self._crew.threads:
            yield from super()._decode_parts(parts)
            return
        if self._shared is None:
            self._shared = self._sessions[-1] if self._crew.threads == 1 else self._crew.open()
        with ThreadPoolExecutor(self._crew.threads, "samx-decode") as pool:
            yield from pool.map(partial(self._run, self._shared), parts)


def devices() -> list[str]:
    """Name the devices this installation of ONNX Runtime can be asked for."""
    ort = require("onnxruntime", "onnxruntime", "running ONNX files")
    available = ort.get_available_providers()
    return [device for device, provider in PROVIDERS.items() if provider in available]


def _device_of(provider: str) -> str:
    return {name: device for device, name in PROVIDERS.items()}.get(provider, provider)


def _session(name: str, model: bytes, device: str, threads: int | None) -> Any:
    """Load bytes whose hash was checked; never fall back to another device."""
    ort = require("onnxruntime", "onnxruntime", "running ONNX files")
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
    try:
        return ort.InferenceSession(model, options, providers=[provider])
    except Exception as cause:  # onnxruntime's own exceptions share no base class
        raise ArtifactError(f"ONNX Runtime cannot load '{name}'", found=str(cause), fix="Export it again.") from cause
