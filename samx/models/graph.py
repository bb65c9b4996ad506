"""Graph: what an exporter writes, a module with named inputs and outputs; it does not know what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from samx.models.spec import TensorSpec

# torch.export specialises on sizes 0 and 1, and takes equal sizes for related ones: examples avoid both, and every
# size that the decoder has of its own, so that a test sees an example's size if it is baked in.
EXAMPLE_SIZES = {"prompts": 13, "points": 9, "pictures": 11}


@dataclass(frozen=True)
class Graph:
    """Pair a module with its inputs, its outputs and what the file shall say about itself."""

    role: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)  # for clients, written into the file
    allows: frozenset[str] = frozenset()  # operators that no decoder may have, and this graph may


@dataclass(frozen=True)
class Graphs:
    """Hold the graphs of one model and the facts about their form that the manifest keeps."""

    graphs: tuple[Graph, ...]
    facts: Mapping[str, Any]


def examples(specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """Make inputs of the right shapes; their values leave no trace in the graph, which the gate proves."""
    sizes = [[EXAMPLE_SIZES[d] if isinstance(d, str) else d for d in spec.shape] for spec in specs]
    types = [getattr(torch, spec.dtype) for spec in specs]
    values = [0.5 if dtype.is_floating_point else 1 for dtype in types]
    return tuple(torch.full(size, value, dtype=of) for size, value, of in zip(sizes, values, types, strict=True))


def dynamic_shapes(specs: Sequence[TensorSpec]) -> tuple[dict[int, Any] | None, ...]:
    """Name the axes of each input that may have any size."""
    dims = {name: torch.export.Dim(name) for name in EXAMPLE_SIZES}
    return tuple({i: dims[d] for i, d in enumerate(spec.shape) if isinstance(d, str)} or None for spec in specs)
