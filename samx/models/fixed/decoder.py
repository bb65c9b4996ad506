"""The decoder in the Neural Engine's layout: whole, or cut in two as the public Core ML SAM 2.1 apps expect it.

Between those two, an embedding that is zero throughout stands for a padded point: no real token is.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn

from samx.models.fast.prompts import NEVER, TokenChoice, token_choice
from samx.models.fixed.layers import (
    FromImage,
    FromTokens,
    HqFeatures,
    HqMask,
    MaskPlanes,
    MaskTerm,
    MaskWeights,
    PointPosition,
    PointTokens,
    PointwiseMLP,
    channel_norm,
    empty_points,
    pointwise_mlp,
)
from samx.models.high_quality import HighQualityMaskDecoder
from samx.models.object_pointer import ObjectPointer, PointingDecoder, only_present
from samx.models.reference import MLP, MaskDecoder, PositionEmbeddingRandom, ReferenceDecoder, TwoWayAttentionBlock
from samx.models.spec import LABELS


class ImagePosition(nn.Module):
    """Encode the image's positions from four small tables, by the addition theorem: a whole one is 2 MiB (float16)."""

    def __init__(self, source: PositionEmbeddingRandom, grid: int) -> None:
        super().__init__()
        matrix = source.get_buffer("positional_encoding_gaussian_matrix").detach()  # (2, C/2)
        centres = 2 * (torch.arange(grid, dtype=matrix.dtype) + 0.5) / grid - 1
        for name, row, shape in (("x", matrix[0], (1, grid)), ("y", matrix[1], (grid, 1))):
            angles = (2 * math.pi * row.unsqueeze(1) * centres).reshape(1, -1, *shape)  # (1, C/2, 1, G), (1, C/2, G, 1)
            self.register_buffer(f"sin_{name}", angles.sin())
            self.register_buffer(f"cos_{name}", angles.cos())

    def forward(self) -> Tensor:
        """Shapes: -> (1, C, 1, L)."""
        sin_x, cos_x, sin_y, cos_y = map(self.get_buffer, ("sin_x", "cos_x", "sin_y", "cos_y"))
        grid = torch.cat([sin_x * cos_y + cos_x * sin_y, cos_x * cos_y - sin_x * sin_y], dim=1)  # (1, C, G, G)
        return grid.reshape(1, grid.shape[1], 1, -1)


