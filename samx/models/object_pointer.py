"""Object pointers: what SAM 2's memory keeps of an object beside its mask, made of the mask's token.

Source: Meta's sam2: SAM2Base._forward_sam_heads with fixed_no_obj_ptr and without soft_no_obj_ptr, as every released
configuration has it; transformers' Sam2VideoModel. Letters as in reference.py.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from samx.models.reference import MLP, ReferenceDecoder
from samx.models.session import Feed
from samx.models.spec import LABELS, DecoderSpec, MaskChoice

PARTS = ("object_pointer.",)  # how the names of its weights begin
# Of turned(): how far beyond zero the score is moved, in how many steps at most, for clicks so many a side.
MARGIN, MOST_STEPS, CLICKS = 5.0, 24, 2
# Which mask tokens are read: a single mask's is the first, also where the decoder falls back to another mask.
READ: dict[MaskChoice, slice] = {"single": slice(0, 1), "multimask": slice(1, None), "all": slice(None)}


class ObjectPointer(nn.Module):
    """Project tokens into pointers; where the object is out of the picture, each is the learned one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = MLP(width, width, width, 3)
        self.absent = nn.Parameter(torch.zeros(1, width))

    def forward(self, tokens: Tensor, score: Tensor) -> Tensor:
        """Shapes: (N, M, C), (N, 1) logits -> (N, M, C)."""
        return only_present(self.proj(tokens), self.absent, (score > 0).to(tokens.dtype).unsqueeze(2))


def only_present(pointers: Tensor, absent: Tensor, present: Tensor) -> Tensor:
    """Put the learned pointer where no object is. Shapes: any that broadcast; present is 1 or 0."""
    return present * pointers + (1 - present) * absent


class PointingDecoder(ReferenceDecoder):
    """Decode, and return a pointer for each mask."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__(spec)
        self.object_pointer = ObjectPointer(spec.width)

    def chosen(self, tokens: Tensor, upscaled: Tensor) -> dict[str, Tensor]:
        """Return the masks of the spec. Shapes: as attended() returns them -> DecoderSpec.outputs."""
        outputs = super().chosen(tokens, upscaled)
        first = int(self.spec.object_score) + 1
        mask_tokens = tokens[:, first : first + self.spec.mask_tokens][:, READ[self.spec.masks]]
        return {**outputs, "object_pointers": self.object_pointer(mask_tokens, outputs["object_score_logits"])}


def turned(decoder: ReferenceDecoder, image: Feed) -> Feed:
    """Move an image's embedding until the objects that clicks ask for are no longer there, or until they are.

    Steps go down the mean score's slope, as far as a straight line would have to.
    """
    features = {name: torch.from_numpy(np.array(value)) for name, value in image.items()}
    clicks, moved, target = _clicks(decoder.spec), features["image_embeddings"], None
    for _ in range(MOST_STEPS):
        moved = moved.detach().requires_grad_(True)
        with torch.enable_grad():
            score = decoder(**{**features, "image_embeddings": moved}, **clicks)["object_score_logits"].mean()
        target = MARGIN * (-1 if score > 0 else 1) if target is None else target
        if score * target > target * target:
            break
        (slope,) = torch.autograd.grad(score, moved)
        moved = moved + (1.1 * target - score) / slope.square().sum().clamp(min=1e-12) * slope
    return {**image, "image_embeddings": moved.detach().numpy()}


def _clicks(spec: DecoderSpec) -> dict[str, Tensor]:
    """Spread clicks over the frame, each padded."""
    steps = (torch.arange(CLICKS) + 0.5) / CLICKS * spec.image_size
    clicks = torch.cartesian_prod(steps, steps).unsqueeze(1)  # (N, 1, 2)
    labels = torch.tensor([[LABELS["foreground"], LABELS["padding"]]], dtype=torch.float32)
    return {
        "point_coords": torch.cat([clicks, torch.zeros_like(clicks)], 1),
        "point_labels": labels.repeat(len(clicks), 1),
    }
