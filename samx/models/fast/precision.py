"""Half precision with groups kept in float32: every group of operations in a type of its own, with casts at its border.

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
# Which modules of the fast decoder each group holds; data for `samx bisect` too, in the order of the computation.
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
    "high-quality features": r"hq_features",
    "high-quality mask": r"hq_mask",
    "IoU head": r"iou_head",
    "object score": r"object_score_head",
    "object pointer": r"object_pointer",
}
TAKES_INPUTS = ("point encoding", "mask prompts")  # straight from the border, where everything is float32
# Float16 counts pixels up to 2048 only, and sine and cosine of a pixel's phase magnify its error.
KEEP_FP32 = frozenset({"point encoding"})


def groups_of(decoder: FastDecoder) -> list[str]:
    """Name the groups that a decoder has, the stream last."""
    return [*(name for name in GROUPS if list(_modules(decoder, name))), STREAM]


def set_precision(
    decoder: FastDecoder, keep_fp32: Collection[str] = KEEP_FP32, half: torch.dtype = torch.float16
) -> FastDecoder:
    """Turn a decoder into half precision but for the groups that are kept; inputs and outputs stay float32.

    Raises: UsageError for a group that no decoder has.
    """
    unknown = sorted(set(keep_fp32) - {*GROUPS, STREAM})
    if unknown:
        raise UsageError(
            "unknown group of operations", found=", ".join(unknown), expected=" or ".join((*GROUPS, STREAM))
        )
    stream = torch.float32 if STREAM in keep_fp32 else half
    held: dict[str, torch.dtype] = {}  # by module name, what its tensors shall be
    for name in GROUPS:
        dtype = torch.float32 if name in keep_fp32 else half
        for path, module in _modules(decoder, name):
            held[path] = dtype
            if dtype != stream or name in TAKES_INPUTS:
                cast_at_border(module, dtype, stream)
    for path, module in decoder.named_modules():
        convert(module, _dtype_of(path, held, stream))
    decoder.stream = stream
    return decoder


def _modules(decoder: FastDecoder, group: str) -> Iterator[tuple[str, nn.Module]]:
    """Find a group's modules; one inside another group's keeps to its own."""
    pattern = re.compile(GROUPS[group])
    return ((path, module) for path, module in decoder.named_modules() if pattern.fullmatch(path))


def _dtype_of(path: str, held: Mapping[str, torch.dtype], stream: torch.dtype) -> torch.dtype:
    owners = [name for name in held if path == name or path.startswith(f"{name}.")]
    return held[max(owners, key=len)] if owners else stream


def convert(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert a module's own tensors, not those of the modules in it."""
    for name, parameter in module.named_parameters(recurse=False):
        module.register_parameter(name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.is_floating_point():
            module.register_buffer(name, buffer.to(dtype))


def cast_at_border(module: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
    """Let a module compute in one type and be given and return another."""
    module.register_forward_pre_hook(lambda _, arguments: tuple(_cast(value, inside) for value in arguments))
    module.register_forward_hook(lambda _, __, output: _cast(output, outside))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(one, dtype) for one in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
