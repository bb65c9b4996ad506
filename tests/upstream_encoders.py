"""Image encoders of upstream's own code, small and with random weights, and their state as publishers save it."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import torch
from checkpoint_files import meta_sam1, meta_sam2, randomize
from torch import Tensor, nn

from samx.models.encoders.hiera import Layout
from samx.models.spec import DecoderSpec

State = dict[str, Tensor]
WIDTH = 32  # of the small SAM 1 decoder
# Shallow, with every kind of block: (width, blocks a stage), and what no shape says.
SMALL_HIERA = (16, (1, 2, 3, 2))
SMALL_LAYOUT = Layout(heads=1, windows=(8, 4, 14, 7), everywhere=(4,))
FINE_LEVELS = {"conv_s0": 32, "conv_s1": 64}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, of the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def pictures(image_size: int, count: int = 2) -> Tensor:
    """Return pixels that differ from picture to picture."""
    return torch.randn(count, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))


def meta_vit(image_size: int, width: int = 48, blocks: int = 3, heads: int = 3, out: int = WIDTH) -> Any:
    """Build Meta's encoder of SAM 1; the block in the middle attends everywhere."""
    modeling = import_module("segment_anything.modeling")
    encoder = modeling.ImageEncoderViT(
        img_size=image_size, embed_dim=width, depth=blocks, num_heads=heads, use_rel_pos=True, window_size=14,
        global_attn_indexes=[1], out_chans=out, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    ).eval()  # fmt: skip
    randomize(encoder)
    return encoder.requires_grad_(False)


def meta_vit_state(encoder: nn.Module) -> State:
    """Return a SAM 1 checkpoint with this encoder."""
    decoder = {name: tensor for name, tensor in meta_sam1().items() if not name.startswith("image_encoder.")}
    return {**decoder, **{f"image_encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}}


class MetaHiera(nn.Module):
    """Meta's encoder of SAM 2, with what its predictor does to the features."""

    def __init__(self, width: int, blocks: tuple[int, ...], layout: Layout, positions: int = 7) -> None:
        super().__init__()
        backbones = "sam2.modeling.backbones."
        encoders, hiera = import_module(f"{backbones}image_encoder"), import_module(f"{backbones}hieradet")
        positional = import_module("sam2.modeling.position_encoding").PositionEmbeddingSine(256)
        trunk = hiera.Hiera(
            embed_dim=width, num_heads=layout.heads, stages=blocks, global_att_blocks=layout.everywhere,
            window_spec=layout.windows, window_pos_embed_bkg_spatial_size=(positions, positions),
        )  # fmt: skip
        neck = encoders.FpnNeck(
            positional, 256, [8 * width, 4 * width, 2 * width, width], fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )  # fmt: skip
        self.image_encoder = encoders.ImageEncoder(trunk, neck, scalp=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, 256))
        self.sam_mask_decoder = nn.ModuleDict({name: nn.Conv2d(256, n, 1) for name, n in FINE_LEVELS.items()})

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the decoder's image inputs."""
        fine, coarse, embedding = self.image_encoder(pixels)["backbone_fpn"]
        shifted = embedding + self.no_mem_embed.reshape(1, -1, 1, 1)
        return shifted, self.sam_mask_decoder["conv_s0"](fine), self.sam_mask_decoder["conv_s1"](coarse)


def meta_hiera(
    sizes: tuple[int, tuple[int, ...]] = SMALL_HIERA, layout: Layout = SMALL_LAYOUT, positions: int = 7
) -> MetaHiera:
    """Build Meta's encoder of SAM 2."""
    encoder = MetaHiera(*sizes, layout, positions).eval()
    randomize(encoder)
    return encoder.requires_grad_(False)


def meta_hiera_state(encoder: nn.Module, **changes: Any) -> State:
    """Return a SAM 2 checkpoint with this encoder."""
    decoder = {name: tensor for name, tensor in meta_sam2(**changes).items() if not name.startswith("image_encoder.")}
    return {**decoder, **encoder.state_dict()}


def shapes(outputs: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    """Return the outputs' shapes for one picture."""
    return [(1, *output.shape[1:]) for output in outputs]


def expected_shapes(spec: DecoderSpec) -> list[tuple[int | str, ...]]:
    """Return what the decoder takes."""
    return [tensor.shape for tensor in spec.image_inputs]
