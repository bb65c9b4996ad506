"""Run a decoder module in PyTorch: the reference that everything is compared with, or the fast form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.encoders.base import Encoder
from samx.models.fast.decoder import FastDecoder
from samx.models.load import torch_device
from samx.models.reference import ReferenceDecoder
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Runtime
from samx.runtimes.heap import kept_heap

# PyTorch asks the system for every large tensor anew: in chunks of sixteen, half of the time goes into fresh pages.
TORCH_CHUNK = 2


class TorchRuntime(Runtime):
    """Run the reference or the fast form on a torch device, in float32."""

    def __init__(self, module: ReferenceDecoder | FastDecoder, device: str = "cpu") -> None:
        super().__init__(module.spec, TORCH_CHUNK)
        self._device = torch_device(device)
        self._module = module.eval().to(self._device)
        self._image: dict[str, Tensor] = {}

    def placement(self) -> Placement:
        """Report the device that holds every parameter and buffer."""
        devices = [tensor.device.type for tensor in (*self._module.parameters(), *self._module.buffers())]
        counts = {name: devices.count(name) for name in sorted(set(devices))}
        details = {"torch": torch.__version__, "form": type(self._module).__name__, "counted": "parameters and buffers"}
        return Placement("torch", self._device.type, counts, details)

    def _set_image(self, image: Feed) -> None:
        self._image = self._tensors(image)

    @torch.inference_mode()
    def _decode(self, prompts: Feed) -> Outputs:
        outputs = self._module(**self._image, **self._tensors(prompts))
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def _tensors(self, feed: Feed) -> dict[str, Tensor]:
        return {name: torch.tensor(value, device=self._device) for name, value in feed.items()}


def reference_encoder(module: Encoder, spec: DecoderSpec) -> Callable[[FloatArray], Feed]:
    """Return a checkpoint's image encoder in PyTorch: from normalised pixels to the decoder's image inputs."""
    names = [tensor.name for tensor in spec.image_inputs]

    def encode(pixels: FloatArray) -> Feed:
        with torch.inference_mode(), kept_heap():
            found = module(torch.from_numpy(pixels))
        return {name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, found, strict=True)}

    return encode


def reference_session(loaded: LoadedDecoder, spec: DecoderSpec) -> TorchRuntime:
    """Open a checkpoint's decoder in PyTorch, never through an exported file."""
    return TorchRuntime(build_reference(replace(loaded, spec=spec)))
