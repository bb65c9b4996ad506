"""Small real decoders with random weights whose outputs are as large as trained ones, shared by the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samx.models.checkpoint import LoadedDecoder
from samx.models.reference import ReferenceDecoder
from samx.models.session import Feed
from samx.models.spec import DecoderSpec

MASK_LOGIT_GAIN, HQ_LOGIT_GAIN, IOU_GAIN = (
    60.0,
    40.0,
    6.0,
)  # bring random weights to the logits (about 10) and IoU spread of trained ones


def toy_decoder(spec: DecoderSpec, seed: int = 7) -> ReferenceDecoder:
    """Make a decoder with random weights at trained-like output scale."""
    torch.manual_seed(seed)
    decoder: ReferenceDecoder = spec.rules.reference_class(spec.object_pointer)(spec).eval().requires_grad_(False)
    heads = [mlp.layers[-1] for mlp in decoder.mask_decoder.output_hypernetworks_mlps]  # type: ignore[index]
    scaled = [(head, MASK_LOGIT_GAIN) for head in heads]
    scaled.append((decoder.mask_decoder.iou_prediction_head.layers[-1], IOU_GAIN))
    if spec.hq_token:
        scaled.append((decoder.mask_decoder.get_submodule("hf_mlp.layers.2"), HQ_LOGIT_GAIN))
    if spec.object_score:
        scaled.append((decoder.mask_decoder.pred_obj_score_head.layers[-1], MASK_LOGIT_GAIN))  # type: ignore[index]
    for layer, gain in scaled:
        assert isinstance(layer, nn.Linear)
        layer.weight.mul_(gain)
    return decoder


def toy_checkpoint(spec: DecoderSpec, seed: int = 7) -> LoadedDecoder:
    """Give the toy decoder as the checkpoint loader would."""
    weights = toy_decoder(spec, seed).state_dict()
    return LoadedDecoder(spec, weights, "toy.pth", hashlib.sha256(b"toy").hexdigest(), 3, "toy", "float32")


def image_tensors(spec: DecoderSpec, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Draw one image's features."""
    generator = torch.Generator().manual_seed(seed)
    return {t.name: torch.randn(*map(int, t.shape), generator=generator, dtype=dtype) for t in spec.image_inputs}


def prompt_tensors(
    spec: DecoderSpec, prompts: int, labels: list[int], dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Tensor]:
    """Draw prompts with these labels each; with mask input, every second prompt brings a mask."""
    generator = torch.Generator().manual_seed(seed)
    coords = torch.rand(prompts, len(labels), 2, generator=generator, dtype=dtype) * spec.image_size
    feed = {
        "point_coords": coords,
        "point_labels": torch.tensor([labels] * prompts, dtype=dtype).reshape(prompts, len(labels)),
    }
    if not spec.mask_input:
        return feed
    mask = 5 * torch.randn(prompts, 1, spec.mask_size, spec.mask_size, generator=generator, dtype=dtype)
    return {**feed, "mask_input": mask, "has_mask_input": torch.arange(prompts, dtype=dtype).add(1).fmod(2)}


def arrays(tensors: dict[str, Tensor]) -> Feed:
    """Turn tensors into a session's feed."""
    return {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute on one thread: on tensors as small as these, several only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
