"""Attention among the tokens of a picture, as transformers of pictures share it. No tensor has more than five axes.

Every form here is exact. A bias of k moves all scores of a query alike and drops out; a bias of v passes through the
weights, whose sum is one, into the projection after it. With neither, a padded token is zero after the projection too,
so that maps are projected before they are cut into windows, without their padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Moved = Callable[[Tensor, Tensor, int], Tensor]
QUERIES = 512  # at a time: all scores of a large map do not fit into a processor's memory, and hardly into a computer's


class Attention(nn.Module):
    """Hold the projections of attention: under upstreams' names when it is loaded, folded after that."""

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width_in, 3 * width), nn.Linear(width, width)

    @property
    def scale(self) -> float:
        """Return what a query is multiplied by."""
        return float((self.proj.in_features // self.heads) ** -0.5)

    @torch.no_grad()
    def fold(self) -> None:
        """Split the projection in three, fold the scale into q's, and the biases of k's and v's away."""
        (q, k, v), (q_bias, _, v_bias) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        self.q, self.k, self.v = layer(q * self.scale, q_bias * self.scale), layer(k), layer(v)
        self.proj.bias.add_(self.proj.weight @ v_bias)
        del self.qkv

    def split(self, tokens: Tensor) -> Tensor:
        """Split projected tokens into heads. Shapes: (N, H, W, C) -> (N, heads, H * W, C / heads)."""
        rows, columns, width = tokens.shape[1:]
        return tokens.reshape(-1, rows * columns, self.heads, width // self.heads).transpose(1, 2)

    def joined(self, tokens: Tensor, side: int) -> Tensor:
        """Join heads. Shapes: (N, heads, side * side, C / heads) -> (N, side, side, C)."""
        return tokens.transpose(1, 2).reshape(-1, side, side, self.proj.in_features)


def layer(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Return a layer with these weights."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    made.load_state_dict(values, assign=True)
    return made.requires_grad_(False)


def fold_attention(encoder: nn.Module) -> None:
    """Fold all attention of an encoder; once, after loading."""
    for module in [*encoder.modules()]:
        if isinstance(module, Attention):
            module.fold()


def attended(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: int = QUERIES,
    moved: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Attend, a number of queries at a time. Shapes: (N, heads, tokens, C) each -> as q.

    moved: changes the scores of queries; it is given scores, queries and the number of the first one.
    """
    keys, parts = k.transpose(-2, -1), []
    for start in range(0, q.shape[-2], queries):
        few = q[:, :, start : start + queries]
        scores = few @ keys
        scores = scores if moved is None else moved(scores, few, start)
        parts.append(scores.softmax(-1) @ v)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def cut(tokens: Tensor, window: int) -> Tensor:
    """Cut square maps into windows, zeros beyond them. Shapes: (B, S, S, C) -> (B * windows, window, window, C)."""
    side, width = tokens.shape[2:]
    beyond = -side % window
    padded = nn.functional.pad(tokens, (0, 0, 0, beyond, 0, beyond)) if beyond else tokens
    across = (side + beyond) // window
    strips = padded.reshape(-1, window, across, window * width).transpose(1, 2)
    return strips.reshape(-1, window, window, width)


def uncut(windows: Tensor, side: int) -> Tensor:
    """Join windows again. Shapes: (B * windows, window, window, C) -> (B, side, side, C)."""
    window, width = windows.shape[2:]
    across = -(-side // window)
    strips = windows.reshape(-1, across, window, window * width).transpose(1, 2)
    return strips.reshape(-1, across * window, across * window, width)[:, :side, :side]
