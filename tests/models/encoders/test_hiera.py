"""SAM 2's image encoder computes what Meta's does, built with the size that is asked for."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch
import upstream_encoders as upstream
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.encoders import hiera
from samx.models.spec import sam2_spec

TOLERANCE = 2e-6  # float32 sums in another order


@pytest.fixture(autouse=True)
def _small_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small encoder be one of the released."""
    monkeypatch.setattr(hiera, "LAYOUTS", {**hiera.LAYOUTS, upstream.SMALL_HIERA: upstream.SMALL_LAYOUT})


def weights_of(encoder: upstream.MetaHiera) -> dict[str, Tensor]:
    """Return weights as the loader hands them over."""
    state = encoder.state_dict().items()
    return {name.removeprefix("image_encoder.").removeprefix("sam_mask_decoder."): tensor for name, tensor in state}


def errors(theirs: upstream.MetaHiera, image_size: int) -> list[float]:
    encoder, pixels = hiera.build(weights_of(theirs), sam2_spec(image_size=image_size)), upstream.pictures(image_size)
    ours = encoder(pixels)
    assert encoder.picture_px == image_size
    assert upstream.shapes(ours) == upstream.expected_shapes(sam2_spec(image_size=image_size))
    return [upstream.relative_error(mine, other) for mine, other in zip(ours, theirs(pixels), strict=True)]


@pytest.mark.parametrize("image_size", [96, 256, 512, 640])
def test_it_computes_what_metas_does_built_with_that_size(image_size: int) -> None:
    assert max(errors(upstream.meta_hiera(), image_size)) <= TOLERANCE


def test_so_does_the_released_tiny_one() -> None:
    sizes = (96, (1, 2, 7, 2))
    assert max(errors(upstream.meta_hiera(sizes, hiera.LAYOUTS[sizes]), 256)) <= TOLERANCE


@pytest.mark.slow
def test_so_it_does_at_full_size() -> None:
    sizes = (96, (1, 2, 7, 2))
    assert max(errors(upstream.meta_hiera(sizes, hiera.LAYOUTS[sizes]), 1024)) <= TOLERANCE


@pytest.mark.parametrize("letter", ["t", "s", "b+", "l"])
@pytest.mark.parametrize("release", ["sam2", "sam2.1"])
def test_the_table_says_what_metas_configurations_say(release: str, letter: str) -> None:
    yaml = pytest.importorskip("yaml")
    package = import_module("sam2")
    path = Path(package.__path__[0]) / "configs" / release / f"{release}_hiera_{letter}.yaml"
    trunk = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["image_encoder"]["trunk"]
    defaults = inspect.signature(import_module("sam2.modeling.backbones.hieradet").Hiera).parameters
    said = {name: trunk.get(name, parameter.default) for name, parameter in defaults.items()}
    layout = hiera.LAYOUTS[said["embed_dim"], tuple(said["stages"])]
    found = (layout.heads, list(layout.windows), list(layout.everywhere))
    assert found == (said["num_heads"], list(said["window_spec"]), list(said["global_att_blocks"]))


def test_a_decoder_without_fine_features_gets_none() -> None:
    theirs = upstream.meta_hiera()
    weights = {name: tensor for name, tensor in weights_of(theirs).items() if not name.startswith("conv_s")}
    pixels = upstream.pictures(128)
    (ours,) = hiera.build(weights, sam2_spec(image_size=128, high_res_features=False))(pixels)
    assert upstream.relative_error(ours, theirs(pixels)[0]) <= TOLERANCE


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((24, (1, 2, 3, 2)), "24 wide, [1, 2, 3, 2] blocks a stage"),
        ((16, (1, 2, 4, 2)), "16 wide, [1, 2, 4, 2] blocks a stage"),
        ((16, (1, 5, 2)), "16 wide, [1, 5, 2] blocks a stage"),
    ],
)
def test_another_width_or_stage_count_is_refused(sizes: tuple[int, tuple[int, ...]], said: str) -> None:
    width, blocks = sizes
    starts = {sum(blocks[:stage]) for stage in range(1, len(blocks))}
    weights = {
        "trunk.patch_embed.proj.weight": torch.ones(width, 3, 7, 7),
        **{f"trunk.blocks.{i}.norm1.weight": torch.ones(1) for i in range(sum(blocks))},
        **{f"trunk.blocks.{i}.proj.weight": torch.ones(1, 1) for i in starts},
    }
    with pytest.raises(CheckpointError, match="sizes that none has") as caught:
        hiera.build(weights, sam2_spec())
    assert f"found {said}, expected 96 wide, [1, 2, 7, 2] or" in str(caught.value)


@pytest.mark.parametrize("image_size", [528, 1008, 16])
def test_a_size_that_the_stages_do_not_divide_is_refused(image_size: int) -> None:
    with pytest.raises(CheckpointError, match=f"found {image_size} px, expected a multiple of 32 px"):
        hiera.build(weights_of(upstream.meta_hiera()), sam2_spec(image_size=image_size))


@pytest.mark.parametrize(
    "drop",
    ["trunk.pos_embed", "trunk.pos_embed_window", "trunk.blocks.6.mlp.layers.1.bias", "trunk.blocks.3.attn.qkv.weight",
     "neck.convs.0.conv.weight", "neck.convs.3.conv.bias", "no_mem_embed", "conv_s0.weight", "conv_s1.bias"],
)  # fmt: skip
def test_half_of_an_encoder_is_refused(drop: str) -> None:
    weights = {name: tensor for name, tensor in weights_of(upstream.meta_hiera()).items() if name != drop}
    with pytest.raises(CheckpointError, match=rf"lacks weights: found {drop}, ") as caught:
        hiera.build(weights, sam2_spec(image_size=128))
    assert "\n" not in str(caught.value)
