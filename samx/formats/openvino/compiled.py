"""What OpenVINO's CPU plugin makes of a graph: which operations it runs, and in which arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from samx.errors import UnavailableError

PLUGIN = "CPU"
BFLOAT16 = "bf16"
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Subgraph")  # the last: what the plugin fused, products too
STORAGE = ("Const", "Input", "Output")  # take no time of their own
# What is not in integers is computed in; fp16 is what the files store. Left alone, the plugin takes bfloat16 wherever
# the processor has it.
ARITHMETIC: Mapping[str, str] = {"fp32": "f32", "fp16": "f32", "int8": "f32", "bf16": BFLOAT16}


def operations(compiled: Any) -> Iterator[tuple[str, str]]:
    """Give kind and arithmetic of every operation that runs.

    The arithmetic stands behind the name of the kernel; what is called the run-time precision is that of the weights.
    """
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = operation.get_rt_info()
        kind = str(facts["layerType"].value)
        if kind not in STORAGE:
            yield kind, str(facts["primitiveType"].value).rpartition("_")[2].lower()


def devices_of(models: Sequence[Any]) -> dict[str, int]:
    """Count the operations on each device."""
    counts: Counter[str] = Counter()
    for compiled in models:
        (device,) = compiled.get_property("EXECUTION_DEVICES")
        counts[str(device).lower()] += sum(1 for _ in operations(compiled))
    return dict(counts)


def products(models: Sequence[Any]) -> dict[str, int]:
    """Count the products in each arithmetic."""
    found = Counter(arithmetic for compiled in models for kind, arithmetic in operations(compiled) if kind in PRODUCTS)
    return dict(sorted(found.items()))


def check_processor(core: Any, precision: str) -> None:
    """Refuse bfloat16 where the processor lacks it: the plugin would compute in float32, and say nothing.

    Raises: UnavailableError.
    """
    capabilities = core.get_property(PLUGIN, "OPTIMIZATION_CAPABILITIES")
    if ARITHMETIC[precision] == BFLOAT16 and BFLOAT16.upper() not in capabilities:
        raise UnavailableError(
            "this processor does not compute in bfloat16", found=", ".join(capabilities),
            expected="AVX-512 BF16 or AMX", fix="Use another precision, or such a processor.",
        )  # fmt: skip


def check_products(found: Mapping[str, int], precision: str) -> None:
    """Refuse a graph that was compiled to another arithmetic than was asked for.

    Raises: UnavailableError.
    """
    arithmetic = ARITHMETIC[precision]
    halves = {BFLOAT16, "f16"} & set(found)
    if halves - {arithmetic} or (arithmetic == BFLOAT16 and arithmetic not in found):
        raise UnavailableError(
            "OpenVINO computes in another arithmetic here",
            found=", ".join(f"{count} products in {name}" for name, count in found.items()), expected=arithmetic,
            fix="Please report this, with the output of 'samx doctor'.",
        )  # fmt: skip
