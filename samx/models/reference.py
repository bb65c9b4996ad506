"""The reference form: SAM's prompt encoder and mask decoder, plain, with Meta's structure and parameter names.

Every other form and every export is compared with this one. Letters in the shape comments: N prompts,
P points per prompt, S sparse tokens (= P), T tokens, G grid cells per side, C = 256 channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samx.models.selection import select_masks
from samx.models.spec import LABELS, DecoderSpec

# MKL picks the kernel of a vector function at its first call. If several threads make that call together, one of them
# can run a kernel of low precision, once: errors of 1.5e-4 in one process of ten, with torch 2.13 on two cores
# (pytorch/pytorch issue 188792). So one thread asks first.
for _function in (torch.sin, torch.cos, torch.exp, torch.erf, torch.sqrt, torch.tanh):
    for _dtype in (torch.float32, torch.float64):
        _function(torch.zeros(1, dtype=_dtype))

Activation = Callable[[Tensor], Tensor]
POINT_LABELS = ("background", "foreground", "box_top_left", "box_bottom_right")


class LayerNorm2d(nn.Module):
    """Normalise over channels of an image tensor."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class MLP(nn.Module):
    """Stack linear layers with an activation between them."""

    activation: Activation = staticmethod(F.relu)

    def __init__(self, width_in: int, hidden: int, width_out: int, depth: int, sigmoid: bool = False) -> None:
        super().__init__()
        widths = [width_in] + [hidden] * (depth - 1) + [width_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        x = self.layers[-1](x)
        return torch.sigmoid(x) if self.sigmoid else x


class MLPBlock(nn.Module):
    """Two linear layers with an activation between: the transformer's feed-forward part."""

    activation: Activation = staticmethod(F.relu)

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.activation(self.lin1(x)))


