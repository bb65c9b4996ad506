"""What an image encoder is: how a checkpoint's keys give it away, and what builds it.

Each architecture is one file, with a module in its upstream's parameter names. The module takes pixels as its upstream
does and returns the decoder's image inputs, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samx.errors import CheckpointError
from samx.models.spec import DecoderSpec

SHOWN = 3  # names in an error line
Weights = Mapping[str, Tensor]


class Encoder(nn.Module):
    """An image encoder as the decoder needs it."""

    picture_px: int  # side of the square that it takes; the decoder's frame is larger for some

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures. Shapes: (B, 3, S, S), normalised -> DecoderSpec.image_inputs, B of each."""
        raise NotImplementedError


@dataclass(frozen=True)
class Architecture:
    """Describe an architecture of image encoders."""

    name: str  # in manifests
    title: str  # as people call it
    marks: tuple[str, ...]  # regular expressions of names; all of them are found among an encoder's
    build: Callable[[Weights, DecoderSpec], Encoder]  # from weights under upstream's names, strictly
    renames: tuple[tuple[str, str], ...] = ()  # of others' layouts to upstream's names, applied in this order

    def has(self, names: Iterable[str]) -> bool:
        """Tell whether names are this architecture's."""
        names = list(names)
        return all(any(re.search(mark, name) for name in names) for mark in self.marks)

    def renamed(self, name: str) -> str:
        """Return a name as upstream has it."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name


def loaded_strictly(encoder: Encoder, weights: Weights, title: str) -> Encoder:
    """Load weights into a module, each of them, and return it ready to infer.

    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    problems = {
        "lacks weights": [name for name in expected if name not in found],
        "has weights that it should not have": [name for name in found if name not in expected],
        "has weights of the wrong shape": [
            f"{name} {found[name]} instead of {expected[name]}"
            for name in expected
            if found.get(name, expected[name]) != expected[name]
        ],
    }
    for problem, names in problems.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            raise CheckpointError(
                f"the image encoder ({title}) {problem}", found=", ".join(names[:SHOWN]) + more,
                expected=f"the weights of {title}", fix="Use the complete checkpoint, or export with --no-encoder.",
            )  # fmt: skip
    encoder.load_state_dict(dict(weights))
    return encoder.eval().requires_grad_(False)


class LayerNorm2d(nn.Module):
    """Normalise over channels. Shapes: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel, in one fused operation over the last axis."""
        channels_last = x.permute(0, 2, 3, 1)
        normed = nn.functional.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)
