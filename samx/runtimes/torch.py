"""Run a decoder module in PyTorch: the reference that everything is compared with, or the fast form."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from samx.errors import UnavailableError, UsageError
from samx.models.checkpoint import LoadedDecoder, build_reference
from samx.models.fast.decoder import FastDecoder
from samx.models.reference import ReferenceDecoder
from samx.models.session import Feed, Outputs, Placement
from samx.models.spec import DecoderSpec
from samx.runtimes.base import Runtime

# PyTorch asks the system for every large tensor anew: in chunks of sixteen, half of the time goes into fresh pages.
TORCH_CHUNK = 2


class TorchRuntime(Runtime):
    """Run the reference or the fast form on a torch device, in float32."""

    def __init__(self, module: ReferenceDecoder | FastDecoder, device: str = "cpu", chunk: int = TORCH_CHUNK) -> None:
        super().__init__(module.spec, chunk)
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


def torch_device(device: str | torch.device) -> torch.device:
    """Give a device of PyTorch's, seen to be there.

    Raises: UsageError for a name that it does not know; UnavailableError where it has none of this name.
    """
    try:
        found = torch.device(device)
    except RuntimeError as cause:
        raise UsageError("PyTorch knows no such device", found=f"'{device}'", expected="cpu, cuda or cuda:0") from cause
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ImportError) as cause:  # the last two from a build without it
        raise UnavailableError(
            f"PyTorch finds no {found.type.upper()} device", found=f"device '{device}'",
            expected="one that is there, and a build of torch for it", fix="Use --device cpu, or run 'samx doctor'.",
        ) from cause  # fmt: skip
    return found


def reference_session(
    loaded: LoadedDecoder, spec: DecoderSpec, form: Literal["reference", "deploy"] = "reference"
) -> TorchRuntime:
    """Open a checkpoint's decoder in PyTorch, never through an exported file."""

    reference = build_reference(replace(loaded, spec=spec))
    return TorchRuntime(reference if form == "reference" else FastDecoder(reference))