class TwoWayLayer(nn.Module):
    """Let tokens attend to themselves and to the image tokens, and the image tokens to the tokens."""

    def __init__(self, source: TwoWayAttentionBlock) -> None:
        super().__init__()
        self.first, self.among_tokens = source.first, source.among_tokens
        self.self_attention = FromTokens(source.self_attn)
        self.token_to_image = FromTokens(source.cross_attn_token_to_image)
        self.mlp = PointwiseMLP([source.mlp.lin1, source.mlp.lin2], source.mlp.activation)
        self.image_to_token = FromImage(source.cross_attn_image_to_token)
        norms = (source.norm1, source.norm2, source.norm3, source.norm4)
        self.norm1, self.norm2, self.norm3, self.norm4 = map(channel_norm, norms)

    def forward(
        self, tokens: Tensor, token_pe: Tensor, image_tokens: Tensor, image_pe: Tensor, empty: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Shapes: (N, C, 1, T) x 2, (N, C, 1, L), (1, C, 1, L), (N, 1, 1, T) -> tokens, image tokens."""
        tokens = self.among_tokens(self.first, lambda q, v: self.self_attention(q, q, v, empty), tokens, token_pe)
        tokens = self.norm1(tokens)
        positioned = image_tokens + image_pe
        tokens = self.norm2(tokens + self.token_to_image(tokens + token_pe, positioned, image_tokens))
        tokens = self.norm3(tokens + self.mlp(tokens))
        update = self.image_to_token(positioned, tokens + token_pe, tokens, empty.transpose(-1, -2))
        return tokens, self.norm4(image_tokens + update)


class Transformer(nn.Module):
    """Run the two-way layers and the last token-to-image attention."""

    def __init__(self, source: MaskDecoder, position: PositionEmbeddingRandom, read: slice) -> None:
        super().__init__()
        self.read = read
        self.position = ImagePosition(position, source.spec.grid)
        blocks = [block for block in source.transformer.layers if isinstance(block, TwoWayAttentionBlock)]
        self.layers = nn.ModuleList(map(TwoWayLayer, blocks))
        self.final_attention = FromTokens(source.transformer.final_attn_token_to_image)
        self.final_norm = channel_norm(source.transformer.norm_final_attn)

    def forward(self, token_pe: Tensor, image_tokens: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (N, C, 1, T), (N, C, 1, L), (N, 1, 1, T) -> the tokens that are read (N, C, 1, K), (N, C, 1, L)."""
        tokens, image_pe = token_pe, self.position()
        for layer in self.layers:
            tokens, image_tokens = layer(tokens, token_pe, image_tokens, image_pe, empty)
        tokens, token_pe = tokens[..., self.read], token_pe[..., self.read]
        tokens = tokens + self.final_attention(tokens + token_pe, image_tokens + image_pe, image_tokens)
        return self.final_norm(tokens), image_tokens


class PointerHead(nn.Module):
    """Project tokens into object pointers; where the object is out of the picture, each is the learned one."""

    absent: Tensor

    def __init__(self, source: ObjectPointer) -> None:
        super().__init__()
        self.proj = pointwise_mlp(source.proj)
        self.register_buffer("absent", source.absent.detach().reshape(1, -1, 1, 1).clone())

    def forward(self, tokens: Tensor, score: Tensor) -> Tensor:
        """Shapes: (N, C, 1, M), (N, 1) -> (N, M, C)."""
        present = (score > 0).to(tokens.dtype).reshape(-1, 1, 1, 1)
        return only_present(self.proj(tokens), self.absent, present).squeeze(2).transpose(1, 2)


class TokenDecoder(nn.Module):
    """Turn image tokens and prompt tokens into masks and scores: all of the decoder behind the prompt encoder."""

    learned_tokens: Tensor

    def __init__(self, reference: ReferenceDecoder) -> None:
        super().__init__()
        source = reference.mask_decoder
        self.spec = reference.spec
        self.choice: TokenChoice = token_choice(self.spec)
        learned = source.learned_tokens().detach().t()
        self.register_buffer("learned_tokens", learned.reshape(1, learned.shape[0], 1, -1).clone())
        read = slice(0, self.choice.last)
        self.transformer = Transformer(source, reference.prompt_encoder.pe_layer, read)
        self.planes, self.mask_weights = MaskPlanes(source), MaskWeights(source, self.choice.masks)
        self.hq_mask = HqMask(source) if isinstance(source, HighQualityMaskDecoder) else None
        self.iou_head = pointwise_mlp(source.iou_prediction_head)
        self.object_score_head = (
            pointwise_mlp(cast(MLP, source.pred_obj_score_head)) if self.spec.object_score else None
        )
        self.object_pointer = PointerHead(reference.object_pointer) if isinstance(reference, PointingDecoder) else None

    def forward(
        self,
        image_tokens: Tensor,
        points: Tensor,
        empty: Tensor,
        skips: tuple[Tensor, Tensor] | None,
        features: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Shapes: (1|N, C, 1, L), (N, C, 1, P), (N, 1, 1, P) [, see MaskPlanes, HqFeatures] -> DecoderSpec.outputs."""
        n, learned = points.shape[0], self.learned_tokens
        tokens = torch.cat([learned.expand(n, -1, -1, -1), points], dim=3)
        attended = torch.cat([torch.zeros_like(learned[:, :1]).expand(n, -1, -1, -1), empty], dim=3)
        read, image_tokens = self.transformer(tokens, image_tokens, attended)
        pixels = self.planes.pixels(image_tokens, skips)
        masks, iou = self._masks(read, pixels)
        if self.hq_mask is not None:
            masks = masks + self.hq_mask(read[..., self.choice.hq : self.choice.hq + 1], pixels, features)
        return masks, iou, *self._scores(read)

    def _scores(self, read: Tensor) -> tuple[Tensor, ...]:
        """Shapes: (N, C, 1, K) -> nothing [, object score (N, 1) [, object pointers (N, M, C)]]."""
        if self.object_score_head is None:
            return ()
        score = self.object_score_head(read[..., :1]).reshape(read.shape[0], 1)
        if self.object_pointer is None:
            return (score,)
        return score, self.object_pointer(read[..., self.choice.pointers], score)

    def _masks(self, read: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (N, C, 1, K), (N, C/8, 16, L) -> (N, M, 4G, 4G), (N, M)."""
        at, n = self.choice, read.shape[0]
        iou = self.iou_head(read[..., at.iou : at.iou + 1]).reshape(n, -1)
        weights = self.mask_weights(read[..., at.iou + 1 + at.masks.start :])
        return at.select(self.spec, weights, iou, lambda rows: self.planes.masks(pixels, rows))


class NeuralEngineDecoder(nn.Module):
    """Compute exactly what the reference computes, in fixed shapes; a point labelled PADDED_POINT is as if absent."""

    def __init__(self, reference: ReferenceDecoder) -> None:
        super().__init__()
        reference = copy.deepcopy(reference)  # the two forms share no weight: one may change precision
        self.spec = reference.spec
        self.points = PointTokens(reference.prompt_encoder)
        self.dense: MaskTerm | None = MaskTerm(reference.prompt_encoder) if self.spec.mask_input else None
        self.register_buffer("no_mask", reference.prompt_encoder.no_mask().detach().reshape(1, -1, 1, 1))
        source = cast(HighQualityMaskDecoder, reference.mask_decoder)
        self.hq_features = HqFeatures(source) if self.spec.interm_width else None
        self.decoder = TokenDecoder(reference)
        self.requires_grad_(False)
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Shapes: DecoderSpec.inputs in order -> DecoderSpec.outputs in order."""
        feed = dict(zip([tensor.name for tensor in self.spec.inputs], inputs, strict=True))
        image = feed["image_embeddings"]
        image = image.reshape(1, image.shape[1], 1, -1)  # (1, C, 1, L)
        skips = (feed["high_res_features_0"], feed["high_res_features_1"]) if self.spec.high_res_features else None
        labels = feed["point_labels"]
        points = self.points(feed["point_coords"], labels)
        features = None if self.hq_features is None else self.hq_features(image, feed["interm_embeddings"])
        return self.decoder(image + self._dense(feed), points, empty_points(labels).to(points.dtype), skips, features)

    def _dense(self, feed: dict[str, Tensor]) -> Tensor:
        if self.dense is None:
            return self.get_buffer("no_mask")
        return self.dense(feed["mask_input"], feed["has_mask_input"])


def to_half(module: nn.Module) -> nn.Module:
    """Turn a module of this form into float16 but for the points' positions. Coordinates and labels stay float32."""
    module.half()
    for part in module.modules():
        if isinstance(part, PointPosition):
            part.float()
    return module


class ApplePromptEncoder(nn.Module):
    """Embed points, with SAM 2's padding token appended inside."""

    no_mask: Tensor
    nowhere: Tensor
    padding: Tensor

    def __init__(self, reference: ReferenceDecoder) -> None:
        super().__init__()
        reference = copy.deepcopy(reference)
        self.grid = reference.spec.grid
        self.points = PointTokens(reference.prompt_encoder)
        no_mask = reference.prompt_encoder.no_mask().detach().reshape(1, -1, 1, 1)
        self.register_buffer("no_mask", no_mask)
        self.register_buffer("nowhere", torch.zeros(1, 1, 2, dtype=torch.int32))
        self.register_buffer("padding", torch.full((1, 1), LABELS["padding"], dtype=torch.int32))
        self.requires_grad_(False)
        self.eval()

    def forward(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Shapes: (1, P, 2) px, int32 (1, P) -> (1, P + 1, C), (1, C, G, G)."""
        coords = torch.cat([points, self.nowhere.to(points.dtype)], dim=1)
        codes = torch.cat([labels, self.padding], dim=1)
        tokens = self.points(coords, codes.to(points.dtype))  # (1, C, 1, P + 1)
        filled = (codes >= LABELS["padding"]).to(tokens.dtype).unsqueeze(-1)  # (1, P + 1, 1)
        return tokens.squeeze(2).transpose(1, 2) * filled, self.no_mask.expand(-1, -1, self.grid, self.grid)


class AppleMaskDecoder(nn.Module):
    """Turn an image and the prompt encoder's embeddings into masks and scores."""

    never: Tensor

    def __init__(self, reference: ReferenceDecoder) -> None:
        super().__init__()
        self.decoder = TokenDecoder(copy.deepcopy(reference))
        # A tensor, because a bare number would lift everything after it to float32.
        self.register_buffer("never", torch.full((1, 1, 1, 1), NEVER))
        self.requires_grad_(False)
        self.eval()

    def forward(
        self, image_embedding: Tensor, sparse_embedding: Tensor, dense_embedding: Tensor, feats_s0: Tensor,
        feats_s1: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Shapes: (1, C, G, G), (1, T, C), (1, C, G, G), (1, C/8, 4G, 4G), (1, C/4, 2G, 2G) -> DecoderSpec.outputs."""
        image = image_embedding + dense_embedding
        image_tokens = image.reshape(1, image.shape[1], 1, -1)  # (1, C, 1, L)
        points = sparse_embedding.transpose(1, 2).unsqueeze(2)  # (1, C, 1, T)
        empty = (points.abs().amax(1, keepdim=True) == 0).to(points.dtype) * self.never  # (1, 1, 1, T)
        return self.decoder(image_tokens, points, empty, (feats_s0, feats_s1))
