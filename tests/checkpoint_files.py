"""Decoders with random weights that matter, and their state under the names that publishers use."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from samx.models.reference import ReferenceDecoder
from samx.models.spec import DecoderSpec, family_spec, sam1_spec, sam2_spec

# A complete SAM 1 decoder of 0.1 MiB; 8 heads still divide its widths.
SMALL: dict[str, Any] = {
    "width": 32,
    "mlp_width": 48,
    "cross_attention_width": 16,
    "iou_head_width": 24,
    "mask_prompt_channels": 8,
}
# Learned tokens, labels and the matrix of the positional encoding: of the size of a normed token.
EMBEDDING = re.compile(r"(?:_tokens?|_embed|point_embed(?:dings)?\.\d)\.weight$|gaussian_matrix$|positional_embedding$")
NOISE = 0.2  # of biases and around the ones of a norm: none of them may be mistaken for its default


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a value that shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            tensor.copy_(_value(name, tensor, generator))


def _value(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator)
    if EMBEDDING.search(name):
        return noise
    if tensor.ndim >= 2:
        fan_in = tensor.shape[0] if "upscal" in name else tensor[0].numel()
        return noise * math.sqrt(2.0 / fan_in)
    return NOISE * noise + float("norm" in name and name.endswith("weight"))


def small_spec(**changes: Any) -> DecoderSpec:
    """Describe a small SAM 1 decoder."""
    return sam1_spec(**{**SMALL, **changes})


def random_decoder(spec: DecoderSpec, seed: int = 0) -> ReferenceDecoder:
    """Build a reference decoder with random weights."""
    decoder: ReferenceDecoder = spec.rules.reference_class()(spec).eval().requires_grad_(False)
    randomize(decoder, seed)
    return decoder


def meta_sam1(**changes: Any) -> dict[str, Tensor]:
    """Give the state of a small SAM 1 model as Meta saves it, with a token image encoder that states no size."""
    state = random_decoder(small_spec(**changes)).state_dict()
    return {**state, "image_encoder.neck.0.weight": torch.zeros(32, 4, 1, 1)}


def syscv_sam_hq() -> dict[str, Tensor]:
    """Give the state of a small HQ-SAM as SysCV saves it, with a token image encoder that states no size."""
    state = random_decoder(family_spec("sam_hq", **SMALL, interm_width=8)).state_dict()
    return {**state, "image_encoder.neck.0.weight": torch.zeros(32, 4, 1, 1)}


def syscv_sam_hq2(**changes: Any) -> dict[str, Tensor]:
    """Give the state of an HQ-SAM 2 as SysCV saves it."""
    return _as_sam2(family_spec("sam_hq2", **changes))


def meta_sam2(**changes: Any) -> dict[str, Tensor]:
    """Give the state of a SAM 2 model as Meta saves it."""
    return _as_sam2(sam2_spec(**changes))


def _as_sam2(spec: DecoderSpec) -> dict[str, Tensor]:
    """Return a state with some of the parts that are no decoder."""
    decoder = random_decoder(spec)
    state = {f"sam_{name}": tensor for name, tensor in decoder.state_dict().items()}
    for ours, theirs in ((".mlp.lin1.", ".mlp.layers.0."), (".mlp.lin2.", ".mlp.layers.1.")):
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    others = {
        "sam_mask_decoder.conv_s0.weight": torch.ones(32, 256, 1, 1),
        "sam_mask_decoder.conv_s0.bias": torch.ones(32),
        "sam_mask_decoder.conv_s1.weight": torch.ones(64, 256, 1, 1),
        "sam_mask_decoder.conv_s1.bias": torch.ones(64),
        "image_encoder.trunk.pos_embed": torch.zeros(1, 8, 2, 2),
        "memory_attention.layers.0.norm1.weight": torch.ones(8),
        "obj_ptr_proj.layers.0.weight": torch.ones(8, 8),
        "no_obj_ptr": torch.ones(1, 8),
    }
    return {**state, **others}
