"""Merge LoRA: a weight W becomes W + scale B A, where the file and the configuration beside it say all of that."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from samx.errors import CheckpointError
from samx.files import CONFIG_CAP_BYTES
from samx.models.weight_files import Reader, WeightSource, read_json
from samx.models.weights import check_floats, clean_readers

CONFIGURATION = "adapter_config.json"
# peft: X.lora_A.default.weight beside X.base_layer.weight, an adapter's file: X.lora_A.weight; loralib: X.lora_A.
LORA_KEY = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[A-Za-z_]+)(?:\.(?P<adapter>(?!weight$)[^.]+))?(?P<end>\.\w+)?$")
BASE_KEY = re.compile(r"\.base_layer(?=\.[^.]+$)")
MERGE = "Merge them where they were trained (peft: merge_and_unload()) and save the whole model."
# Fields of the configuration that change what is computed, with the value that does not, or may be absent.
EXPECTED: Mapping[str, object] = {"peft_type": "LORA"}
NEUTRAL: tuple[object, ...] = (None, False, [], {}, "")
# Fields that do not, once the weights are trained: where they are, how they were begun, dropped, stored.
IGNORED = frozenset((
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_version", "r", "revision",
    "qalora_group_size", "runtime_config", "target_modules", "task_type", "use_rslora",
))  # fmt: skip


class Factor(NamedTuple):
    """Name one LoRA weight: of which module, which of its parts, of which adapter."""

    module: str
    part: str
    adapter: str
    key: str


def weight_readers(source: WeightSource) -> dict[str, Reader]:
    """Return a checkpoint's readers under clean keys, without LoRA's: what they change is merged when it is read.

    Raises: CheckpointError where nothing that they change is there; the readers, where one cannot be merged.
    """
    readers = clean_readers(source)
    factors = [*_factors(readers)]
    if not factors:
        return readers
    keys = {factor.key for factor in factors}
    merged = {BASE_KEY.sub("", key): reader for key, reader in readers.items() if key not in keys}
    modules = dict.fromkeys(factor.module for factor in factors)
    if not any(f"{module}.weight" in merged for module in modules):
        raise _refusal(
            source, f"'{factors[0].key}' without '{factors[0].module}.weight'", "the weights that they change"
        )
    for module in modules:
        own, weight = [factor for factor in factors if factor.module == module], f"{module}.weight"
        merged[weight] = partial(_merged, source, merged.get(weight), own, readers)
    return merged


def _factors(keys: Mapping[str, Reader]) -> Iterator[Factor]:
    for key in keys:
        match = LORA_KEY.match(key)
        if match:
            end = "" if match["end"] in (None, ".weight") else match["end"]  # a bias is a part of its own
            yield Factor(match["module"], match["part"] + end, match["adapter"] or "", key)


def _refusal(source: WeightSource, found: object, expected: str) -> CheckpointError:
    what = f"'{source.path}' holds unmerged LoRA weights that samx cannot merge"
    return CheckpointError(what, found=found, expected=expected, fix=MERGE)


def _merged(source: WeightSource, base: Reader | None, factors: list[Factor], readers: Mapping[str, Reader]) -> Tensor:
    """Return W + scale B A in float32. Convolutions are products of their flattened kernels."""
    module, listed = factors[0].module, ", ".join(factor.key for factor in factors[:4])
    if base is None:
        raise _refusal(source, f"{listed} without '{module}.weight'", "the weight that they change")
    if sorted(factor.part for factor in factors) != ["A", "B"] or len({factor.adapter for factor in factors}) != 1:
        raise _refusal(source, listed, "lora_A and lora_B of one adapter")
    if not all(factor.key.endswith(".weight") for factor in factors):
        raise _refusal(source, f"{listed}, as loralib saves them", "alpha, and whether they are merged already")
    keys = {factor.part: factor.key for factor in factors}
    a, b, weight = (readers[keys["A"]](), readers[keys["B"]](), base())
    for key, tensor in ((keys["A"], a), (keys["B"], b), (f"{module}.weight", weight)):
        check_floats(source.path, key, tensor)
    scale = _scale(source, a.shape[0] if a.ndim else 0)
    if min(a.ndim, b.ndim) < 2 or (*b.shape, *a.shape[1:]) != (
        len(weight),
        len(a),
        *[1] * (b.ndim - 2),
        *weight.shape[1:],
    ):
        found = f"lora_B {tuple(b.shape)} and lora_A {tuple(a.shape)} of '{module}'"
        raise _refusal(source, found, f"a product of the shape {tuple(weight.shape)}")
    return weight.float() + scale * (b.float().flatten(1) @ a.float().flatten(1)).view(weight.shape)


def _scale(source: WeightSource, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) where the configuration says so.

    Raises: CheckpointError without a configuration, and for one that asks for more than that.
    """
    path = (source.path if source.path.is_dir() else source.path.parent) / CONFIGURATION
    if not path.exists():
        raise _refusal(source, f"no {CONFIGURATION} beside it", "one with r and lora_alpha")
    config = read_json(path, CONFIG_CAP_BYTES)
    for name, value in config.items():
        if name not in IGNORED and value not in (EXPECTED.get(name), *NEUTRAL):
            raise _refusal(source, f"{name} = {value!r} in {CONFIGURATION}", str(EXPECTED.get(name)))
    alpha, r, is_root = config.get("lora_alpha"), config.get("r"), config.get("use_rslora", False)
    if not (_is_number(alpha) and r == rank > 0 and type(is_root) is bool):
        found = f"r = {r!r}, lora_alpha = {alpha!r}, use_rslora = {is_root!r} in {CONFIGURATION}"
        raise _refusal(source, found, f"r = {rank}, a number, and true or false")
    return float(alpha or 0) / (math.sqrt(rank) if is_root else rank)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
