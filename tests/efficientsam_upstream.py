"""EfficientSAM from its publisher's facts, written for these tests, under the names that its checkpoints have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from checkpoint_files import randomize
from torch import Tensor, nn
from torch.nn import functional as F
from upstream_encoders import State

WIDTH, SLOTS, MASKS = 256, 6, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUTSIDE = -1.0  # coordinates and label of an empty slot
LOGIT_GAIN = 24.0  # brings random weights' logits beyond 50


class Mlp(nn.Module):
    """Hidden layers of GELU, and a last one without."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        super().__init__()
        sides = [width] + [hidden] * depth
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(sides[i], sides[i + 1]), nn.GELU()) for i in range(depth))
        self.fc = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        for hidden in self.layers:
            x = hidden(x)
        return self.fc(x)


class Attend(nn.Module):
    """Eight heads, computed one by one."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, WIDTH)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = zip(
            *(p(x).chunk(8, -1) for p, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))), strict=True
        )
        mixed = [torch.softmax(a @ b.mT / math.sqrt(a.shape[-1]), -1) @ c for a, b, c in heads]
        return self.out_proj(torch.cat(mixed, -1))


class TwoWay(nn.Module):
    """A layer of the transformer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attend(WIDTH), Mlp(WIDTH, hidden, WIDTH, 1)
        self.cross_attn_token_to_image, self.cross_attn_image_to_token = Attend(WIDTH // 2), Attend(WIDTH // 2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(WIDTH) for _ in range(4))

    def forward(self, x: Tensor, image: Tensor, x_place: Tensor, image_place: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm1(x + self.self_attn(x, x, x))
        x = self.norm2(x + self.cross_attn_token_to_image(x + x_place, image + image_place, image))
        x = self.norm3(x + self.mlp(x))
        return x, self.norm4(image + self.cross_attn_image_to_token(image + image_place, x + x_place, x))


class Transformer(nn.Module):
    """Two layers and one more attention."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWay(hidden) for _ in range(2))
        self.final_attn_token_to_image, self.norm_final_attn = Attend(WIDTH // 2), nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor, image_place: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.layers
        x, image = first(place, image, place, image_place)
        x, image = second(x + place, image, place, image_place)
        return self.norm_final_attn(x + self.final_attn_token_to_image(x + place, image + image_place, image)), image


class Places(nn.Module):
    """Random Fourier features of shares of the frame."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, WIDTH // 2))

    def forward(self, xy: Tensor) -> Tensor:
        angles = (4 * xy - 2) * math.pi @ self.get_buffer("positional_encoding_gaussian_matrix")
        return torch.cat([angles.sin(), angles.cos()], -1)


class Prompts(nn.Module):
    """Positions, and for all labels but the background's an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = Places()
        self.invalid_points, self.point_embeddings = nn.Embedding(1, WIDTH), nn.Embedding(1, WIDTH)
        self.bbox_top_left_embeddings, self.bbox_bottom_right_embeddings = (nn.Embedding(1, WIDTH) for _ in range(2))

    def forward(self, points: Tensor, labels: Tensor, size_px: int) -> Tensor:
        tokens = self.pe_layer((points + 0.5) / size_px)
        kinds = self.invalid_points, None, self.point_embeddings
        for code, kind in enumerate((*kinds, self.bbox_top_left_embeddings, self.bbox_bottom_right_embeddings), -1):
            if kind is not None:
                tokens[labels == code] += kind.weight[0]
        return tokens


class Decoder(nn.Module):
    """All that follows the prompts."""

    def __init__(self, hidden: int, iou_width: int) -> None:
        super().__init__()
        self.transformer = Transformer(hidden)
        self.iou_token, self.mask_tokens = nn.Embedding(1, WIDTH), nn.Embedding(MASKS, WIDTH)
        self.final_output_upscaling_layers = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(WIDTH, 64, 2, 2), nn.GroupNorm(1, 64), nn.GELU()),
                nn.Sequential(nn.ConvTranspose2d(64, 32, 2, 2), nn.Identity(), nn.GELU()),
            ]
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(WIDTH, WIDTH, 32, 2) for _ in range(MASKS))
        self.iou_prediction_head = Mlp(WIDTH, iou_width, MASKS, 2)

    def forward(self, image: Tensor, image_place: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        count, side = len(prompts), image.shape[-1]
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(count, -1, -1)
        flat = image.flatten(2).mT.expand(count, -1, -1)
        x, flat = self.transformer(flat, image_place.flatten(0, 1), torch.cat([learned, prompts], 1))
        pixels = flat.mT.reshape(count, WIDTH, side, side)
        for layer in self.final_output_upscaling_layers:
            pixels = layer(pixels)
        weights = torch.stack([mlp(x[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        return torch.einsum("nmc,nchw->nmhw", weights, pixels), self.iou_prediction_head(x[:, 0])


class Norm2d(nn.Module):
    """Normalise over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        spread = x.var(1, unbiased=False, keepdim=True)
        normal = (x - x.mean(1, keepdim=True)) / (spread + 1e-6).sqrt()
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class Vit(nn.Module):
    """The image encoder."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + 14 * 14, width))
        self.blocks: Any = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width, 1e-6), "norm2": nn.LayerNorm(width, 1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}),
                }
            )
            for _ in range(depth)
        )  # fmt: skip
        self.neck = nn.Sequential(
            nn.Conv2d(width, WIDTH, 1, bias=False), Norm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), Norm2d(WIDTH),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed["proj"](pixels)
        batch, width, side, _ = x.shape
        places = self.pos_embed[:, 1:].mT.reshape(1, width, 14, 14)
        x = (x + F.interpolate(places, (side, side), mode="bicubic")).flatten(2).mT
        for block in self.blocks:
            q, k, v = block["attn"]["qkv"](block["norm1"](x)).chunk(3, -1)
            heads = zip(*(part.chunk(self.heads, -1) for part in (q, k, v)), strict=True)
            mixed = [torch.softmax(a @ b.mT / math.sqrt(a.shape[-1]), -1) @ c for a, b, c in heads]
            x = x + block["attn"]["proj"](torch.cat(mixed, -1))
            x = x + block["mlp"]["fc2"](F.gelu(block["mlp"]["fc1"](block["norm2"](x))))
        return self.neck(x.mT.reshape(batch, width, side, side))


class EfficientSam(nn.Module):
    """The whole model, for frames of any size; full size: 1024 px, depth 12, mlps of 2048."""

    def __init__(
        self, size_px: int, *, width: int = 192, heads: int = 3, depth: int = 2, hidden: int = 64, iou_width: int = 64
    ) -> None:
        super().__init__()
        self.size_px = size_px
        self.image_encoder, self.prompt_encoder = Vit(width, heads, depth), Prompts()
        self.mask_decoder = Decoder(hidden, iou_width)

    def encode(self, picture: Tensor) -> Tensor:
        """Encode a picture. Shapes: (1, 3, H, W), 0 to 1 -> (1, 256, G, G)."""
        frame = F.interpolate(picture, (self.size_px, self.size_px), mode="bilinear")
        return self.image_encoder((frame - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None])

    def decode(self, image: Tensor, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Decode with all four tokens. Shapes: points (N, P, 2) in the frame, labels (N, P), P up to six."""
        spare = SLOTS - points.shape[1]
        points, labels = F.pad(points, (0, 0, 0, spare), value=OUTSIDE), F.pad(labels, (0, spare), value=OUTSIDE)
        side = image.shape[-1]
        centres = (torch.arange(side) + 0.5) / side
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
        encoder = self.prompt_encoder
        return self.mask_decoder(image, encoder.pe_layer(grid), encoder(points, labels, self.size_px))

    def predict(
        self, picture: Tensor, points: Sequence[Sequence[float]], labels: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From a picture to its logits, scores and low-resolution logits. Shapes: (1, 3, H, W) -> (3, H, W), (3)."""
        height, width = picture.shape[2:]
        scaled = torch.tensor([points]) * self.size_px / torch.tensor([width, height])
        masks, iou = self.decode(self.encode(picture), scaled.float(), torch.tensor([labels]).float())
        large = F.interpolate(masks[:, 1:], (height, width), mode="bicubic")
        return large[0], iou[0, 1:], masks[0, 1:]


def efficient_sam(size_px: int, seed: int = 0, **sizes: int) -> EfficientSam:
    """Build a model with random weights that matter."""
    torch.manual_seed(seed)
    model = EfficientSam(size_px, **sizes).eval().requires_grad_(False)
    randomize(model.mask_decoder, seed)
    for name, value in model.image_encoder.named_parameters():
        if "norm" in name or ".neck.1." in name or ".neck.3." in name:
            value.add_(0.2 * torch.randn(value.shape))
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        fc = mlp.get_submodule("fc")
        fc.get_parameter("weight").mul_(LOGIT_GAIN)
    return model


def state(model: EfficientSam) -> dict[str, State]:
    """Return what its publisher saves."""
    return {"model": model.state_dict()}
