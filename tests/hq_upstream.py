"""HQ-SAM's decoders around Meta's own classes, and transformers' class with its defect mended."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from checkpoint_files import randomize
from torch import Tensor, nn
from upstream_encoders import State, meta_hiera, meta_vit

WIDTH, FINE = 256, 32
INTERM = 48  # of the small ViT
LOGIT_GAIN = 10.0  # brings random weights' logits beyond 50


class Hq(nn.Module):
    """What HQ-SAM adds to a class of Meta's decoder, which computes everything else. A mixin."""

    interm: Tensor | None = None  # of the image, as the encoder left it
    hq: Tensor  # the last prompts' mask
    # Of Meta's class, and added.
    mask_tokens: Any
    output_hypernetworks_mlps: Any
    num_mask_tokens: Any
    output_upscaling: Any
    hf_token: Any
    compress_vit_feat: Any
    embedding_encoder: Any

    def add_parts(self, interm: int) -> None:
        """Add the modules under SysCV's names; interm: 0 for HQ-SAM 2."""
        norm = import_module("segment_anything.modeling.common").LayerNorm2d
        mlp = import_module("segment_anything.modeling.mask_decoder").MLP
        self.hf_token, self.hf_mlp = nn.Embedding(1, WIDTH), mlp(WIDTH, WIDTH, FINE, 3)
        self.embedding_maskfeature = nn.Sequential(
            nn.Conv2d(FINE, 64, 3, 1, 1), norm(64), nn.GELU(), nn.Conv2d(64, FINE, 3, 1, 1)
        )
        for name, widths in {"embedding_encoder": (WIDTH, 64), "compress_vit_feat": (interm, WIDTH)}.items():
            if interm:
                first, second = nn.ConvTranspose2d(*widths, 2, 2), nn.ConvTranspose2d(widths[1], FINE, 2, 2)
                setattr(self, name, nn.Sequential(first, norm(widths[1]), nn.GELU(), second))

    def predict_masks(self, image_embeddings: Tensor, **given: Any) -> tuple[Tensor, ...]:
        """Let Meta's code run with a fifth mask token; keep what HQ-SAM's mask is made of."""
        own = self.mask_tokens, self.output_hypernetworks_mlps, self.num_mask_tokens
        tokens = torch.cat([self.mask_tokens.weight, self.hf_token.weight])
        self.mask_tokens = nn.Embedding.from_pretrained(tokens)
        self.output_hypernetworks_mlps = nn.ModuleList([*self.output_hypernetworks_mlps, self.hf_mlp])
        self.num_mask_tokens += 1
        seen: dict[str, Tensor] = {}
        parts = {"pixels": self.output_upscaling[-1], "weights": self.hf_mlp}
        hooks = [
            part.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
            for name, part in parts.items()
        ]
        try:
            masks, iou, *more = super().predict_masks(image_embeddings=image_embeddings, **given)  # type: ignore[misc]
        finally:
            self.mask_tokens, self.output_hypernetworks_mlps, self.num_mask_tokens = own
            for hook in hooks:
                hook.remove()
        pixels = self.embedding_maskfeature(seen["pixels"])
        if self.interm is not None:
            early = self.compress_vit_feat(self.interm.permute(0, 3, 1, 2))
            pixels = pixels + self.embedding_encoder(image_embeddings) + early
        self.hq = torch.einsum("nc,nchw->nhw", seen["weights"], pixels)[:, None]
        return (masks[:, :-1], iou, *more)


