"""Weights of Keras Hub's SAM (`.weights.h5`): a backbone's file, or a task's that holds the backbone.

They are Meta's under other names, with the axes of kernels in another order. No link to another file is followed.
Source: keras-hub's SAMBackbone, SAMPromptEncoder, SAMMaskDecoder and ViTDetBackbone; how Keras 3 names what it saves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samx.errors import CheckpointError
from samx.extras import require

KERAS_FORMAT = "keras_hub"
MOST_ARRAYS, SHOWN = 10_000, 3  # the largest SAM has 600; names in an error line
WANTED = "a SAM preset of Keras Hub's: model.weights.h5, or task.weights.h5"
PYTORCH_FIX = "Use the PyTorch checkpoint of the model."
# A layer that no other of its kind stands before in its container has no number.
FIRST = re.compile(
    r"(?<=/)(windowed_transformer_encoder|two_way_multi_head_attention|mlp|dense|conv2d|conv2d_transpose"
    r"|layer_normalization)(?=/)"
)
KERNEL = re.compile(r"/(?:conv2d(?:_transpose)?_\d+|dense_\d+|qkv|projection|(?:query|key|value|out)_proj)/vars/0$")
BACKBONE = re.compile(r"^layers/sam_backbone/")
IS_SAM = re.compile(r"^(?:layers/sam_backbone/)?mask_decoder/iou_token/vars/0$")
UNUSED = re.compile(r"^optimizer/")
PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
BLOCK = r"^layers/windowed_transformer_encoder_(\d+)/"
PROMPTS = "layers/sam_prompt_encoder/"
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^layers/add_positional_embedding/vars/0$", "image_encoder.pos_embed"),
    (r"^layers/vi_t_det_patching_and_embedding/projection/", "image_encoder/patch_embed/proj/"),
    (BLOCK + r"attention/add_decomposed_relative_pe/vars/0$", r"image_encoder.blocks.\1.attn.rel_pos_h"),
    (BLOCK + r"attention/add_decomposed_relative_pe/vars/1$", r"image_encoder.blocks.\1.attn.rel_pos_w"),
    (BLOCK + r"attention/projection/", r"image_encoder/blocks/\1/attn/proj/"),
    (BLOCK + r"attention/qkv/", r"image_encoder/blocks/\1/attn/qkv/"),
    (BLOCK + r"mlp_block/dense_net/layers/dense_0/", r"image_encoder/blocks/\1/mlp/lin1/"),
    (BLOCK + r"mlp_block/dense_net/layers/dense_1/", r"image_encoder/blocks/\1/mlp/lin2/"),
    (BLOCK, r"image_encoder/blocks/\1/"),
    (r"^layers/sequential/layers/conv2d_0/", "image_encoder/neck/0/"),
    (r"^layers/sequential/layers/layer_normalization_0/", "image_encoder/neck/1/"),
    (r"^layers/sequential/layers/conv2d_1/", "image_encoder/neck/2/"),
    (r"^layers/sequential/layers/layer_normalization_1/", "image_encoder/neck/3/"),
    (
        rf"^{PROMPTS}positional_embedding_layer/vars/0$",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (rf"^{PROMPTS}background_point_embed/", "prompt_encoder/point_embeddings/0/"),
    (rf"^{PROMPTS}foreground_point_embed/", "prompt_encoder/point_embeddings/1/"),
    (rf"^{PROMPTS}top_left_corner_embed/", "prompt_encoder/point_embeddings/2/"),
    (rf"^{PROMPTS}bottom_right_corner_embed/", "prompt_encoder/point_embeddings/3/"),
    (rf"^{PROMPTS}mask_downscaler/layers/conv2d_0/", "prompt_encoder/mask_downscaling/0/"),
    (rf"^{PROMPTS}mask_downscaler/layers/layer_normalization_0/", "prompt_encoder/mask_downscaling/1/"),
    (rf"^{PROMPTS}mask_downscaler/layers/conv2d_1/", "prompt_encoder/mask_downscaling/3/"),
    (rf"^{PROMPTS}mask_downscaler/layers/layer_normalization_1/", "prompt_encoder/mask_downscaling/4/"),
    (rf"^{PROMPTS}mask_downscaler/layers/conv2d_2/", "prompt_encoder/mask_downscaling/6/"),
    (rf"^{PROMPTS}", "prompt_encoder/"),
    (r"/output_upscaling/layers/conv2d_transpose_0/", "/output_upscaling/0/"),
    (r"/output_upscaling/layers/layer_normalization_0/", "/output_upscaling/1/"),
    (r"/output_upscaling/layers/conv2d_transpose_1/", "/output_upscaling/3/"),
    (
        r"/output_hypernetworks_mlps/mlp_(\d+)/mlp_block/layers/dense_(\d+)/",
        r"/output_hypernetworks_mlps/\1/layers/\2/",
    ),
    (r"/iou_prediction_head/mlp_block/layers/dense_(\d+)/", r"/iou_prediction_head/layers/\1/"),
    (r"/two_way_multi_head_attention_(\d+)/", r"/\1/"),
    (r"/mlp_block/mlp_block/layers/dense_0/", "/mlp/lin1/"),
    (r"/mlp_block/mlp_block/layers/dense_1/", "/mlp/lin2/"),
    (r"/layer_norm([1-4])/", r"/norm\1/"),
    (r"/final_layer_norm/", "/norm_final_attn/"),
    (r"/final_attention_token_to_image/", "/final_attn_token_to_image/"),
    (r"/self_attention/", "/self_attn/"),
    (r"/cross_attention_", "/cross_attn_"),
    (r"/query_proj/", "/q_proj/"),
    (r"/key_proj/", "/k_proj/"),
    (r"/value_proj/", "/v_proj/"),
    (r"/vars/0$", "/weight"),
    (r"/vars/1$", "/bias"),
    (r"/", "."),
)


def open_keras(path: Path) -> dict[str, Callable[[], Tensor]]:
    """List the weights of a Keras Hub SAM under Meta's names; each is read when its reader is called.

    Raises: CheckpointError for a file of another model or a damaged one; MissingExtraError without h5py.
    """
    with _opened(path) as file:
        found = [key for key in _arrays(path, file) if not UNUSED.match(key)]
    if not any(IS_SAM.match(key) for key in found):
        raise _refusal(f"'{path}' is an HDF5 file, as Keras saves weights, and none of SAM", "arrays " + _some(found))
    names = {key: renamed(key) for key in found}
    strangers = [key for key, name in names.items() if not name.startswith(PARTS)]
    if strangers:
        raise _refusal(f"'{path}' has weights that Keras Hub's SAM does not have", _some(strangers))
    if len(set(names.values())) < len(names):
        raise _refusal(f"'{path}' holds some weights twice", "a backbone beside a task's", "Save one of them alone.")
    return {name: partial(_read, path, key) for key, name in names.items()}


def renamed(key: str) -> str:
    """Return Meta's name of an array."""
    name = _numbered(key)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _numbered(key: str) -> str:
    return FIRST.sub(r"\1_0", BACKBONE.sub("", key))


