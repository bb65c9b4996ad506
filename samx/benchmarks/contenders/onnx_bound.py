"""samx's ONNX export in ONNX Runtime, on tensors that stay on the device where PyTorch has them."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samx.benchmarks.contenders import Opened, Setting
from samx.benchmarks.contenders.pytorch import Fed, Tensors, TorchSession, exact_arithmetic, in_order
from samx.errors import UnavailableError
from samx.exporters import onnx as exporter
from samx.exporters.base import ExportJob, export_decoder
from samx.exporters.onnx import OnnxOptions
from samx.extras import require
from samx.models.shape_range import ShapeRange
from samx.models.spec import DecoderSpec
from samx.runtimes.onnxruntime import PROVIDERS

PROMPTS = ShapeRange(1, 64, 1024)  # a call's; any number works
# Without TF32, so that float32 is float32.
PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {"cuda": {"use_tf32": "0"}, "cpu": {}}
# Operations on shapes may stay on the processor, as ONNX Runtime chooses; where one of these does, it fell back.
ARITHMETIC = frozenset(
    ("MatMul", "Gemm", "FusedMatMul", "Einsum", "Conv", "ConvTranspose", "Softmax", "Gelu", "LayerNormalization",
     "SkipLayerNormalization", "Attention", "MultiHeadAttention")
)  # fmt: skip


def open_bound(setting: Setting) -> Opened:
    """Export image and prompt graph in float32, and run them on the setting's device.

    Raises: MissingExtraError without the export's libraries; UnavailableError where ONNX Runtime does not use it.
    """
    simplify = importlib.util.find_spec("onnxsim") is not None
    options = OnnxOptions(split=True, simplify=simplify, prompts=PROMPTS)
    device, spec = exact_arithmetic(setting), setting.loaded.spec
    with tempfile.TemporaryDirectory(prefix="samx-benchmark-") as folder:
        exported = export_decoder(exporter, ExportJob(setting.loaded, spec, options), Path(folder))
        models = [Path(folder, f"{role}.onnx").read_bytes() for role in ("image", "prompt")]
    image, prompt = (open_session(model, device.type) for model in models)
    names = [output.name for output in image.get_outputs()]

    def bind(tensors: Tensors) -> Bound:
        given = {tensor.name: value.cpu().numpy() for tensor, value in zip(spec.image_inputs, tensors, strict=True)}
        values = zip(names, image.run(None, given), strict=True)
        return Bound(prompt, {name: torch.tensor(value, device=device) for name, value in values}, spec, device)

    session = TorchSession(spec, device, bind, {device.type: arithmetic(prompt)}, in_order(spec))
    return Opened(session, sum(map(len, models)), exported.options["form"], keeps_image=True)


def open_session(model: bytes, device: str) -> Any:
    """Load a graph for a device, or not at all.

    Raises: UnavailableError where ONNX Runtime has no provider for it, or leaves arithmetic to another.
    """
    ort = require("onnxruntime", "onnxruntime", "running ONNX files")
    provider, available = PROVIDERS[device], ort.get_available_providers()
    if provider not in available:
        raise UnavailableError(f"this ONNX Runtime has no {provider}", found=", ".join(available))
    if device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's libraries as PyTorch brings them
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model, options, providers=[(provider, dict(PROVIDER_OPTIONS[device]))])
    refuse_fallback(session, provider)
    return session


def refuse_fallback(session: Any, provider: str) -> None:
    """Check that a provider took all arithmetic of a graph.

    Raises: UnavailableError naming what it did not take.
    """
    used = session.get_providers()
    if used[0] != provider:
        raise UnavailableError(f"ONNX Runtime did not load {provider}", found=", ".join(used))
    parts = session.get_provider_graph_assignment_info()
    elsewhere = {node.op_type for part in parts if part.ep_name != provider for node in part.get_nodes()}
    if left := sorted(elsewhere & ARITHMETIC):
        raise UnavailableError(f"{provider} did not take all of the graph", found=", ".join(left))


def arithmetic(session: Any) -> int:
    """Count a graph's operations that compute, all of which its provider took."""
    parts = session.get_provider_graph_assignment_info()
    return sum(node.op_type in ARITHMETIC for part in parts for node in part.get_nodes())


class Bound(Fed):
    """A prompt graph whose inputs and outputs are PyTorch's tensors."""

    def __init__(self, session: Any, state: Mapping[str, Tensor], spec: DecoderSpec, device: torch.device) -> None:
        super().__init__()
        self._session, self._state, self._spec, self._device = session, state, spec, device

    def _prepare(self) -> Callable[[], object]:
        sizes = {"prompts": len(self._given[0])}
        shapes = [[sizes[d] if isinstance(d, str) else d for d in output.shape] for output in self._spec.outputs]
        self._outputs = tuple(torch.empty(shape, device=self._device) for shape in shapes)
        binding = self._session.io_binding()
        names = [tensor.name for tensor in self._spec.prompt_inputs]
        for name, tensor in {**self._state, **dict(zip(names, self._given, strict=True))}.items():
            binding.bind_input(name, *self._place(tensor))
        for output, tensor in zip(self._spec.outputs, self._outputs, strict=True):
            binding.bind_output(output.name, *self._place(tensor))
        return lambda: self._work_on(binding)

    def _work_on(self, binding: Any) -> None:
        if self._device.type != "cpu":
            torch.cuda.synchronize(self._device)  # ONNX Runtime works on a stream of its own
        self._session.run_with_iobinding(binding)

    def _place(self, tensor: Tensor) -> tuple[Any, ...]:
        index = self._device.index or 0
        return self._device.type, index, np.float32, tuple(tensor.shape), tensor.data_ptr()
