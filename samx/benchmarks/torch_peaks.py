"""What a device reaches at best in PyTorch, and what share of it a way of decoding needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch

from samx.benchmarks.contenders.pytorch import Setting, Work
from samx.benchmarks.interleave import Clock
from samx.benchmarks.operations import FLOAT_BYTES, REFERENCE, count

PRODUCT_SIDE = {"cpu": 1536, "cuda": 8192}
COPIED_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}  # more than caches hold
TINY = 64, 1 << 16  # the same two, where the program is proven and nothing is measured
TRIES = 3  # at least


@dataclass(frozen=True)
class Peaks:
    """Hold the best of many tries: multiply-adds in a type, and bytes that were read and written."""

    multiply_adds_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Shares:
    """Say what part of the peaks a call reached. Its bytes are the fewest that it can do with."""

    multiply_adds: float
    bytes: float


def peaks(device: torch.device, dtype: torch.dtype, clock: Clock, seconds: float, tiny: bool = False) -> Peaks:
    """Multiply two matrices, and copy a tensor, again and again."""
    side, size = TINY if tiny else (PRODUCT_SIDE[device.type], COPIED_BYTES[device.type])
    a, b = (torch.full((side, side), value, dtype=dtype, device=device) for value in (0.5, 0.25))
    product = torch.empty_like(a)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    product_s = _best_s(lambda: torch.mm(a, b, out=product), clock, seconds)
    return Peaks(side**3 / product_s, 2 * size / _best_s(lambda: target.copy_(source), clock, seconds))


def _best_s(work: Callable[[], object], clock: Clock, seconds: float) -> float:
    began, best, tries = clock(), inf, 0
    while tries < TRIES or clock() - began < 1e9 * seconds:
        start = clock()
        work()
        best, tries = min(best, clock() - start), tries + 1
    return best / 1e9


def shares(setting: Setting, work: Work, prompts: int, points: int, call_ns: float, found: Peaks) -> Shares:
    """Divide what a call needs by its time and the peaks."""
    spec = setting.loaded.spec
    counted = count(spec, work.form, points, cached=work.form != REFERENCE)
    adds = counted.prompt * prompts + (0 if work.keeps_image else counted.image)
    kept = counted.kept_bytes if work.keeps_image else FLOAT_BYTES * sum(x.numel() for x in setting.image.values())
    weights = FLOAT_BYTES * sum(tensor.numel() for tensor in setting.loaded.weights.values())
    masks = prompts * spec.masks_out * spec.mask_size**2 * FLOAT_BYTES  # float32 in any type
    moved = (kept + weights) / (1 if setting.half is None else 2) + masks
    calls_per_s = 1e9 / call_ns
    return Shares(adds * calls_per_s / found.multiply_adds_per_s, moved * calls_per_s / found.bytes_per_s)
