"""Smaller weights for Core ML: 8-bit linear, or palettes. Arithmetic stays float16."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samx.errors import UsageError
from samx.extras import require
from samx.formats.coreml.library import open_coremltools

PURPOSE = "smaller Core ML weights"
PALETTE_EXTRA = "coreml-palettes"
SMALLEST = 2048  # elements of a weight that is worth a scale or a palette
# Left in float16: a twelfth of the weights, in which 8 bits cost the masks more than in all others together. Their
# errors reach all image tokens at once (docs/devices/apple.md has the figures).
SPARED = re.compile(r"(^|\.)(image_to_token|planes)\.")
SEED = 0  # of the clustering, so that an export can be repeated


# coremltools' graph pass, its class of settings, and these.
COMPRESSIONS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "linear8": (
        "compression::linear_quantize_weights", "OpLinearQuantizerConfig",
        {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel"},
    ),
    # The palette is found before conversion, once for all functions: here it is only read off.
    "palette8": ("compression::palettize_weights", "OpPalettizerConfig", {"mode": "unique"}),
}  # fmt: skip
PALETTE_BITS: Mapping[str, int] = {"palette8": 8}  # of a palette's entries


def check_compression(name: str) -> None:
    """Check that samx knows this way to store weights, and that it can be done here.

    Raises: UsageError; MissingExtraError.
    """
    if name not in COMPRESSIONS:
        raise UsageError("unknown way to store weights", found=repr(name), expected=" or ".join(COMPRESSIONS))
    if name in PALETTE_BITS:
        require("sklearn", PALETTE_EXTRA, f"weights as {name}")


def prepare(module: nn.Module, name: str) -> None:
    """Bring each weight that is stored by a palette to its values; linear weights need no preparation."""
    bits = PALETTE_BITS.get(name)
    for path, conv in _large(module):
        if bits is not None and not SPARED.search(path):
            conv.weight.data = _clustered(conv.weight.detach(), bits)


def spared(module: nn.Module) -> list[str]:
    """Name the weights that keep their type, as the converter names them."""
    return [f"p_{path.replace('.', '_')}_weight" for path, _ in _large(module) if SPARED.search(path)]


def _large(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for path, part in module.named_modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() >= SMALLEST:
            yield path, part


def _clustered(weight: Tensor, bits: int) -> Tensor:
    """Replace each value by the centre of its cluster, as many clusters as a palette has entries."""
    cluster = require("sklearn.cluster", PALETTE_EXTRA, "palettes of weights")
    values = weight.flatten().float().unsqueeze(1).numpy()
    means = cluster.KMeans(2**bits, n_init=1, random_state=SEED).fit(values)
    centres = torch.from_numpy(means.cluster_centers_[:, 0]).to(weight.dtype)
    return centres[torch.from_numpy(means.labels_).long()].reshape(weight.shape)


def add_compression(pipeline: Any, name: str, kept: Collection[str]) -> None:
    """Let a pipeline end with compressing the weights of convolutions, but for those that are kept."""
    _append(
        pipeline, name, lambda config: {"op_type_configs": {"conv": config}, "op_name_configs": dict.fromkeys(kept)}
    )


def add_chosen(pipeline: Any, name: str, weights: Collection[str]) -> None:
    """Let a pipeline end with compressing these weights, by the names of their constants, and no others."""
    _append(pipeline, name, lambda config: {"op_name_configs": dict.fromkeys(weights, config)})


def _append(pipeline: Any, name: str, choose: Callable[[Any], dict[str, Any]]) -> None:
    graph_pass, kind, settings = COMPRESSIONS[name]
    optimize = open_coremltools(PURPOSE).optimize.coreml
    config = getattr(optimize, kind)(weight_threshold=SMALLEST, **settings)
    pipeline.append_pass(graph_pass)
    pipeline.set_options(graph_pass, {"config": optimize.OptimizationConfig(**choose(config))})
