"""Image encoders of mobile relatives, composed of other projects' modules with random weights under upstream's names.

They are small: a width or a depth changes nothing of what is computed, but for the numbers of blocks that are known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.encoders import edgetam, efficientvit, repvit, tinyvit
from samx.models.spec import DecoderSpec, sam1_spec, sam2_spec

pytest.importorskip("timm")
from timm.models import efficientvit_mit, tiny_vit
from timm.models import repvit as timm_repvit

SIZE_PX = 128
CALM = 0.5  # of weights: deep residuals without norms grow with more, until rounding shows in what is left


@dataclass
class Case:
    """An encoder of someone else's, the same as a checkpoint has it, and what builds ours."""

    ours: ModuleType
    reference: Any
    weights: dict[str, Tensor]
    depths: tuple[int, ...]
    spec: DecoderSpec


def used(module: ModuleType, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what an architecture says that nobody needs."""
    return {name: w for name, w in weights.items() if not any(re.search(mark, name) for mark in module.ENCODER.unused)}


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Give every weight a value that shows, and every batch norm statistics of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(_value(name, torch.randn(tensor.shape, generator=generator)))
    module.eval().requires_grad_(False)


def _value(name: str, noise: Tensor) -> Tensor:
    if name.endswith("running_var"):
        return 0.5 + noise.abs()
    if noise.ndim > 1:
        return noise if "biases" in name else CALM * noise / math.sqrt(noise[0].numel())
    return 0.2 * noise + float(name.endswith("weight"))


class Norm2d(nn.LayerNorm):
    """A layer norm over channels, written out."""

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(1, keepdim=True)
        normed = apart / (apart.square().mean(1, keepdim=True) + self.eps).sqrt()
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def neck(width: int, out: int) -> nn.Sequential:
    convolutions = nn.Conv2d(width, out, 1, bias=False), nn.Conv2d(out, out, 3, padding=1, bias=False)
    return nn.Sequential(convolutions[0], Norm2d(out, 1e-6), convolutions[1], Norm2d(out, 1e-6))


class Piped(nn.Module):
    """A trunk and a neck."""

    trunk: Any

    def __init__(self, trunk: Any, neck: nn.Module) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, neck

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return (self.neck(self.trunk.forward_features(pixels)),)


TINY_VIT: Mapping[str, Any] = {"embed_dims": (16, 32, 64, 96), "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 3)}
TINY_VIT_5M: Mapping[str, Any] = {"embed_dims": (64, 128, 160, 320), "depths": (2, 2, 6, 2), "num_heads": (2, 4, 5, 10)}


def tiny_vit_case(sizes: Mapping[str, Any], spec: DecoderSpec, *, strides: bool = True, out: int = 32) -> Case:
    """MobileSAM's, whose last merge keeps the size; without strides LiteMedSAM's."""
    trunk = tiny_vit.TinyVit(num_classes=0, window_sizes=(7, 7, 14, 7), drop_path_rate=0.0, **sizes)
    trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
    if not strides:
        for layer in (trunk.patch_embed.conv1, trunk.patch_embed.conv2):
            layer.conv = nn.Conv2d(layer.conv.in_channels, layer.conv.out_channels, 1, bias=False)
    reference = Piped(trunk, neck(sizes["embed_dims"][-1], out))
    randomize(reference)
    names = {name: _tiny_vit_name(name) for name in reference.state_dict()}
    weights = {names[name]: weight for name, weight in reference.state_dict().items() if ".head." not in name}
    return Case(tinyvit, reference, used(tinyvit, weights), sizes["depths"], spec)


def _tiny_vit_name(name: str) -> str:
    name = name.removeprefix("trunk.")
    name = re.sub(r"^patch_embed\.conv([12])\.", lambda m: f"patch_embed.seq.{2 * int(m[1]) - 2}.", name)
    name = re.sub(r"^stages\.(\d)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
    return re.sub(r"\.conv\.weight$", ".c.weight", name.replace("stages.", "layers."))


class EdgeSam(nn.Module):
    """timm's trunk, and the joining of its last two stages."""

    trunk: Any

    def __init__(self, trunk: Any, widths: tuple[int, ...], out: int) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, neck(out, out)
        self.fuse_stage2 = nn.Conv2d(widths[2], out, 1, bias=False)
        self.fuse_stage3 = nn.Conv2d(widths[3], out, 1, bias=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        middle = self.trunk.stem(pixels)
        for stage in self.trunk.stages[:3]:
            middle = stage(middle)
        kept: list[Tensor] = []
        before = self.trunk.stages[3].downsample.pre_block
        handle = before.register_forward_hook(lambda module, args, output: kept.append(output))
        last = self.trunk.stages[3](middle)
        handle.remove()
        larger = F.interpolate(self.fuse_stage3(last), scale_factor=2, mode="bicubic", align_corners=False)
        return (self.neck(self.fuse_stage2(kept[0]) + larger),)


REP_VIT: Mapping[str, Any] = {"embed_dim": (16, 24, 32, 40), "depth": (2, 1, 3, 1)}
REP_VIT_M1: Mapping[str, Any] = {"embed_dim": (48, 96, 192, 384), "depth": (2, 2, 14, 2)}


def rep_vit_case(
    sizes: Mapping[str, Any], spec: DecoderSpec, *, joins: bool, fuses: bool = False, out: int = 32
) -> Case:
    """EdgeSAM's where it joins its stages, else RepViT-SAM's, whose branches have a batch norm after them."""
    trunk = timm_repvit.RepVit(num_classes=0, legacy=joins, **sizes)
    if not joins:
        trunk.stages[3].downsample.spatial_downsample.c.stride = (1, 1)
    widths = sizes["embed_dim"]
    reference = EdgeSam(trunk, widths, out) if joins else Piped(trunk, neck(widths[-1], out))
    randomize(reference)
    if fuses:
        trunk.fuse()
    weights = {_rep_vit_name(name, sizes["depth"]): w for name, w in reference.state_dict().items()}
    depths = [sizes["depth"][0] + 1, *(depth + 2 for depth in sizes["depth"][1:3]), sizes["depth"][3] + 1]
    return Case(repvit, reference, used(repvit, weights), tuple(depths), spec)


TIMM_PARTS = {
    "token_mixer": "token_mixer.0", "se": "token_mixer.1", "spatial_downsample": "token_mixer.0",
    "channel_downsample": "token_mixer.2", "channel_mixer.conv1": "channel_mixer.m.0",
    "channel_mixer.conv2": "channel_mixer.m.2", "ffn.conv1": "channel_mixer.m.0", "ffn.conv2": "channel_mixer.m.2",
}  # fmt: skip


def _rep_vit_name(name: str, depths: tuple[int, ...]) -> str:
    """Number blocks through: RepViT's own code has no stages, and counts a stage's beginning as two blocks."""
    name = re.sub(r"^fuse_stage3\.", "fuse_stage3.op_list.0.", name.removeprefix("trunk."))
    name = re.sub(r"^stem\.conv([12])\.", lambda m: f"features.0.{2 * int(m[1]) - 2}.", name)
    match = re.match(r"stages\.(\d)\.(?:blocks\.(\d+)\.|downsample\.(pre_block\.)?)(.*)", name)
    if match is None:
        return name
    stage, block, before, part = int(match[1]), match[2], match[3], match[4]
    number = 1 + sum(depths[:stage]) + 2 * stage
    number += int(block) if block else -2 if before else -1
    theirs = next(theirs for theirs in TIMM_PARTS if part.startswith(f"{theirs}."))
    return f"features.{number}.{TIMM_PARTS[theirs]}{part.removeprefix(theirs)}"


NORM = partial(nn.BatchNorm2d, eps=1e-6)
ACT = efficientvit_mit.GELUTanh
LITE_EPS = 1e-15


def _local(kind: str, width: int, out: int, stride: int, expand: int, *, fewer: bool) -> nn.Module:
    """A block of convolutions; where it has fewer norms, only its last convolution has one."""
    block, layers = {
        "res": (efficientvit_mit.ConvBlock, 2), "fmb": (efficientvit_mit.FusedMBConv, 2),
        "mb": (efficientvit_mit.MBConv, 3),
    }[kind]  # fmt: skip
    norms = (*((None if fewer else NORM,) * (layers - 1)), NORM)
    return block(
        width, out, stride=stride, expand_ratio=expand, act_layer=(*((ACT,) * (layers - 1)), None), norm_layer=norms,
        use_bias=tuple(norm is None for norm in norms),
    )  # fmt: skip


class Added(nn.Module):
    def __init__(self, main: nn.Module, *, adds: bool = True) -> None:
        super().__init__()
        self.main, self.adds = main, adds

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + x if self.adds else self.main(x)


class Attending(nn.Module):
    def __init__(self, width: int, head: int, scale: int, expand: int) -> None:
        super().__init__()
        attention = efficientvit_mit.LiteMLA(
            width, width, dim=head, norm_layer=(None, NORM), scales=(scale,), eps=LITE_EPS
        )
        self.context_module = Added(attention)
        self.local_module = Added(_local("mb", width, width, 1, expand, fewer=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.local_module(self.context_module(x))


class OpList(nn.Module):
    def __init__(self, *operations: nn.Module) -> None:
        super().__init__()
        self.op_list = nn.Sequential(*operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.op_list(x)


class EfficientVitSam(nn.Module):
    """The backbone of the large models, and SAM's neck."""

    backbone: Any
    neck: Any

    def __init__(self, sizes: Mapping[str, Any], grid: int) -> None:
        super().__init__()
        widths, out = sizes["widths"], sizes["out"]
        self.backbone, self.neck = nn.Module(), nn.Module()
        stem = efficientvit_mit.ConvNormAct(3, widths[0], stride=2, norm_layer=NORM, act_layer=ACT)
        stages = [OpList(stem, *(self._block(sizes, 0) for _ in range(sizes["depths"][0])))]
        for i in range(1, len(widths)):
            kind, expand, fewer = (sizes[name][i] for name in ("blocks", "expands", "fewer"))
            first = "mb" if kind.startswith("att") else kind
            begin = Added(_local(first, widths[i - 1], widths[i], 2, 4 * expand, fewer=fewer), adds=False)
            stages.append(OpList(begin, *(self._block(sizes, i) for _ in range(sizes["depths"][i]))))
        self.backbone.stages = nn.ModuleList(stages)
        inputs = (
            OpList(
                efficientvit_mit.ConvNormAct(width, out, 1, norm_layer=NORM, act_layer=None),
                nn.Upsample((grid, grid), mode="bicubic", align_corners=False),
            )
            for width in widths[:-4:-1]
        )
        self.neck.input_ops = nn.ModuleList(inputs)
        middle = (Added(_local("fmb", out, out, 1, sizes["neck"], fewer=False)) for _ in range(sizes["depths"][-1]))
        self.neck.middle = OpList(*middle)
        last = efficientvit_mit.ConvNormAct(out, out, 1, bias=True, norm_layer=None, act_layer=None)
        self.neck.output_ops = nn.ModuleList([OpList(last)])
        self.norm = Norm2d(out, 1e-6)

    def _block(self, sizes: Mapping[str, Any], i: int) -> nn.Module:
        kind, width, expand = sizes["blocks"][i], sizes["widths"][i], sizes["expands"][i]
        if kind.startswith("att"):
            return Attending(width, sizes["head"], 3 if kind == "att@3" else 5, expand)
        return Added(_local(kind, width, width, 1, expand, fewer=sizes["fewer"][i]))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        levels = [pixels]
        for stage in self.backbone.stages:
            levels.append(stage(levels[-1]))
        joined = torch.stack([op(level) for op, level in zip(self.neck.input_ops, levels[:-4:-1], strict=True)]).sum(0)
        return (self.norm(self.neck.output_ops[0](self.neck.middle(joined))),)


LARGE: Mapping[str, Any] = {
    "blocks": ("res", "fmb", "fmb", "mb", "att"), "expands": (1, 4, 4, 4, 6),
    "fewer": (False, False, False, True, True), "neck": 1,
}  # fmt: skip
XLARGE: Mapping[str, Any] = {
    "blocks": ("res", "fmb", "fmb", "fmb", "att@3", "att@3"), "expands": (1, 4, 4, 4, 4, 6),
    "fewer": (False, False, False, False, True, True), "neck": 4,
}  # fmt: skip
SMALL_LARGE = {**LARGE, "widths": (8, 8, 16, 16, 32), "depths": (1, 1, 0, 1, 2, 1), "head": 8, "out": 32}
SMALL_XLARGE = {**XLARGE, "widths": (8, 8, 8, 16, 16, 32), "depths": (0, 1, 0, 1, 1, 1, 2), "head": 8, "out": 32}
L0 = {**LARGE, "widths": (32, 64, 128, 256, 512), "depths": (1, 1, 1, 4, 4, 4), "head": 32, "out": 256}
L2 = {**L0, "depths": (1, 2, 2, 8, 8, 12)}
XL0 = {**XLARGE, "widths": (32, 64, 128, 256, 512, 1024), "depths": (0, 1, 1, 2, 3, 3, 6), "head": 32, "out": 256}
XL1 = {**XL0, "depths": (1, 2, 2, 4, 6, 6, 12)}


def efficient_vit_case(sizes: Mapping[str, Any], spec: DecoderSpec) -> Case:
    """EfficientViT-SAM's; prompts live in the spec's frame, pictures may be smaller."""
    reference = EfficientVitSam(sizes, spec.grid)
    randomize(reference)
    depths = (*(depth + 1 for depth in sizes["depths"][:-1]), sizes["depths"][-1])
    return Case(efficientvit, reference, used(efficientvit, reference.state_dict()), depths, spec)


class EdgeTam(nn.Module):
    """timm's trunk, Meta's pyramid, and what SAM2Base does with it before its decoder."""

    trunk: Any

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        import timm

        encoder = pytest.importorskip("sam2.modeling.backbones.image_encoder")
        encoding = pytest.importorskip("sam2.modeling.position_encoding")
        out, widths = sizes["out"], sizes["embed_dim"]
        trunk = {name: sizes[name] for name in ("embed_dim", "depth")}
        self.trunk = nn.Module()
        self.trunk.body = timm.create_model("repvit_m1", features_only=True, out_indices=(0, 1, 2, 3), **trunk)
        position = encoding.PositionEmbeddingSine(out, normalize=True)
        self.neck = encoder.FpnNeck(
            position, out, list(widths[::-1]), fpn_top_down_levels=[2, 3], fpn_interp_model="nearest"
        )
        self.conv_s0, self.conv_s1 = nn.Conv2d(out, out // 8, 1), nn.Conv2d(out, out // 4, 1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, out))

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        fine, coarse, tokens, _ = self.neck(self.trunk.body(pixels))[0]
        return tokens + self.no_mem_embed.reshape(1, -1, 1, 1), self.conv_s0(fine), self.conv_s1(coarse)


EDGE_TAM: Mapping[str, Any] = {**REP_VIT, "out": 256}
EDGE_TAM_M1: Mapping[str, Any] = {**REP_VIT_M1, "out": 256}


def edge_tam_case(sizes: Mapping[str, Any], spec: DecoderSpec) -> Case:
    """EdgeTAM's, as its own checkpoint has it."""
    reference = EdgeTam(sizes)
    randomize(reference)
    return Case(edgetam, reference, used(edgetam, reference.state_dict()), sizes["depth"], spec)


SPEC = sam1_spec(image_size=SIZE_PX, width=32)
CASES: Mapping[str, Callable[[], Case]] = {
    "MobileSAM": lambda: tiny_vit_case(TINY_VIT, SPEC),
    "LiteMedSAM": lambda: tiny_vit_case(TINY_VIT, sam1_spec(image_size=64, patch_px=4, width=32), strides=False),
    "EdgeSAM": lambda: rep_vit_case(REP_VIT, SPEC, joins=True),
    "EdgeSAM, fused": lambda: rep_vit_case(REP_VIT, SPEC, joins=True, fuses=True),
    "RepViT-SAM": lambda: rep_vit_case(REP_VIT, SPEC, joins=False),
    "RepViT-SAM, fused": lambda: rep_vit_case(REP_VIT, SPEC, joins=False, fuses=True),
    "EfficientViT-SAM L": lambda: efficient_vit_case(SMALL_LARGE, sam1_spec(image_size=256, width=32)),
    "EfficientViT-SAM XL": lambda: efficient_vit_case(SMALL_XLARGE, SPEC),
    "EdgeTAM": lambda: edge_tam_case(EDGE_TAM, sam2_spec(image_size=SIZE_PX)),
}
