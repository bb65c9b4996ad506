"""SAM 2's memory encoder: a frame's features and an object's mask become what later frames remember of the object.

It takes the decoder's outputs as they are. Inside are: the mask of an object that is not there, the enlarging, the
rounding to 0 and 1 of masks that clicks made, and SAM 2.1's embedding of no object.
Source: Meta's sam2: MemoryEncoder, SAM2Base._encode_new_memory and _forward_sam_heads, the video predictor and its
configurations; transformers' Sam2VideoModel. Letters as in reference.py; D channels of memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from samx.errors import CheckpointError
from samx.models.graph import Graph
from samx.models.lora import weight_readers
from samx.models.reference import LayerNorm2d
from samx.models.spec import UPSCALING, DecoderSpec, TensorSpec
from samx.models.weight_files import WeightSource
from samx.models.weights import check_finite, check_floats, owned_float32, refuse_quantised, some

ROLE = "memory_encoder"
PARTS = ("memory_encoder.", "no_obj_embed_spatial", "no_mem_embed")  # how the names of its weights begin
SCALE, BIAS = 20.0, -10.0  # of a mask's values from 0 to 1
NO_OBJECT = -1024.0  # logit of the mask of an object that is not there
STRIDE, STEPS = 2, 4  # of the convolutions that bring a mask to the grid
TEMPERATURE = 10000  # of the positions
# Of Hugging Face's configuration, what it has to say. Numbers of layers and channels are those of the weights.
CONFIGURATION: Mapping[str, Any] = {
    "sigmoid_scale_for_mem_enc": SCALE, "sigmoid_bias_for_mem_enc": BIAS, "mask_downsampler_kernel_size": 3,
    "mask_downsampler_stride": STRIDE, "mask_downsampler_padding": 1, "mask_downsampler_total_stride": STRIDE**STEPS,
    "mask_downsampler_hidden_act": "gelu", "memory_fuser_kernel_size": 7, "memory_fuser_padding": 3,
    "memory_fuser_hidden_act": "gelu",
}  # fmt: skip


class Downsampler(nn.Module):
    """Bring a mask to the size of the image tokens' grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step in range(STEPS):
            coarse, fine = (STRIDE ** (2 * i) for i in (step, step + 1))
            layers += [nn.Conv2d(coarse, fine, 3, STRIDE, 1), LayerNorm2d(fine), nn.GELU()]
        self.encoder = nn.Sequential(*layers, nn.Conv2d(STRIDE ** (2 * STEPS), width, 1))

    def forward(self, mask: Tensor) -> Tensor:
        """Shapes: (N, 1, 16G, 16G) -> (N, C, G, G)."""
        grown: Tensor = self.encoder(mask)
        return grown


class FuserBlock(nn.Module):
    """Mix neighbours channel by channel, then the channels of each; a residual block of ConvNeXt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, G, G) -> the same."""
        last = self.norm(self.dwconv(x)).permute(0, 2, 3, 1)
        mixed = self.gamma * self.pwconv2(self.act(self.pwconv1(last)))
        return x + mixed.permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Run the blocks."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(FuserBlock(width) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (N, C, G, G) -> the same."""
        fused: Tensor = self.layers(x)
        return fused


