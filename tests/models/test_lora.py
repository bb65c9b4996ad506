"""LoRA is merged into the weights where rank and alpha are known, and refused for what is missing otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checkpoint_files import meta_sam1, random_decoder, small_spec
from safetensors.torch import save_file
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.checkpoint import build_reference, load_checkpoint
from samx.models.lora import weight_readers
from samx.models.weight_files import open_weights

State = dict[str, Tensor]
RANK, ALPHA = 4, 6.0
DECODER = "mask_decoder.transformer.layers.0.self_attn.q_proj"
CONVOLUTION = "prompt_encoder.mask_downscaling.3"
ENCODER = "image_encoder.neck.0"
# As peft writes it, with what it says by default.
CONFIGURATION: Mapping[str, Any] = {
    "alpha_pattern": {}, "auto_mapping": None, "base_model_name_or_path": "facebook/sam-vit-base", "bias": "none",
    "corda_config": None, "eva_config": None, "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "layer_replication": None, "layers_pattern": None, "layers_to_transform": None,
    "loftq_config": {}, "lora_alpha": ALPHA, "lora_bias": False, "lora_dropout": 0.1, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "peft_type": "LORA", "qalora_group_size": 16, "r": RANK,
    "rank_pattern": {}, "revision": None, "target_modules": ["q_proj", "v_proj"], "task_type": None,
    "use_dora": False, "use_qalora": False, "use_rslora": False,
}  # fmt: skip


def factors(weight: Tensor, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Return A and B for a linear layer's or a convolution's weight, as peft shapes them."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(rank, *weight.shape[1:], generator=generator)
    b = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator)
    return a, b


def peft_state(*modules: str, adapter: str = ".default", prefix: str = "base_model.model.") -> State:
    """Return the state of a peft model whose named modules are wrapped."""
    state: State = {}
    for key, value in meta_sam1().items():
        module, _, leaf = key.rpartition(".")
        state[prefix + (f"{module}.base_layer.{leaf}" if module in modules else key)] = value
    for module in modules:
        a, b = factors(meta_sam1()[f"{module}.weight"])
        state |= {f"{prefix}{module}.lora_{part}{adapter}.weight": value for part, value in (("A", a), ("B", b))}
    return state


def write(folder: Path, state: State, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "sam.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIGURATION, **changes}))
    return folder / "sam.safetensors"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "unmerged LoRA weights that samx cannot merge" in str(caught.value)
    assert "merge_and_unload()" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("adapter", [".default", ".trained_by_me", ""])
@pytest.mark.parametrize("root", [False, True])
def test_a_linear_layer_computes_what_the_adapter_computes(tmp_path: Path, adapter: str, root: bool) -> None:
    loaded = load_checkpoint(write(tmp_path / "a", peft_state(DECODER, adapter=adapter), use_rslora=root))
    weight, bias = meta_sam1()[f"{DECODER}.weight"], meta_sam1()[f"{DECODER}.bias"]
    a, b = factors(weight)
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(0)).double()  # sums without rounding
    weight, bias, a, b = (tensor.double() for tensor in (weight, bias, a, b))
    scale = ALPHA / (math.sqrt(RANK) if root else RANK)
    expected = F.linear(x, weight, bias) + scale * F.linear(F.linear(x, a), b)
    found = F.linear(x, *(loaded.weights[f"{DECODER}.{name}"].double() for name in ("weight", "bias")))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, F.linear(x, weight, bias), atol=1e-1)


def test_a_convolution_computes_what_the_adapter_computes(tmp_path: Path) -> None:
    loaded = load_checkpoint(write(tmp_path / "a", peft_state(CONVOLUTION)))
    weight = meta_sam1()[f"{CONVOLUTION}.weight"]
    a, b = factors(weight)
    x = torch.randn(1, weight.shape[1], 8, 8, generator=torch.Generator().manual_seed(0)).double()
    weight, a, b = (tensor.double() for tensor in (weight, a, b))
    stride = weight.shape[-1]
    expected = F.conv2d(x, weight, stride=stride) + ALPHA / RANK * F.conv2d(F.conv2d(x, a, stride=stride), b)
    found = F.conv2d(x, loaded.weights[f"{CONVOLUTION}.weight"].double(), stride=stride)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_encoder_is_merged_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a", peft_state(ENCODER, DECODER))
    found = weight_readers(open_weights(path))[f"base_model.model.{ENCODER}.weight"]()
    a, b = factors(found)
    torch.testing.assert_close(found, ALPHA / RANK * torch.einsum("orxy,rihw->oihw", b, a), rtol=1e-5, atol=1e-5)


def test_the_whole_decoder_computes_with_it(tmp_path: Path) -> None:
    decoder = random_decoder(small_spec(image_size=128))
    loaded = build_reference(load_checkpoint(write(tmp_path / "a", peft_state(DECODER)), image_size=128))
    layer = decoder.get_submodule(DECODER)
    a, b = factors(meta_sam1()[f"{DECODER}.weight"])
    layer.register_forward_hook(lambda _, x, out: out + ALPHA / RANK * F.linear(F.linear(x[0], a), b))
    feed = (torch.randn(1, 32, 8, 8), torch.tensor([[[30.0, 70.0]]]), torch.ones(1, 1))
    for name, output in decoder(*feed).items():
        torch.testing.assert_close(loaded(*feed)[name], output, rtol=1e-4, atol=1e-4)


def test_other_weights_are_untouched(tmp_path: Path) -> None:
    loaded = load_checkpoint(write(tmp_path / "a", peft_state(DECODER)))
    for key, value in random_decoder(small_spec()).state_dict().items():
        assert torch.equal(loaded.weights[key], value) == (key != f"{DECODER}.weight"), key


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_adapter_alone_names_the_weights_that_it_lacks(tmp_path: Path, suffix: str) -> None:
    state = {key: value for key, value in peft_state(DECODER, adapter="").items() if "lora_" in key}
    write(tmp_path / "a", {})
    path = tmp_path / "a" / f"adapter_model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    for named in (path, path.parent):
        assert f"without 'base_model.model.{DECODER}.weight'" in refusal(named)


def test_a_half_of_an_adapter_is_refused(tmp_path: Path) -> None:
    state = peft_state(DECODER, CONVOLUTION)
    del state[f"base_model.model.{DECODER}.base_layer.weight"]
    assert f"without 'base_model.model.{DECODER}.weight'" in refusal(write(tmp_path / "a", state))


def test_without_a_configuration_alpha_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "a", peft_state(DECODER))
    (path.parent / "adapter_config.json").unlink()
    assert "no adapter_config.json beside it, expected one with r and lora_alpha" in refusal(path)


def test_loralib_says_neither_alpha_nor_whether_it_is_merged(tmp_path: Path) -> None:
    a, b = factors(meta_sam1()[f"{DECODER}.weight"])
    path = write(tmp_path / "a", {**meta_sam1(), f"{DECODER}.lora_A": a, f"{DECODER}.lora_B": b})
    assert "as loralib saves them, expected alpha, and whether they are merged already" in refusal(path)


CHANGES: Mapping[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora = True"),
    "another method": ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
    "ranks": ({"rank_pattern": {"q_proj": 8}}, "rank_pattern = {'q_proj': 8}"),
    "alphas": ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
    "biases": ({"lora_bias": True}, "lora_bias = True"),
    "what is not known": ({"use_another_lora": True}, "use_another_lora = True"),
    "another rank": ({"r": 8}, "r = 8"),
    "rank no number": ({"r": "4"}, "r = '4'"),
    "no rank": ({"r": None}, "r = None"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha = None"),
    "alpha no number": ({"lora_alpha": "6"}, "lora_alpha = '6'"),
    "a root that is no truth": ({"use_rslora": "yes"}, "use_rslora = 'yes'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_configuration_that_asks_for_more_is_refused(tmp_path: Path, name: str) -> None:
    changes, words = CHANGES[name]
    assert words in refusal(write(tmp_path / "a", peft_state(DECODER), **changes))


KINDS: Mapping[str, tuple[str, tuple[int, ...], str]] = {
    "magnitude": ("lora_magnitude_vector.default.weight", (32,), "lora_A and lora_B of one adapter"),
    "embedding": ("lora_embedding_A.default", (4, 32), "lora_A and lora_B of one adapter"),
    "bias": ("lora_B.default.bias", (32,), "lora_A and lora_B of one adapter"),
    "a second adapter": ("lora_A.other.weight", (4, 32), "lora_A and lora_B of one adapter"),
    "another shape of A": ("lora_A.default.weight", (4, 31), "expected a product of the shape (32, 32)"),
    "another shape of B": ("lora_B.default.weight", (31, 4), "expected a product of the shape (32, 32)"),
    "no shape of B": ("lora_B.default.weight", (), "expected a product of the shape (32, 32)"),
    "other ranks": ("lora_B.default.weight", (32, 3), "expected a product of the shape (32, 32)"),
}


@pytest.mark.parametrize("name", KINDS)
def test_lora_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    key, shape, words = KINDS[name]
    state = {**peft_state(DECODER), f"base_model.model.{DECODER}.{key}": torch.ones(shape)}
    assert words in refusal(write(tmp_path / "a", state))


@pytest.mark.parametrize("of", ["base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"])
def test_quantised_weights_are_not_merged(tmp_path: Path, of: str) -> None:
    state, key = peft_state(DECODER), f"base_model.model.{DECODER}.{of}"
    path = write(tmp_path / "a", {**state, key: state[key].to(torch.int8)})
    with pytest.raises(CheckpointError, match=r"not an array of floats: found torch\.int8"):
        load_checkpoint(path)


def test_lora_of_an_encoder_alone_leaves_the_decoder_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a", peft_state(ENCODER))
    (path.parent / "adapter_config.json").unlink()
    for key, value in random_decoder(small_spec()).state_dict().items():
        assert torch.equal(load_checkpoint(path).weights[key], value)
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json beside it"):
        weight_readers(open_weights(path))[f"base_model.model.{ENCODER}.weight"]()
