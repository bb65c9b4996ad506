"""Run a decoder module in PyTorch: the reference that everything is compared with, or the fast form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samx.errors import ImageError
from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.encoders.base import Encoder
from samx.models.fast.decoder import FastDecoder
from samx.models.load import torch_device
from samx.models.reference import ReferenceDecoder
from samx.models.session import Feed, FloatArray, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.cuda_arrays import TakesGpuArrays, check_shapes
from samx.runtimes.heap import kept_heap

# PyTorch asks the system for every large tensor anew: in chunks of sixteen, half of the time goes into fresh pages.
TORCH_CHUNK = 2


class TorchRuntime(TakesGpuArrays):
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

    def _set_gpu_image(self, image: Mapping[str, Any]) -> None:
        """Copy features on the GPU: they are the caller's, who may change them."""
        found = {name: _borrowed(value) for name, value in image.items()}
        check_shapes({name: tuple(value.shape) for name, value in found.items()}, self.spec)
        for name, value in found.items():
            if value.dtype != torch.float32:
                raise ImageError(f"{name} has the wrong type", found=value.dtype, expected="float32")
        self._image = {name: value.to(self._device, copy=True) for name, value in found.items()}

    @torch.inference_mode()
    def _decode(self, prompts: Feed) -> Outputs:
        outputs = self._module(**self._image, **self._tensors(prompts))
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    def _tensors(self, feed: Feed) -> dict[str, Tensor]:
        return {name: torch.tensor(value, device=self._device) for name, value in feed.items()}


def _borrowed(value: Any) -> Tensor:
    """Look at an array on the GPU as a tensor, once the work that makes it is done."""
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__dlpack__"):
        return torch.from_dlpack(value)  # type: ignore[attr-defined]  # not in its own list of names
    torch.cuda.synchronize()
    return torch.as_tensor(value, device="cuda")


def reference_encoder(
    module: Encoder, spec: DecoderSpec, device: str = "cpu"
) -> Callable[[FloatArray], Mapping[str, Any]]:
    """Return a checkpoint's image encoder in PyTorch: from normalised pixels to the decoder's image inputs.

    On a GPU they stay there, as tensors.
    """
    names, place = [tensor.name for tensor in spec.image_inputs], torch_device(device)
    module = module.to(place)

    def encode(pixels: FloatArray) -> Mapping[str, Any]:
        with torch.inference_mode(), kept_heap():
            found = dict(zip(names, module(torch.from_numpy(pixels).to(place)), strict=True))
        if place.type != "cpu":
            return found
        return {name: np.ascontiguousarray(value.numpy()) for name, value in found.items()}

    return encode


def reference_session(loaded: LoadedDecoder, spec: DecoderSpec) -> TorchRuntime:
    """Open a checkpoint's decoder in PyTorch, never through an exported file."""
    return TorchRuntime(build_reference(replace(loaded, spec=spec)))
