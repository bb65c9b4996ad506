"""What is asked of every weight that is read, whichever part of a model it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from samx.errors import CheckpointError
from samx.models.families.base import clean
from samx.models.weight_files import Reader, WeightSource, not_floats

FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Beside, or in the place of, weights that torch, bitsandbytes, GPTQ, AWQ or compressed-tensors have quantised.
QUANTISED = re.compile(
    r"\.(?:zero_point|_packed_params\..+|qweight|qzeros|SCB|absmax|nested_absmax|quant_map|quant_state\..+"
    r"|weight_scale(?:_inv)?|weight_packed)$"
)
SHOWN = 3  # names or shapes in an error line


def clean_readers(source: WeightSource) -> dict[str, Reader]:
    """Return a checkpoint's readers under keys without the names of framework wrappers.

    Raises: CheckpointError where two keys are one then.
    """
    readers = {clean(key): reader for key, reader in source.readers.items()}
    if len(readers) < len(source.readers):
        raise CheckpointError(
            f"'{source.path}' holds some weights twice", found="keys with and without 'module.' or '_orig_mod.'",
            expected="one decoder", fix="Save the one you mean in a file of its own.",
        )  # fmt: skip
    return readers


def check_floats(path: Path, key: str, tensor: Tensor) -> None:
    """Refuse a weight that is quantized or sparse.

    Raises: CheckpointError.
    """
    if tensor.dtype not in FLOAT_TYPES or tensor.layout is not torch.strided:
        raise not_floats(path, key, f"{tensor.dtype}, {tensor.layout}")


def refuse_quantised(path: Path, keys: Iterable[str]) -> None:
    """Refuse weights whose neighbours show that they are quantised, whatever their own type.

    Raises: CheckpointError.
    """
    mark = next((key for key in keys if QUANTISED.search(key)), None)
    if mark is not None:
        raise CheckpointError(
            f"'{path}' holds quantised weights", found=f"key '{mark}'", expected="float32, float16 or bfloat16",
            fix="Use the checkpoint from before its quantization; samx quantises at export (--int8).",
        )  # fmt: skip


def owned_float32(tensor: Tensor) -> Tensor:
    """Copy a weight, so that the file's memory can be let go."""
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises: CheckpointError naming the first weight that has one.
    """
    for name, tensor in weights.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(
                f"weight '{name}' of '{path}' is not finite", found=f"NaN or infinity in {bad} of {tensor.numel()}",
                expected="finite numbers", fix="Use a checkpoint from before the training diverged.",
            )  # fmt: skip


def some(items: Iterable[str]) -> str:
    """Join the first few of a list for an error line, and count the others."""
    listed = list(items)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
