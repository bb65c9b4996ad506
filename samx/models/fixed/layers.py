"""Linear layers, norms and attention on (N, C, 1, S) tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.reference import MLP, Attention


def pointwise(layer: nn.Linear, scale: float = 1.0) -> nn.Conv2d:
    """Copy a linear layer as a 1x1 convolution, scaled. Shapes of its forward: (N, in, 1, S) -> (N, out, 1, S)."""
    conv = nn.Conv2d(layer.in_features, layer.out_features, 1, dtype=layer.weight.dtype)
    conv.weight.data = layer.weight.detach().unsqueeze(-1).unsqueeze(-1) * scale
    assert conv.bias is not None
    conv.bias.data = layer.bias.detach() * scale
    return conv


@torch.library.custom_op("samx::channel_norm", mutates_args=())
def normalised(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise over channels: to PyTorch several operations, to Core ML one (see exporters/coreml_convert.py).

    In float16 each of the several would round. Shapes: (N, C, H, S), (C,) x 2 -> (N, C, H, S).
    """
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1).contiguous()


@normalised.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


class ChannelNorm(nn.Module):
    """Normalise over channels."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, H, S) -> (N, C, H, S)."""
        out: Tensor = normalised(x, self.weight, self.bias, self.eps)
        return out


def channel_norm(norm: nn.LayerNorm) -> ChannelNorm:
    """Copy a layer norm over the last axis as one over channels."""
    return ChannelNorm(norm.weight, norm.bias, norm.eps)


class PointwiseMLP(nn.Module):
    """Stack 1x1 convolutions with ReLU between them."""

    def __init__(self, layers: Sequence[nn.Linear], sigmoid: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(pointwise, layers))
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, in, 1, S) -> (N, out, 1, S)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        x = self.layers[-1](x)
        return x.sigmoid() if self.sigmoid else x


def pointwise_mlp(source: MLP | nn.Linear) -> PointwiseMLP:
    """Copy a reference MLP, or a single layer."""
    if isinstance(source, nn.Linear):
        return PointwiseMLP([source])
    return PointwiseMLP(cast(Sequence[nn.Linear], list(source.layers)), source.sigmoid)


class HeadedAttention(nn.Module):
    """Project to heads and back; the subclasses say which side the softmax runs over."""

    def __init__(self, source: Attention) -> None:
        super().__init__()
        self.heads = source.heads
        self.query = pointwise(source.q_proj, 1 / math.sqrt(source.q_proj.out_features // source.heads))
        self.key, self.value = pointwise(source.k_proj), pointwise(source.v_proj)
        self.out = pointwise(source.out_proj)

    def split(self, x: Tensor) -> Tensor:
        """Shapes: (N, h*d, 1, S) -> (N, h, d, S)."""
        return x.reshape(x.shape[0], self.heads, -1, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """Shapes: (N, h, d, S) -> (N, C, 1, S)."""
        out: Tensor = self.out(x.reshape(x.shape[0], -1, 1, x.shape[-1]))
        return out


class FromTokens(HeadedAttention):
    """Let tokens attend to tokens or to image tokens."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, empty: Tensor | None = None) -> Tensor:
        """Shapes: (N, C, 1, T), (N, C, 1, S) x 2 [, (N, 1, 1, S) for the scores] -> (N, C, 1, T)."""
        q, k, v = self.split(self.query(queries)), self.split(self.key(keys)), self.split(self.value(values))
        scores = q.transpose(-1, -2) @ k  # (N, h, T, S)
        weights = (scores if empty is None else scores + empty).softmax(-1)
        return self.join(v @ weights.transpose(-1, -2))


class FromImage(HeadedAttention):
    """Let image tokens attend to tokens; the image tokens stay on the last axis all along."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, empty: Tensor) -> Tensor:
        """Shapes: (N, C, 1, L), (N, C, 1, T) x 2, (N, 1, T, 1) for the scores -> (N, C, 1, L)."""
        q, k, v = self.split(self.query(queries)), self.split(self.key(keys)), self.split(self.value(values))
        scores = k.transpose(-1, -2) @ q  # (N, h, T, L)
        return self.join(v @ (scores + empty).softmax(2))