def _arrays(path: Path, file: Any) -> list[str]:
    """List what is no group; hard links alone are followed."""
    found: list[str] = []

    def note(name: str, item: Any) -> bool | None:
        if hasattr(item, "shape"):
            found.append(name)
        return len(found) > MOST_ARRAYS or None

    file.visititems(note)
    if len(found) > MOST_ARRAYS:
        raise _refusal(f"'{path}' holds too many arrays for a SAM", f"more than {MOST_ARRAYS}")
    return found


def _read(path: Path, key: str) -> Tensor:
    with _opened(path) as file:
        array = file[key]
        lies_here = not array.external and not array.is_virtual and array.id.get_storage_size() == array.nbytes
        if not lies_here or array.nbytes > path.stat().st_size:
            raise _refusal(f"weight '{key}' of '{path}' does not lie in the file as it is", "a link, or compressed")
        if array.dtype.kind != "f":
            found, fix = str(array.dtype), "Use the preset in float32, from before its quantization."
            raise _refusal(f"weight '{key}' of '{path}' is not an array of floats", found, fix)
        value = np.array(array[()], dtype=array.dtype.newbyteorder("="))
    tensor = torch.from_numpy(value)
    if not KERNEL.search(_numbered(key)):
        return tensor
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.transpose(0, -1)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = require("h5py", "keras", f"reading '{path}', an HDF5 file, as Keras saves weights,")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as cause:  # all that HDF5 raises for odd bytes
        found = f"bytes that HDF5 cannot read ({type(cause).__name__})"
        raise _refusal(
            f"'{path}', an HDF5 file, as Keras saves weights, is damaged", found, "Download it again."
        ) from cause


def _refusal(what: str, found: str, fix: str = PYTORCH_FIX) -> CheckpointError:
    return CheckpointError(what, found=found, expected=WANTED, fix=fix)


def _some(keys: list[str]) -> str:
    return (", ".join(keys[:SHOWN]) or "none") + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
