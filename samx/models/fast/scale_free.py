"""A layer norm whose input may lack a factor, and which hands the next layer its bias: two channels more do both.

A layer norm divides by what all channels have in common, so a factor s per pixel need not be multiplied in, but for the
epsilon that is added to the variance. In place of x = s * y take y, centred, and two channels +a and -a with
a^2 = epsilon * C / 2 / s^2. The mean stays zero, and the variance over C + 2 channels is

    C / (C + 2) * (variance(y) + epsilon / s^2)

which, its root taken out of y, is the same as if s had been there and epsilon been added. What is left of the two
channels afterwards is a constant: the next layer's bias is a weight on it. A pass over the largest tensors is saved
each time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXTRA = 2
AFTER_NORM = (1.0, 0.0)  # what the two channels are behind the norm


def centred_outputs(weight: Tensor, channels: int) -> Tensor:
    """Centre a projection over the channels of each pixel, and append two that are zero.

    Shapes: (k * c, C) -> (k * (c + 2), C).
    """
    by_pixel = weight.unflatten(0, (-1, channels))
    return F.pad(by_pixel - by_pixel.mean(1, keepdim=True), (0, 0, 0, EXTRA)).flatten(0, 1)


def epsilon_bias(bias: Tensor, channels: int, eps: float) -> Tensor:
    """Centre a bias, and put the epsilon into its two more channels. Shapes: (k * c,) -> (k * (c + 2),)."""
    by_pixel = bias.unflatten(0, (-1, channels))
    root = math.sqrt(eps * channels / 2)
    extra = bias.new_tensor([root, -root]).expand(len(by_pixel), -1)
    return torch.cat([by_pixel - by_pixel.mean(1, keepdim=True), extra], dim=1).flatten()


def widened_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """Give the norm of channels and extra channels."""
    channels = norm.normalized_shape[0]
    weight, bias = norm.weight.detach(), norm.bias.detach()
    wide = nn.LayerNorm(channels + EXTRA, eps=0.0)
    wide.weight = nn.Parameter(F.pad(weight * math.sqrt(channels / (channels + EXTRA)), (0, EXTRA)))
    wide.bias = nn.Parameter(torch.cat([bias, bias.new_tensor(AFTER_NORM)]))
    return wide


def with_bias_row(weight: Tensor, bias: Tensor) -> Tensor:
    """Append a bias as weights on what GELU makes of the extra channels. Shapes: (c, m), (m,) -> (c + 2, m)."""
    one = F.gelu(bias.new_tensor(AFTER_NORM[0]))
    return torch.cat([weight, (bias / one).unsqueeze(0), torch.zeros_like(bias).unsqueeze(0)])
