"""TinyViT, the image encoder of MobileSAM and, without its stem's strides, of LiteMedSAM.

Source: MobileSAM's TinyViT and LiteMedSAM's: names, shapes, order of operations, constants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.encoders.base import (
    Architecture,
    Encoder,
    Weights,
    count_of,
    loaded_strictly,
    refused,
)
from samx.models.encoders.convolutions import Gelu, Weigher, check_depths, check_shapes, without_batch_norms
from samx.models.fast.upscale import gelu
from samx.models.spec import DecoderSpec

TITLE = "TinyViT"
DEPTHS = ((2, 2, 6, 2),)  # blocks of each layer, of all released ones
HEAD_WIDTH = 32
INTERM_AFTER = 1  # the layer whose output HQ-SAM's decoder takes too
MERGE_STRIDES = (2, 2, 1)  # after each layer but the last


class MBConv(nn.Module):
    """Widen, mix neighbours channel by channel, narrow, add."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (of.conv(f"{name}.conv{i}") for i in (1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        return gelu(x + self.conv3(gelu(self.conv2(gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """Go over to the next layer's width, and to its size."""

    def __init__(self, of: Weigher, name: str, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv3 = of.conv(f"{name}.conv1"), of.conv(f"{name}.conv3")
        self.conv2 = of.conv(f"{name}.conv2", stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x)))))


class Attention(nn.Module):
    """Attend within windows, with a learned bias for each distance. Computes nothing before fold()."""

    table: Tensor  # of biases by pair of tokens

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        width, _ = of.shape(f"{name}.proj.weight", 2)
        self.heads, distances = of.shape(f"{name}.attention_biases", 2)
        self.window = round(distances**0.5)
        if (self.heads * HEAD_WIDTH, self.window**2) != (width, distances):
            found = f"{name}.attention_biases {(self.heads, distances)}"
            expected = f"{width // HEAD_WIDTH} heads of {HEAD_WIDTH} channels, and a square"
            raise refused(TITLE, "has other heads or windows", found, expected)
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, distances))

    @torch.no_grad()
    def fold(self) -> None:
        """Let windows be padded with zeros after projecting, and look the biases up for good.

        Upstream pads with zeros before the norm, so that padding is projected to a constant p, and may be attended.
        Here p is taken off all keys and values. Scores of a query change by the same number, which softmax ignores;
        what is left out of the values is added once, to the output's bias. Padding's own queries are cut off anyway.
        """
        weight, parts = self.qkv.weight.double(), (self.heads, 3, -1)
        shift, asked = weight @ self.norm.bias.double(), self.qkv.bias.double()
        padding, bias = (shift + asked).reshape(parts), -shift.reshape(parts)
        bias[:, 0] = asked.reshape(parts)[:, 0]
        factors = torch.ones(3, 1, dtype=torch.float64)
        factors[0] = HEAD_WIDTH**-0.5
        self.proj.bias.copy_(self.proj.bias + self.proj.weight.double() @ padding[:, 2].flatten())
        self.qkv.bias.copy_((bias * factors).flatten())
        self.qkv.weight.copy_((weight.reshape(*parts, len(self.proj.bias)) * factors[..., None]).reshape(weight.shape))
        self.register_buffer("table", self.attention_biases[:, distance_indices(self.window)], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, H, W, C) -> the same. No tensor here has more than five axes, as on Apple's devices."""
        (height, width, channels), side = x.shape[1:], self.window
        down, right = -height % side, -width % side
        qkv = F.pad(self.qkv(self.norm(x)), (0, 0, 0, right, 0, down))
        across = (width + right) // side
        qkv = qkv.reshape(-1, side, across, side * 3 * channels).transpose(1, 2)
        qkv = qkv.reshape(-1, side * side, self.heads, 3 * HEAD_WIDTH).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        mixed = (q @ k.transpose(-1, -2) + self.table).softmax(-1) @ v
        rows = mixed.transpose(1, 2).reshape(-1, across, side, side * channels).transpose(1, 2)
        whole = rows.reshape(-1, height + down, width + right, channels)
        return self.proj(whole[:, :height, :width])


