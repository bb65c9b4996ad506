"""The demo model: a small convolutional U-Net, a full-size decoder, and the names under which weights are stored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from samx.demo import demo_checkpoint
from samx.demo.scenes import generate_scene
from samx.models.encoders.base import Architecture, Encoder, Weights, loaded_strictly
from samx.models.encoders.load import LoadedEncoder
from samx.models.reference import Attention, ReferenceDecoder
from samx.models.session import Feed
from samx.models.spec import DecoderSpec, family_spec
from samx.processing.frames import Frame
from samx.processing.images import to_frame

FORMAT_TAG = "samx_demo"

PICTURE_POOL = 4  # the frame is averaged 4 x 4 first: a 1024 px frame is seen as a 256 px picture
EMBEDDING_WIDTH = 256
WIDTHS = (16, 32, 64, 96, 128, 128)  # at 1, 1/2, 1/4, 1/8, 1/16 and 1/32 of the picture
HIGH_RES_CHANNELS = (32, 64)  # what SAM 2's decoder expects at 1 and 1/2 of the picture
NORM_GROUPS = 8
PIXEL_MEAN, PIXEL_STD = 0.5, 0.25

# The head start below. Chosen so that attention scores are a few units where a click meets its own cell. In a short
# trial plain weights learned to follow clicks far more slowly.
POSITION_SCALE = 1.5  # spread of the positional frequencies: the scenes' sub-parts are small
LABEL_SCALE = 0.3  # label embeddings: they should not drown the position that they are added to
ATTENTION_GAIN = 1.3

# Module name -> name in Meta's checkpoints, first match wins; and parts of names.
STORED_NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "sam1": (("encoder.", "image_encoder."), ("decoder.", "")),
    "sam2": (
        ("encoder.conv_s", "sam_mask_decoder.conv_s"),
        ("encoder.", "image_encoder."),
        ("decoder.mask_decoder.", "sam_mask_decoder."),
        ("decoder.prompt_encoder.", "sam_prompt_encoder."),
    ),
}
STORED_PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "sam1": (),
    "sam2": ((".mlp.lin1.", ".mlp.layers.0."), (".mlp.lin2.", ".mlp.layers.1.")),
}


class GroupNorm(nn.GroupNorm):
    """Normalise in groups of channels, with means of means, side by side.

    ONNX Runtime adds a group's values up one by one in float32: 1.9e-5 of the features of a 1024 px picture, so 5e-7.
    """

    keep_fp32 = True  # squares of activations

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. Shapes: (B, C, H, W) -> the same."""
        groups = x.unflatten(1, (self.num_groups, -1))
        apart = groups - groups.mean(-1, keepdim=True).mean((2, 3), keepdim=True)
        variance = apart.square().mean(-1, keepdim=True).mean((2, 3), keepdim=True)
        normed = (apart * (variance + self.eps).rsqrt()).flatten(1, 2)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class ConvNorm(nn.Sequential):
    """Convolve, normalise in groups of channels, rectify."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, bias=False),
            GroupNorm(NORM_GROUPS, width_out),
            nn.ReLU(),
        )


class Residual(nn.Module):
    """Add a convolution's result to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class DemoEncoder(Encoder):
    """Encode a frame into the image embedding and, for SAM 2, the two high-resolution features.

    The frame's side must be a multiple of 128 px; its values are RGB from 0 to 1, padding is 0.
    """

    def __init__(self, high_res: bool = False) -> None:
        super().__init__()
        w = WIDTHS
        self.stem = ConvNorm(3, w[0])
        self.down = nn.ModuleList(ConvNorm(a, b, stride=2) for a, b in pairwise(w))
        self.blocks = nn.ModuleList(
            [nn.Identity(), nn.Identity(), Residual(w[2]), Residual(w[3]), Residual(w[4]), nn.Identity()]
        )
        self.lateral = nn.ModuleList(ConvNorm(b, a, kernel=1) for a, b in pairwise(w[2:]))
        self.fuse = nn.ModuleList([Residual(w[2]), Residual(w[3]), nn.Identity()])
        self.neck = nn.Sequential(nn.Conv2d(w[2], EMBEDDING_WIDTH, 1, bias=False), GroupNorm(1, EMBEDDING_WIDTH))
        self.conv_s0 = nn.Conv2d(w[0], HIGH_RES_CHANNELS[0], 1) if high_res else None
        self.conv_s1 = nn.Conv2d(w[1], HIGH_RES_CHANNELS[1], 1) if high_res else None

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Encode a frame.

        Shapes: (B, 3, 16G, 16G) -> image_embeddings (B, 256, G, G)
            [, high_res_features_0 (B, 32, 4G, 4G), high_res_features_1 (B, 64, 2G, 2G)].
        """
        return self.encode_picture(F.avg_pool2d(pixels, PICTURE_POOL))

    def encode_picture(self, picture: Tensor) -> tuple[Tensor, ...]:
        """Encode an already averaged frame. Shapes: (B, 3, 4G, 4G) -> as forward."""
        levels = [self.stem((picture - PIXEL_MEAN) / PIXEL_STD)]
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            levels.append(block(down(levels[-1])))
        x = levels[5]
        for index in (2, 1, 0):
            grown = F.interpolate(self.lateral[index](x), scale_factor=2.0, mode="nearest")
            x = self.fuse[index](levels[index + 2] + grown)
        embedding = self.neck(x)
        if self.conv_s0 is None or self.conv_s1 is None:
            return (embedding,)
        return embedding, self.conv_s0(levels[0]), self.conv_s1(levels[1])


class DemoModel(nn.Module):
    """Hold the demo encoder and a full-size decoder at one grid."""

    def __init__(self, family: str, grid: int = 64) -> None:
        super().__init__()
        self.family = family
        self.spec = family_spec(family, image_size=16 * grid, masks="all")
        self.encoder = DemoEncoder(high_res=self.spec.high_res_features)
        self.encoder.picture_px = self.spec.image_size
        self.decoder = ReferenceDecoder(self.spec)

    def decode(
        self, features: tuple[Tensor, ...], coords: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Decode prompts with every token. Shapes: as ReferenceDecoder.all_masks."""
        return self.decoder.all_masks(features[0], coords, labels, mask, None, *features[1:])