class Fusion(nn.Module):
    """Add masks to features, and project what comes of it: Meta's MemoryEncoder without its first and last steps."""

    def __init__(self, width: int, memory: int, blocks: int) -> None:
        super().__init__()
        self.mask_downsampler = Downsampler(width)
        self.pix_feat_proj = nn.Conv2d(width, width, 1)
        self.fuser = Fuser(width, blocks)
        self.out_proj = nn.Conv2d(width, memory, 1)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Shapes: (1|N, C, G, G), (N, 1, 16G, 16G) -> (N, D, G, G)."""
        fused: Tensor = self.out_proj(self.fuser(self.pix_feat_proj(features) + self.mask_downsampler(mask)))
        return fused


class MemoryEncoder(nn.Module):
    """Make the memories of N objects on one frame."""

    def __init__(self, spec: DecoderSpec, memory: int, blocks: int, spatial: bool) -> None:
        """Take the channels of memory, the fuser's blocks, and whether there is an embedding of no object."""
        super().__init__()
        self.spec, self.memory = spec, memory
        self.memory_encoder = Fusion(spec.width, memory, blocks)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, memory)) if spatial else None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Shapes: MemoryEncoder.inputs -> (N, D, G, G)."""
        image, masks, score, clicked = inputs
        present = (score > 0).to(masks.dtype).reshape(-1, 1, 1, 1)
        logits = enlarged(enlarged(present * masks + (1 - present) * NO_OBJECT, 2), 3)
        values = torch.where(clicked.reshape(-1, 1, 1, 1) > 0, (logits > 0).to(logits.dtype), logits.sigmoid())
        features = image - self.no_mem_embed.reshape(1, -1, 1, 1)  # the encoder added it for the decoder
        memory: Tensor = self.memory_encoder(features, SCALE * values + BIAS)
        if self.no_obj_embed_spatial is None:
            return memory
        return memory + (1 - present) * self.no_obj_embed_spatial.reshape(1, -1, 1, 1)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """List what goes in, by the names of the decoder's tensors where it is one of them."""
        image, size = self.spec.image_inputs[0], self.spec.mask_size
        return (
            image,
            TensorSpec("low_res_masks", ("prompts", 1, size, size), "logit", "each object's chosen mask"),
            TensorSpec("object_score_logits", ("prompts", 1), "logit", "as the decoder returns them"),
            TensorSpec("is_mask_from_points", ("prompts",), "1", "1 where a user's prompt made the mask, else 0"),
        )

    def graph(self) -> Graph:
        """Return what an exporter writes."""
        grid = self.spec.grid
        memory = TensorSpec("memory_features", ("prompts", self.memory, grid, grid), "1", "each object's memory")
        return Graph(ROLE, self, self.inputs, (memory,), {"role": ROLE, "spec": self.spec.to_json()})

    def positions(self) -> Tensor:
        """Encode the positions that go with every memory. Shapes: -> (1, D, G, G)."""
        half = self.memory // 2
        centres = torch.arange(1, self.spec.grid + 1) / (self.spec.grid + 1e-6) * 2 * math.pi
        angles = centres.unsqueeze(1) / TEMPERATURE ** (2 * (torch.arange(half) // 2) / half)  # (G, D/2)
        waves = torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1).t()
        rows, columns = (waves.unsqueeze(axis).expand(-1, self.spec.grid, self.spec.grid) for axis in (2, 1))
        return torch.cat([rows, columns]).unsqueeze(0)


def enlarged(x: Tensor, axis: int) -> Tensor:
    """Enlarge an axis by four, bilinearly, as F.interpolate without align_corners: each phase has two taps."""
    size = x.shape[axis]
    before = torch.cat([x.narrow(axis, 0, 1), x.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, size - 1), x.narrow(axis, size - 1, 1)], axis)
    shares = [(2 * phase + 1 - UPSCALING) / (2 * UPSCALING) for phase in range(UPSCALING)]  # -3/8 to 3/8
    phases = [(1 - abs(share)) * x + abs(share) * (before if share < 0 else after) for share in shares]
    return torch.stack(phases, axis + 1).flatten(axis, axis + 1)


def load_memory_encoder(source: WeightSource, spec: DecoderSpec, prefix: str | None) -> MemoryEncoder:
    """Build a checkpoint's memory encoder; prefix: in front of its decoder's keys, where there was a choice.

    Raises: CheckpointError where it has none that samx knows.
    """
    readers, family = weight_readers(source), spec.rules
    where = (family.prefixes(readers) if prefix is None else [prefix])[0]
    names = family.names_of(PARTS, readers, where) if family.remembers else {}
    if "memory_encoder.out_proj.weight" not in names.values() or "no_mem_embed" not in names.values():
        raise _refused(source, "has no memory encoder that samx knows", f"{family.title}, keys {some(names) or 'none'}")
    refuse_quantised(source.path, names)
    _check_configuration(source)
    weights = {}
    for key, name in names.items():
        tensor = readers[key]()
        check_floats(source.path, key, tensor)
        weights[name] = owned_float32(tensor)
    check_finite(source.path, weights)
    return _filled(source, spec, weights)


def _filled(source: WeightSource, spec: DecoderSpec, weights: dict[str, Tensor]) -> MemoryEncoder:
    """Load weights into a module of their sizes, each of them."""
    blocks = len({match[1] for name in weights if (match := re.match(r"memory_encoder\.fuser\.layers\.(\d+)\.", name))})
    memory = weights["memory_encoder.out_proj.weight"].shape[0]
    module = MemoryEncoder(spec, memory, blocks, "no_obj_embed_spatial" in weights)
    expected, found = ({name: tuple(t.shape) for name, t in of.items()} for of in (module.state_dict(), weights))
    wrong = sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))
    if wrong:
        raise _refused(source, "has a memory encoder of another kind", some(f"{n} {found.get(n)}" for n in wrong))
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def _check_configuration(source: WeightSource) -> None:
    """Refuse a configuration that says what is not computed here."""
    wrong: Iterable[str] = (
        f"{name} = {source.config[name]!r} in config.json"
        for name, value in CONFIGURATION.items()
        if source.config.get(name, value) != value
    )
    if first := next(iter(wrong), None):
        raise _refused(source, "has a memory encoder of another kind", first)


def _refused(source: WeightSource, problem: str, found: str) -> CheckpointError:
    return CheckpointError(
        f"'{source.path}' {problem}", found=found, expected="'memory_encoder.*' of SAM 2's whole checkpoint",
        fix="Leave --memory-encoder out.",
    )  # fmt: skip
