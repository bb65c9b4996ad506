"""The decoder cut as the public Core ML SAM 2.1 apps expect it: a prompt encoder, and a mask decoder behind it.

Between the two, an embedding that is zero throughout stands for a padded point: no real token is.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from samx.models.fast.prompts import NEVER
from samx.models.fixed.decoder import TokenDecoder
from samx.models.fixed.layers import PointTokens
from samx.models.reference import ReferenceDecoder
from samx.models.spec import LABELS


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
        no_mask = reference.prompt_encoder.no_mask_embed.weight.detach().reshape(1, -1, 1, 1)
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
        outputs: tuple[Tensor, ...] = self.decoder(image_tokens, points, empty, (feats_s0, feats_s1))
        return outputs