def stored_name(family: str, name: str) -> str:
    """Translate a parameter's module name into its name in the checkpoint."""
    for ours, theirs in STORED_NAMES[family]:
        if name.startswith(ours):
            name = theirs + name[len(ours) :]
            break
    for ours, theirs in STORED_PARTS[family]:
        name = name.replace(ours, theirs)
    return name


def save_demo(model: DemoModel, path: Path, notes: dict[str, str]) -> None:
    """Write the weights as float16, whole or not at all."""
    state = {stored_name(model.family, k): v.detach().half().contiguous() for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    save_file(state, draft, metadata={"format": FORMAT_TAG, "family": model.family, **notes})
    draft.chmod(0o644)  # safetensors writes for the owner alone; an installed package is read by everyone
    os.replace(draft, path)


def load_demo(family: str, path: Path | None = None, grid: int = 64) -> DemoModel:
    """Build the demo model of a family from a weights file (the shipped one by default), in float32."""
    model = DemoModel(family, grid)
    stored = load_file(path or demo_checkpoint(family))
    state = {name: stored[stored_name(family, name)].float() for name in model.state_dict()}
    model.load_state_dict(state)
    return model.eval()


def demo_notes(path: Path) -> dict[str, str]:
    """Read what a weights file says about itself."""
    with safe_open(path, framework="pt") as handle:
        return dict(handle.metadata() or {})


def grow_to_sam2(sam1: DemoModel, grid: int) -> DemoModel:
    """Start a SAM 2 model from a trained SAM 1 model, so that at first it predicts the same masks.

    The high-resolution features start at zero; SAM 1's straight IoU y becomes sigmoid(4 y - 2), close to y.
    """
    sam2 = DemoModel("sam2", grid)
    sam2.load_state_dict(sam1.state_dict(), strict=False)
    with torch.no_grad():
        for conv in (sam2.encoder.conv_s0, sam2.encoder.conv_s1):
            assert conv is not None
            assert conv.bias is not None
            conv.weight.zero_()
            conv.bias.zero_()
        last = cast(nn.Linear, sam2.decoder.mask_decoder.iou_prediction_head.layers[-1])
        last.weight.mul_(4.0)
        last.bias.mul_(4.0).sub_(2.0)
    return sam2


@torch.no_grad()
def head_start(decoder: ReferenceDecoder) -> None:
    """Initialise the attentions between tokens and image so that like finds like from the first step.

    Equal query and key weights make a click attend to where it lies and to what looks the same; the value's and
    the output's weights undo each other, so that what is attended to arrives unchanged. From plain random
    weights most of a short training would go into finding this.
    """
    decoder.prompt_encoder.pe_layer.get_buffer("positional_encoding_gaussian_matrix").mul_(POSITION_SCALE)
    for embedding in (*decoder.prompt_encoder.point_embeddings, decoder.prompt_encoder.no_mask_embed):
        cast(nn.Embedding, embedding).weight.mul_(LABEL_SCALE)
    for module in decoder.mask_decoder.transformer.modules():
        if isinstance(module, Attention) and module.q_proj.out_features < module.q_proj.in_features:
            nn.init.orthogonal_(module.q_proj.weight, ATTENTION_GAIN)
            module.k_proj.weight.copy_(module.q_proj.weight)
            nn.init.orthogonal_(module.v_proj.weight)
            module.out_proj.weight.copy_(module.v_proj.weight.T)
            for linear in (module.q_proj, module.k_proj, module.v_proj, module.out_proj):
                linear.bias.zero_()


# Far from every training, validation and held-out seed of samx.demo.
PARITY_SCENES: Sequence[tuple[int, tuple[int, int]]] = ((900_001, (1024, 1024)), (900_002, (1024, 768)))


def is_demo(checkpoint: Path) -> bool:
    """Tell whether a checkpoint is a samx demo model, which carries its own encoder."""
    return checkpoint.suffix == ".safetensors" and demo_notes(checkpoint).get("format") == FORMAT_TAG


def demo_images(checkpoint: Path, spec: DecoderSpec) -> list[Feed]:
    """Encode the demo scenes that parity is judged on: one square, one not."""
    model = load_demo(spec.family, checkpoint, spec.grid)
    return [_encode(model, spec, seed, size) for seed, size in PARITY_SCENES]


@torch.inference_mode()
def _encode(model: DemoModel, spec: DecoderSpec, seed: int, size: tuple[int, int]) -> Feed:
    picture = generate_scene(seed, size).image
    frame = to_frame(np.asarray(picture), Frame.of(spec, picture.shape[1], picture.shape[0]))
    features = model.encoder(torch.from_numpy(frame))
    named = zip(spec.image_inputs, features, strict=True)
    return {tensor.name: feature.numpy() for tensor, feature in named}


def _built(weights: Weights, spec: DecoderSpec) -> Encoder:
    encoder = DemoEncoder(spec.high_res_features)
    encoder.picture_px = spec.image_size
    return loaded_strictly(encoder, weights, ENCODER.title)


ENCODER = Architecture("demo", "samx's demo encoder", (r"^stem\.0\.", r"^lateral\."), _built)


def demo_encoder(checkpoint: Path, spec: DecoderSpec) -> LoadedEncoder:
    """Return the encoder that a demo checkpoint carries. It takes RGB from 0 to 1."""
    weights = load_demo(spec.family, checkpoint, spec.grid).encoder.state_dict()
    return LoadedEncoder(ENCODER, ENCODER.build(weights, spec))