def distance_indices(window: int) -> Tensor:
    """Return where the bias of each pair of a window's tokens stands. Shapes: (window^2, window^2), of 0..window^2."""
    steps = torch.arange(window)
    apart = (steps[:, None] - steps).abs()
    return (window * apart[:, None, :, None] + apart[None, :, None, :]).reshape(window**2, window**2)


class Mlp(nn.Module):
    """Compute each token by itself."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        hidden, width = of.shape(f"{name}.fc1.weight", 2)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, H, W, C) -> the same."""
        return self.fc2(gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Attend, mix neighbours, compute."""

    def __init__(self, of: Weigher, name: str) -> None:
        super().__init__()
        self.attn, self.mlp = Attention(of, f"{name}.attn"), Mlp(of, f"{name}.mlp")
        self.local_conv = of.conv(f"{name}.local_conv")

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> the same."""
        x = x.permute(0, 2, 3, 1)
        x = self.local_conv((x + self.attn(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (x + self.mlp(x)).permute(0, 3, 1, 2)


class Layer(nn.Module):
    """Blocks of one width, and the way to the next."""

    def __init__(self, of: Weigher, name: str, depth: int, stride: int | None) -> None:
        super().__init__()
        attends = f"{name}.blocks.0.attn.qkv.weight" in of.weights
        names = (f"{name}.blocks.{i}" for i in range(depth))
        self.blocks = nn.Sequential(*((Block if attends else MBConv)(of, block) for block in names))
        self.downsample = nn.Identity() if stride is None else PatchMerging(of, f"{name}.downsample", stride)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, C, H, W) -> (B, C', H', W')."""
        return self.downsample(self.blocks(x))


class PatchEmbed(nn.Module):
    """The stem."""

    def __init__(self, of: Weigher, name: str, stride: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(of.conv(f"{name}.seq.0", stride), Gelu(), of.conv(f"{name}.seq.2", stride))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (B, 3, S, S) -> (B, C, S / 4, S / 4), or S where it has no strides."""
        return self.seq(x)


class TinyViT(Encoder):
    """The encoder, as its weights have it."""

    def __init__(self, of: Weigher, spec: DecoderSpec, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.picture_px = spec.image_size
        stem = 2 if of.shape("patch_embed.seq.0.weight")[-1] > 1 else 1
        self.patch_embed = PatchEmbed(of, "patch_embed", stem)
        stages = enumerate(zip(depths, (*MERGE_STRIDES, None), strict=True))
        self.layers = nn.Sequential(*(Layer(of, f"layers.{i}", depth, stride) for i, (depth, stride) in stages))
        self.neck, self.has_interm = of.neck("neck"), spec.interm_width > 0

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode pictures.

        Shapes: (B, 3, S, S) -> (B, 256, G, G)[, (B, G, G, C)], G of S / 16, or S / 4 where the stem has no strides.
        """
        x, interm = self.patch_embed(pixels), []
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.has_interm and i == INTERM_AFTER:
                interm.append(x.permute(0, 2, 3, 1))
        return (self.neck(x), *interm)


def build(weights: Weights, spec: DecoderSpec) -> TinyViT:
    """Build the encoder.

    Raises: CheckpointError for another number of blocks, and where weights are missing, left over or of other shapes.
    """
    depths = tuple(count_of(weights, f"layers.{i}.blocks") for i in range(count_of(weights, "layers")))
    check_depths(depths, DEPTHS, TITLE)
    weights = without_batch_norms(weights, TITLE)
    encoder = TinyViT(Weigher(weights, TITLE), spec, depths)
    loaded_strictly(encoder, weights, TITLE)
    for module in encoder.modules():
        if isinstance(module, Attention):
            module.fold()
    check_shapes(encoder, spec, TITLE)
    return encoder


ENCODER = Architecture(
    name="tinyvit",
    title=TITLE,
    marks=(r"^patch_embed\.seq\.0\.", r"\.attn\.attention_biases$"),
    build=build,
    unused=(r"\.num_batches_tracked$", r"\.attn\.(?:attention_bias_idxs|ab)$", r"^(?:norm_head|head)\."),
    size_step=16,
)
