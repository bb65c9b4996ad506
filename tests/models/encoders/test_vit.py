"""SAM's image encoder computes what Meta's does, at the size of its checkpoint and at others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import upstream_encoders as upstream
from checkpoint_files import randomize
from torch import Tensor, nn
from torch.nn import functional

from samx.errors import CheckpointError
from samx.models.encoders import vit
from samx.models.spec import DecoderSpec, sam1_spec

TOLERANCE = 2e-6  # float32 sums in another order
FOLDING_TOLERANCE = 5e-7  # weights folded in float32 and computed with in float64
State = dict[str, Tensor]


def spec_of(image_size: int, width: int = upstream.WIDTH) -> DecoderSpec:
    return sam1_spec(image_size=image_size, width=width)


def error(encoder: nn.Module, theirs: nn.Module, image_size: int) -> float:
    pixels = upstream.pictures(image_size)
    (ours,) = encoder(pixels)
    assert len(ours) == len(pixels)
    return upstream.relative_error(ours, theirs(pixels))


@pytest.mark.parametrize(
    "image_size",
    [128, 224, 256, 512],
    ids=["a window is larger", "a window is everything", "padded windows", "queries in chunks"],
)
def test_it_computes_what_metas_does(image_size: int) -> None:
    theirs = upstream.meta_vit(image_size)
    encoder = vit.build(theirs.state_dict(), spec_of(image_size))
    assert error(encoder, theirs, image_size) <= TOLERANCE
    assert (encoder.picture_px, encoder.notes) == (image_size, ())
    assert upstream.shapes(encoder(upstream.pictures(image_size))) == upstream.expected_shapes(spec_of(image_size))


def test_metas_weights_are_left_as_they_are() -> None:
    theirs = upstream.meta_vit(128)
    before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    vit.build(theirs.state_dict(), spec_of(128))
    assert all(torch.equal(before[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.slow
def test_vit_b_computes_what_metas_does() -> None:
    """Compare with Meta's in float64, whose own float32 is 1.8e-6 off at this depth, about as much as the tolerance."""
    theirs, pixels = upstream.meta_vit(1024, width=768, blocks=12, heads=12, out=256), upstream.pictures(1024, 1)
    encoder = vit.build(theirs.state_dict(), sam1_spec())
    (ours,), other = encoder(pixels), theirs(pixels)
    exact = theirs.double()(pixels.double())
    assert upstream.relative_error(ours.double(), exact) <= 1.5 * upstream.relative_error(other.double(), exact)
    (folded,) = encoder.double()(pixels.double())
    assert upstream.relative_error(folded, exact) <= FOLDING_TOLERANCE


def adapted(theirs: Any) -> State:
    """Give each block of Meta's encoder SAM-Med2D's adapter, and return the state with its weights."""
    state: State = theirs.state_dict()
    width = theirs.pos_embed.shape[-1]
    for number, block in enumerate(theirs.blocks):
        adapter = vit.Adapter(width, 12)  # for the names and shapes of its weights alone
        randomize(adapter, number)
        weights = {name: tensor.detach() for name, tensor in adapter.state_dict().items()}
        state |= {f"blocks.{number}.Adapter.{name}": tensor for name, tensor in weights.items()}
        seen: list[Tensor] = []
        block.norm2.register_forward_hook(lambda _module, _inputs, output, seen=seen: seen.append(output))
        block.register_forward_hook(
            lambda _module, _inputs, output, seen=seen, weights=weights: output + plain_adapter(seen.pop(), weights)
        )
    return state


def plain_adapter(tokens: Tensor, weights: State) -> Tensor:
    """Write SAM-Med2D's adapter out, channels first."""
    maps = tokens.permute(0, 3, 1, 2)
    mean = functional.adaptive_avg_pool2d(maps, 1).flatten(1)
    hidden = (mean @ weights["channel.0.weight"].T).relu()
    weighed = torch.sigmoid(hidden @ weights["channel.2.weight"].T)[:, :, None, None] * maps
    small = functional.conv2d(weighed, weights["spatial.0.weight"], stride=2, padding=1).relu()
    large = functional.conv_transpose2d(small, weights["spatial.2.weight"], stride=2, padding=1).relu()
    summed = (maps + large).permute(0, 2, 3, 1)
    return functional.layer_norm(summed, summed.shape[-1:], weights["norm.weight"], weights["norm.bias"], 1e-5)