def hq_sam_decoder(interm: int = INTERM) -> Any:
    """Build HQ-SAM's decoder."""
    modeling = import_module("segment_anything.modeling")
    base = modeling.MaskDecoder

    class Decoder(Hq, base):  # type: ignore[valid-type,misc]
        def forward(self, multimask_output: bool, **given: Any) -> tuple[Tensor, Tensor]:
            masks, iou = self.predict_masks(
                given["image_embeddings"], image_pe=given["image_pe"],
                sparse_prompt_embeddings=given["sparse_prompt_embeddings"],
                dense_prompt_embeddings=given["dense_prompt_embeddings"],
            )  # fmt: skip
            best = iou[:, 1:].argmax(1) + 1 if multimask_output else torch.zeros(len(iou), dtype=torch.int64)
            rows = torch.arange(len(iou))
            return masks[rows, best][:, None] + self.hq, iou[rows, best][:, None]

    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8)
    decoder = Decoder(transformer_dim=WIDTH, transformer=transformer, iou_head_depth=3, iou_head_hidden_dim=WIDTH)
    decoder.add_parts(interm)
    return decoder


def hq_sam2_decoder() -> Any:
    """Build HQ-SAM 2's decoder."""
    base = import_module("sam2.modeling.sam.mask_decoder").MaskDecoder
    transformer = import_module("sam2.modeling.sam.transformer").TwoWayTransformer(2, WIDTH, 8, 2048)

    class Decoder(Hq, base):  # type: ignore[valid-type,misc]
        def forward(self, **given: Any) -> tuple[Tensor, ...]:
            masks, *more = super().forward(**given)
            return (masks + self.hq, *more)

    decoder = Decoder(
        transformer_dim=WIDTH, transformer=transformer, use_high_res_features=True, iou_prediction_use_sigmoid=True,
        dynamic_multimask_via_stability=True, pred_obj_scores=True, pred_obj_scores_mlp=True,
    )  # fmt: skip
    decoder.add_parts(0)
    return decoder


def hq_sam(size_px: int, encoder: Any = None, early: nn.Module | None = None, interm: int = INTERM) -> Any:
    """Build HQ-SAM with a small encoder; what its layer `early` returns, NCHW, goes to the decoder too."""
    modeling = import_module("segment_anything.modeling")
    grid, decoder = size_px // 16, hq_sam_decoder(interm)
    order = (0, 1, 2, 3) if encoder is None else (0, 2, 3, 1)
    if encoder is None:
        encoder = meta_vit(size_px, width=interm, out=WIDTH)
        early = encoder.blocks[1]
    sam = modeling.Sam(
        encoder, modeling.PromptEncoder(WIDTH, (grid, grid), (size_px, size_px), 16), decoder,
        [123.675, 116.28, 103.53], [58.395, 57.12, 57.375],
    ).eval()  # fmt: skip
    assert early is not None
    early.register_forward_hook(lambda _, __, out: setattr(decoder, "interm", out.permute(order)))
    return loud(sam, decoder)


def loud(model: Any, decoder: Any) -> Any:
    """Give all but the encoder weights that show, and logits the size of trained ones."""
    for part in (model.prompt_encoder, decoder):
        randomize(part)
    louder(decoder)
    return model.requires_grad_(False)


@torch.no_grad()
def louder(decoder: Any) -> None:
    """Bring a decoder's logits to the size of trained ones."""
    for mlp in (*decoder.output_hypernetworks_mlps, decoder.hf_mlp):
        mlp.layers[-1].weight.mul_(LOGIT_GAIN)


def hq_sam2_state(model: nn.Module) -> State:
    """Return a small HQ-SAM 2 with an encoder as its publisher saves it."""
    encoder = meta_hiera().state_dict()
    return {**encoder, **{f"sam_{name}": value for name, value in model.state_dict().items()}}


def mended(model: Any) -> Any:
    """Let transformers' SamHQModel upscale what its two-way transformer returns.

    Version 5.23 names that as if it were the IoU token, forgets it, and upscales the image as it was before, its rows
    and columns swapped.
    """
    kept: list[Tensor] = []
    model.mask_decoder.transformer.register_forward_hook(lambda _, __, out: kept.append(out[1]))
    model.mask_decoder.upscale_conv1.register_forward_pre_hook(
        lambda _, given: (kept.pop().transpose(2, 3).reshape(given[0].shape),)
    )
    return model
