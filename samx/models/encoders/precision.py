"""An image encoder in half precision: pixels are normalised in float32, and what half precision breaks stays so.

Norms that are one operation keep their statistics in float32 whatever type they take. Those that are written out, and
sums over a whole picture, say so with a class's `keep_fp32`: float16 ends at 65504, and has eleven bits.
"""

from __future__ import annotations

import torch

from samx.models.encoders.picture import PictureGraph
from samx.models.fast.precision import cast_at_border, convert
from samx.models.graph import Graph


def in_half(graph: Graph, half: torch.dtype = torch.float16) -> Graph:
    """Turn the encoder of a graph into half precision; its inputs and outputs stay as they are."""
    assert isinstance(graph.module, PictureGraph)
    encoder = graph.module.encoder
    kept = {path for path, module in encoder.named_modules() if getattr(module, "keep_fp32", False)}
    for path, module in encoder.named_modules():
        inside = any(path == owner or path.startswith(f"{owner}.") for owner in kept)
        convert(module, torch.float32 if inside else half)
        if path in kept:
            cast_at_border(module, torch.float32, half)
    cast_at_border(encoder, half, torch.float32)
    return graph