class PositionEmbeddingRandom(nn.Module):
    """Encode positions in the unit square by random Fourier features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, unit_xy: Tensor) -> Tensor:
        """Encode points. Shapes: (..., 2) in [0, 1] -> (..., C)."""
        matrix: Tensor = self.get_buffer("positional_encoding_gaussian_matrix")
        angles = 2 * math.pi * ((2 * unit_xy - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, cells: int) -> Tensor:
        """Encode the cell centres of a square grid. Shapes: -> (G, G, C), rows first."""
        matrix: Tensor = self.get_buffer("positional_encoding_gaussian_matrix")
        centres = (torch.arange(cells, dtype=matrix.dtype, device=matrix.device) + 0.5) / cells
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], dim=-1))


class PromptEncoder(nn.Module):
    """Turn points, box corners and a previous mask into tokens and a dense embedding."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width, channels = spec.width, spec.mask_prompt_channels
        self.image_size, self.offset = spec.image_size, spec.rules.point_offset_px
        self.grid = spec.grid
        self.pe_layer = PositionEmbeddingRandom(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in POINT_LABELS)
        self.not_a_point_embed = nn.Embedding(1, width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, channels // 4, 2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels, 2, stride=2),
            LayerNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, width, 1),
        )

    def point_weights(self) -> list[Tensor]:
        """List the embeddings of POINT_LABELS. Shapes: 4 x (1, C)."""
        return [embedding.get_parameter("weight") for embedding in self.point_embeddings]

    def padding_token(self) -> Tensor:
        """Return what stands for a padding token, wherever it lies. Shapes: -> (1, C)."""
        return self.not_a_point_embed.weight

    def no_mask(self) -> Tensor:
        """Return what every image token has in the place of a previous mask. Shapes: -> (1, C)."""
        return self.no_mask_embed.weight

    def points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Embed points and box corners. Shapes: (N, P, 2) px, (N, P) -> (N, P, C)."""
        position = self.pe_layer((coords + self.offset) / self.image_size)
        is_padding = (labels == LABELS["padding"])[..., None]
        tokens = torch.where(is_padding, self.padding_token(), position)
        for name, embedding in zip(POINT_LABELS, self.point_weights(), strict=True):
            tokens = tokens + (labels == LABELS[name])[..., None] * embedding
        return tokens

    def dense(self, prompts: int, mask: Tensor | None, has_mask: Tensor | None) -> Tensor:
        """Embed the previous mask, or its absence. Shapes: (N, 1, 4G, 4G), (N,) -> (N, C, G, G)."""
        absent = self.no_mask().reshape(1, -1, 1, 1).expand(prompts, -1, self.grid, self.grid)
        if mask is None:
            return absent
        present: Tensor = self.mask_downscaling(mask)
        if has_mask is None:
            return present
        return torch.where((has_mask > 0).reshape(-1, 1, 1, 1), present, absent)


class Attention(nn.Module):
    """Attend with several heads at a width that may be smaller than the tokens'."""

    def __init__(self, width: int, internal: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, internal)
        self.k_proj = nn.Linear(width, internal)
        self.v_proj = nn.Linear(width, internal)
        self.out_proj = nn.Linear(internal, width)

    def _split(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        return x.reshape(n, tokens, self.heads, width // self.heads).transpose(1, 2)  # (N, h, T, d)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mix the values by the queries' match with the keys. Shapes: (N, Tq, C), (N, Tk, C) x 2 -> (N, Tq, C)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (N, h, Tq, Tk)
        mixed = scores.softmax(dim=-1) @ v  # (N, h, Tq, d)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class TwoWayAttentionBlock(nn.Module):
    """Let tokens attend to themselves and to the image, and the image to the tokens."""

    mlp_class: type[MLPBlock] = MLPBlock

    def __init__(self, spec: DecoderSpec, first: bool) -> None:
        super().__init__()
        width, cross = spec.width, spec.cross_attention_width
        self.first = first
        self.self_attn = Attention(width, width, spec.heads)
        self.norm1 = nn.LayerNorm(width, spec.norm_eps)
        self.cross_attn_token_to_image = Attention(width, cross, spec.heads)
        self.norm2 = nn.LayerNorm(width, spec.norm_eps)
        self.mlp = self.mlp_class(width, spec.mlp_width)
        self.norm3 = nn.LayerNorm(width, spec.norm_eps)
        self.norm4 = nn.LayerNorm(width, spec.norm_eps)
        self.cross_attn_image_to_token = Attention(width, cross, spec.heads)

    @staticmethod
    def among_tokens(
        first: bool, attend: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, token_pe: Tensor
    ) -> Tensor:
        """Let tokens attend to themselves, whatever attends: it is given them with the positional term, and without.

        The first layer replaces them: no positional term, no residual.
        """
        return attend(tokens, tokens) if first else tokens + attend(tokens + token_pe, tokens)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Run one layer. Shapes: (N, T, C), (N, GG, C), (N, T, C), (GG, C) -> tokens, image."""
        tokens = self.norm1(self.among_tokens(self.first, lambda q, v: self.self_attn(q, q, v), tokens, token_pe))
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = image + self.cross_attn_image_to_token(image + image_pe, tokens + token_pe, tokens)
        return tokens, self.norm4(image)


class TwoWayTransformer(nn.Module):
    """Run the two-way layers and a last token-to-image attention."""

    layer_class: type[TwoWayAttentionBlock] = TwoWayAttentionBlock

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.layer_class(spec, first=i == 0) for i in range(spec.depth))
        self.final_attn_token_to_image = Attention(spec.width, spec.cross_attention_width, spec.heads)
        self.norm_final_attn = nn.LayerNorm(spec.width, spec.final_norm_eps)

    def forward(self, image: Tensor, image_pe: Tensor, token_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse prompt and image. Shapes: (N, GG, C), (GG, C), (N, T, C) -> (N, T, C), (N, GG, C)."""
        tokens = token_pe  # the tokens themselves serve as their own positional term
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        attended = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class MaskDecoder(nn.Module):
    """Predict mask logits, their IoU and, for SAM 2, whether the object is there at all."""

    transformer_class: type[TwoWayTransformer] = TwoWayTransformer
    mlp_class: type[MLP] = MLP
    norm_class: Callable[[int], nn.Module] = LayerNorm2d  # of the first upscaling

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        width, count = spec.width, spec.mask_tokens
        self.spec = spec
        self.transformer = self.transformer_class(spec)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(count, width)
        if spec.object_score:
            self.obj_score_token = nn.Embedding(1, width)
            depth = spec.object_score_head_depth
            self.pred_obj_score_head = nn.Linear(width, 1) if depth == 1 else MLP(width, width, 1, depth)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, 2, stride=2),
            self.norm_class(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2),
            nn.GELU(),
        )
        mlp = self.mlp_class
        self.output_hypernetworks_mlps = nn.ModuleList(mlp(width, width, width // 8, 3) for _ in range(count))
        self.iou_prediction_head = mlp(width, spec.iou_head_width, count, spec.iou_head_depth, sigmoid=spec.iou_sigmoid)

    def learned_tokens(self) -> Tensor:
        """Stack [object score,] IoU and mask tokens. Shapes: -> (5 or 6, C)."""
        tokens = [self.iou_token.weight, self.mask_tokens.weight]
        return torch.cat([self.obj_score_token.weight, *tokens] if self.spec.object_score else tokens)

    def upscale(self, image: Tensor, high_res: tuple[Tensor, Tensor] | None) -> Tensor:
        """Grow the grid fourfold, adding the skip features. Shapes: (N, C, G, G) -> (N, C/8, 4G, 4G)."""
        grow1, norm, act1, grow2, act2 = self.output_upscaling
        fine, coarse = high_res if high_res is not None else (0, 0)
        image = act1(norm(grow1(image) + coarse))  # (N, C/4, 2G, 2G)
        return act2(grow2(image) + fine)

    def attended(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, high_res: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Let image and prompts attend to each other.

        Shapes: (1|N, C, G, G), (G, G, C), (N, S, C), (N, C, G, G) -> tokens (N, T, C), pixels (N, C/8, 4G, 4G).
        """
        n, grid = sparse.shape[0], self.spec.grid
        tokens = torch.cat([self.learned_tokens().expand(n, -1, -1), sparse], dim=1)  # (N, T, C)
        flat = (image + dense).flatten(2).transpose(1, 2)  # (N, GG, C)
        tokens, flat = self.transformer(flat, image_pe.flatten(0, 1), tokens)
        return tokens, self.upscale(flat.transpose(1, 2).unflatten(2, (grid, grid)), high_res)

    def predicted(self, tokens: Tensor, upscaled: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Predict with every token. Shapes: as attended() returns them -> (N, 4, 4G, 4G), (N, 4), (N, 1) or None."""
        first = int(self.spec.object_score)
        iou_token = tokens[:, first]
        mask_tokens = tokens[:, first + 1 : first + 1 + self.spec.mask_tokens]
        weights = torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        masks = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])  # (N, 4, 4G, 4G)
        score = self.pred_obj_score_head(tokens[:, 0]) if self.spec.object_score else None
        return masks, self.iou_prediction_head(iou_token), score


class ReferenceDecoder(nn.Module):
    """Decode prompts on an image embedding into masks: the truth that every export is compared with."""

    prompt_encoder_class: type[PromptEncoder] = PromptEncoder
    decoder_class: type[MaskDecoder] = MaskDecoder

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.prompt_encoder = self.prompt_encoder_class(spec)
        self.mask_decoder = self.decoder_class(spec)

    def attended(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor | None = None,
        has_mask_input: Tensor | None = None,
        high_res_features_0: Tensor | None = None,
        high_res_features_1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Let image and prompts attend to each other.

        Shapes: as DecoderSpec.inputs, or an image for each prompt -> tokens (N, T, C), pixels (N, C/8, 4G, 4G).
        """
        sparse = self.prompt_encoder.points(point_coords, point_labels)
        dense = self.prompt_encoder.dense(len(sparse), mask_input, has_mask_input)
        image_pe = self.prompt_encoder.pe_layer.grid(self.spec.grid)
        is_plain = high_res_features_0 is None or high_res_features_1 is None
        high_res: Any = None if is_plain else (high_res_features_0, high_res_features_1)
        return self.mask_decoder.attended(image_embeddings, image_pe, sparse, dense, high_res)

    def all_masks(self, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decode with every mask token, before any selection.

        Shapes: as attended() takes them -> logits (N, 4, 4G, 4G), IoU (N, 4), object score (N, 1) or None.
        """
        return self.mask_decoder.predicted(*self.attended(*inputs, **named))

    def forward(self, *inputs: Tensor, **named: Tensor) -> dict[str, Tensor]:
        """Decode, and keep the masks of the spec. Shapes: as attended() takes them -> DecoderSpec.outputs."""
        return self.chosen(*self.attended(*inputs, **named))

    def chosen(self, tokens: Tensor, upscaled: Tensor) -> dict[str, Tensor]:
        """Return the masks of the spec. Shapes: as attended() returns them -> DecoderSpec.outputs."""
        masks, iou, score = self.mask_decoder.predicted(tokens, upscaled)
        masks, iou = select_masks(self.spec, masks, iou)
        outputs = {"low_res_masks": masks, "iou_predictions": iou}
        return outputs if score is None else {**outputs, "object_score_logits": score}
