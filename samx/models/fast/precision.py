"""Half precision with float32 islands: every group of operations in a type of its own, with casts at its border.

A group is a set of modules; what stands between the groups (sums, GELU, the image as it flows on) is the stream.
LayerNorm keeps its statistics in float32 whatever type it takes: torch does so, and ONNX's operator (stash_type).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samx.errors import UsageError
from samx.models.fast.decoder import FastDecoder

STREAM = "sums"
# Which modules of the deploy decoder each group holds; data for `samx bisect` too, in the order of the computation.
GROUPS: Mapping[str, str] = {
    "point encoding": r"points\.position",
    "mask prompts": r"masks",
    "image projections": r"transformer\.layers\.0\.(token_to_image\.(keys|values)|image_to_token\.queries)",
    "self-attention": r"transformer\.layers\.\d+\.tokens\.self_attention",
    "token MLP": r"transformer\.layers\.\d+\.tokens\.mlp",
    "token norms": r"transformer\.(layers\.\d+\.tokens\.norm\d|final_norm)",
    "token to image, layer 0": r"transformer\.layers\.0\.token_to_image",
    "token to image, layer 1": r"transformer\.layers\.1\.token_to_image",
    "token to image, final": r"transformer\.final_attention",
    "image to token, layer 0": r"transformer\.layers\.0\.image_to_token",
    "image to token, layer 1": r"transformer\.layers\.1\.image_to_token",
    "image norms": r"transformer\.layers\.\d+\.norm",
    "upscaling": r"(transformer|head)\.grow",
    "upscaling norm": r"head\.norm",
    "mask weights": r"hypernetworks",
    "mask product": r"head\.product",
    "IoU head": r"iou_head",
    "object score": r"object_score_head",
}
TAKES_INPUTS = ("point encoding", "mask prompts")  # straight from the border, where everything is float32
# Float16 counts pixels up to 2048 only, and sine and cosine of a pixel's phase magnify its error.
ISLANDS = frozenset({"point encoding"})


def groups_of(decoder: FastDecoder) -> list[str]:
    """Name the groups that a decoder has, the stream last."""
    return [*(name for name in GROUPS if list(_modules(decoder, name))), STREAM]


def set_precision(
    decoder: FastDecoder, islands: Collection[str] = ISLANDS, half: torch.dtype = torch.float16
) -> FastDecoder:
    """Turn a decoder into half precision but for its islands; inputs and outputs stay float32.

    Raises: UsageError for an island that no decoder has.
    """
    unknown = sorted(set(islands) - {*GROUPS, STREAM})
    if unknown:
        raise UsageError(
            "unknown group of operations", found=", ".join(unknown), expected=" or ".join((*GROUPS, STREAM))
        )
    stream = torch.float32 if STREAM in islands else half
    held: dict[str, torch.dtype] = {}  # by module name, what its tensors shall be
    for name in GROUPS:
        dtype = torch.float32 if name in islands else half
        for path, module in _modules(decoder, name):
            held[path] = dtype
            if dtype != stream or name in TAKES_INPUTS:
                _cast_at_border(module, dtype, stream)
    for path, module in decoder.named_modules():
        _convert(module, _dtype_of(path, held, stream))
    decoder.stream = stream
    return decoder


def _modules(decoder: FastDecoder, group: str) -> Iterator[tuple[str, nn.Module]]:
    """Find a group's modules; one inside another group's keeps to its own."""
    pattern = re.compile(GROUPS[group])
    return ((path, module) for path, module in decoder.named_modules() if pattern.fullmatch(path))


def _dtype_of(path: str, held: Mapping[str, torch.dtype], stream: torch.dtype) -> torch.dtype:
    owners = [name for name in held if path == name or path.startswith(f"{name}.")]
    return held[max(owners, key=len)] if owners else stream


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert a module's own tensors, not those of the modules in it."""
    for name, parameter in module.named_parameters(recurse=False):
        module.register_parameter(name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            module.register_buffer(name, buffer.to(dtype))


def _cast_at_border(module: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
    module.register_forward_pre_hook(lambda _, arguments: tuple(_cast(value, inside) for value in arguments))
    module.register_forward_hook(lambda _, __, output: _cast(output, outside))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
