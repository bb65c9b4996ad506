"""PictureGraph: an image encoder that takes levels; it normalises and pads inside, where nobody gets that wrong."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from samx.models.encoders.base import Encoder
from samx.models.graph import Graph
from samx.models.shape_range import ShapeRange
from samx.models.spec import LEAST_RANGE, PIXELS, PIXELS_OF_OLD, DecoderSpec, TensorSpec

WHITE = 255.0
ONE_PICTURE = ShapeRange(1, 1, 1)
ALLOWED = frozenset({"Resize"})  # of encoders' feature pyramids, by whole numbers


class PictureGraph(nn.Module):
    """Normalise pictures as an encoder's upstream does, and encode them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: Encoder, spec: DecoderSpec) -> None:
        super().__init__()
        self.encoder = encoder
        self.own_range = (spec.pixels or PIXELS_OF_OLD) == "minmax"
        mean, std = PIXELS["unit" if self.own_range else spec.pixels or PIXELS_OF_OLD]
        scale = 1 / (WHITE * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self.register_buffer("scale", scale.float().reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().reshape(1, 3, 1, 1), persistent=False)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures, whose values beyond their valid part do not matter.

        Shapes: picture (B, S, S, 3), RGB from 0 to 255[, valid (B, 2) of int32, height and width] -> B of each image
        input.
        """
        pixels = inputs[0].float().permute(0, 3, 1, 2)  # TensorRT does nothing with bytes but cast them
        inside = valid_part(inputs[1], pixels.shape[-1]) if len(inputs) > 1 else None
        pixels = own_range(pixels, inside) if self.own_range else pixels * self.scale + self.shift
        encoded: tuple[Tensor, ...] = self.encoder(pixels if inside is None else pixels * inside)
        return encoded


def valid_part(valid: Tensor, size: int) -> Tensor:
    """Return 1 in the part of a frame that its picture fills, else 0. Shapes: (B, 2) -> (B, 1, size, size)."""
    place = torch.arange(size, dtype=valid.dtype)
    rows, columns = ((place < valid[:, side : side + 1]).float() for side in (0, 1))
    return rows[:, None, :, None] * columns[:, None, None, :]


def own_range(pixels: Tensor, inside: Tensor | None) -> Tensor:
    """Move each picture's least and largest value to 0 and 1. Shapes: (B, 3, S, S), (B, 1, S, S) -> (B, 3, S, S)."""
    beyond = None if inside is None else 1 - inside
    least = (pixels if beyond is None else pixels + WHITE * beyond).amin((1, 2, 3), keepdim=True)
    most = (pixels if inside is None else pixels * inside).amax((1, 2, 3), keepdim=True)
    return (pixels - least) / (most - least).clamp(min=LEAST_RANGE)


def picture_graph(encoder: Encoder, spec: DecoderSpec, pictures: ShapeRange = ONE_PICTURE) -> Graph:
    """Return the graph of an image encoder, for so many pictures a call.

    Shapes: picture (B, S, S, 3) of spec.picture_type[, valid (B, 2) of int32] -> DecoderSpec.image_inputs, B of each.
    """
    batch, size = pictures.max if pictures.min == pictures.max else "pictures", encoder.picture_px
    inputs = [TensorSpec("picture", (batch, size, size, 3), "1", "RGB from 0 to 255, resized", spec.picture_type)]
    if spec.keeps_aspect:
        inputs.append(TensorSpec("valid", (batch, 2), "px", "height and width that the picture fills", "int32"))
    outputs = tuple(replace(tensor, shape=(batch, *tensor.shape[1:])) for tensor in spec.image_inputs)
    return Graph("encoder", PictureGraph(encoder, spec), tuple(inputs), outputs, {"role": "encoder"}, ALLOWED)