def test_sam_med2ds_adapters_stand_beside_the_layers() -> None:
    theirs = upstream.meta_vit(256)
    state = adapted(theirs)
    assert error(vit.build(state, spec_of(256)), theirs, 256) <= TOLERANCE


@pytest.mark.parametrize(("own_px", "asked_px"), [(256, 512), (512, 256), (512, 320)])
def test_another_size_has_resampled_positions(own_px: int, asked_px: int) -> None:
    """Meta's encoder resizes relative positions itself where their number is another; SAM-Med2D the absolute ones."""
    own, theirs = upstream.meta_vit(own_px), upstream.meta_vit(asked_px)
    state = own.state_dict()
    resized = ("pos_embed", "blocks.1.attn.rel_pos_h", "blocks.1.attn.rel_pos_w")
    theirs.load_state_dict({name: tensor for name, tensor in state.items() if name not in resized}, strict=False)
    side, positions = asked_px // 16, state["pos_embed"].permute(0, 3, 1, 2)
    larger = functional.interpolate(positions, (side, side), mode="bilinear", align_corners=False)
    theirs.pos_embed = nn.Parameter(larger.permute(0, 2, 3, 1), requires_grad=False)
    attention = theirs.blocks[1].attn
    attention.rel_pos_h, attention.rel_pos_w = own.blocks[1].attn.rel_pos_h, own.blocks[1].attn.rel_pos_w
    encoder = vit.build(state, spec_of(asked_px))
    assert error(encoder, theirs, asked_px) <= TOLERANCE
    assert encoder.picture_px == asked_px
    assert f"trained at {own_px} px" in encoder.notes[0]
    assert "an approximation" in encoder.notes[0]


def changed(state: State, drop: str = "", **added: Any) -> State:
    kept = {name: tensor for name, tensor in state.items() if not drop or not name.startswith(drop)}
    return {**kept, **{name.replace("__", "."): tensor for name, tensor in added.items()}}


@pytest.mark.parametrize(
    ("drop", "added", "said"),
    [
        ("pos_embed", {}, "lacks weights: found pos_embed"),
        ("patch_embed.proj.weight", {}, "lacks weights: found patch_embed.proj.weight"),
        ("patch_embed.proj.bias", {}, "lacks weights: found patch_embed.proj.bias"),
        ("blocks.1.", {}, "lacks weights: found blocks.1.attn.rel_pos_h"),
        ("blocks.2.mlp.lin2.bias", {}, "lacks weights: found blocks.2.mlp.lin2.bias"),
        ("blocks.", {}, "that heads do not divide"),
        ("neck.2.", {}, "lacks weights: found neck.2.weight"),
        (
            "",
            {"blocks__0__attn__qkv__lora_A__weight": torch.ones(4, 4)},
            "should not have: found blocks.0.attn.qkv.lora",
        ),
        ("", {"blocks__0__MLP_Adapter__D_fc1__weight": torch.ones(4, 4)}, "should not have: found blocks.0.MLP_Adap"),
        ("", {"pos_embed": torch.ones(16, 48)}, "wrong shape: found pos_embed (16, 48), expected 4 axes"),
        ("", {"neck__0__weight": torch.ones(32, 40, 1, 1)}, "wrong shape: found neck.0.weight (32, 40, 1, 1)"),
        ("", {"blocks__0__attn__rel_pos_h": torch.ones(27, 10)}, "a width that heads do not divide: found 48"),
    ],
)
def test_half_of_an_encoder_and_a_changed_one_are_refused(drop: str, added: State, said: str) -> None:
    state = changed(upstream.meta_vit(128).state_dict(), drop, **added)
    with pytest.raises(CheckpointError) as caught:
        vit.build(state, spec_of(128))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
