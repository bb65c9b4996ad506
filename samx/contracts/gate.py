"""Judge a contract's graph by the calls that its programs make, against the decoder that was compared with PyTorch.

The decoder's own graph has passed the parity gate; what a program must read of it is computed in NumPy (client.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from samx.contracts import client
from samx.contracts.table import Contract, Port
from samx.models.session import Feed, Session

LEAST_IOU = 0.9999
LARGEST_ERROR = 1e-4  # of a float, over the output's scale; two sessions of one graph differ by about 1e-6 of it
TIE_BAND = 1e-5  # over the largest logit: a pixel so close to the threshold has no side
LOGITS = ("low_res_masks", "picture_masks")


class Opened(NamedTuple):
    """Hold a program's graph: the names of its inputs and outputs, and what runs it, by position."""

    inputs: list[str]
    outputs: list[str]
    run: client.Run


@dataclass
class Verdict:
    """Collect what is wrong with a contract's graph, and the worst that was measured."""

    failures: list[str] = field(default_factory=list)
    calls: int = 0
    pixels: int = 0
    mask_iou_min: float = 1.0
    output_error: float = 0.0

    def facts(self, contract: Contract) -> dict[str, object]:
        """Return what a report says of it."""
        worst = {"mask_iou_min": self.mask_iou_min, "output_error_relative": self.output_error}
        return {"name": contract.name, "calls": self.calls, **worst}


def judge(contract: Contract, opened: Opened, decoder: Session, images: Sequence[Feed], seed: int) -> Verdict:
    """Make a program's calls on some images, and compare every output; failures are findings, never exceptions."""
    verdict = Verdict([*_misnamed("inputs", opened.inputs, contract.inputs),
                       *_misnamed("outputs", opened.outputs, contract.outputs)])  # fmt: skip
    if verdict.failures:
        return verdict
    for i, (name, call) in enumerate(client.calls(contract, decoder.spec, np.random.default_rng(seed))):
        try:
            found = _answered(verdict, contract, opened, decoder, images[i % len(images)], call)
        except Exception as error:  # of a runtime, whose errors share no base class; or of bounds that make no sense
            found = [str(error).partition("\n")[0] or type(error).__name__]
        verdict.failures += [f"{name}: {line}" for line in found]
    if not verdict.failures and not verdict.pixels:
        verdict.failures.append("no mask of any call has a pixel, so that nothing was compared")
    return verdict


def _misnamed(side: str, found: list[str], ports: Sequence[Port]) -> list[str]:
    names = [port.name for port in ports]
    return [] if found == names else [f"{side} are {', '.join(found)}, must be {', '.join(names)}, in this order"]


def _answered(
    verdict: Verdict, contract: Contract, opened: Opened, decoder: Session, image: Feed, call: client.Call
) -> list[str]:
    """Make a call, and return what is wrong with the answer."""
    decoder.set_image(image)
    wanted = client.expected(contract, decoder.spec, call, decoder.decode(client.asked(contract, call)))
    answer = opened.run(client.feed(contract, decoder.spec, call, image))
    found = dict(zip([port.holds for port in contract.outputs], answer, strict=True))
    verdict.calls += 1
    lines = [line for port in contract.outputs for line in _typed(port, found[port.holds])]
    if lines:
        return lines
    if contract.has("picture_crop"):
        found["picture_masks"] = client.pasted(found, call.picture)[None, None]
    return [
        line
        for holds, value in found.items()
        if holds in wanted
        for line in _differs(verdict, holds, wanted[holds], value)
    ]


def _typed(port: Port, value: NDArray[Any]) -> list[str]:
    if value.dtype != port.dtype or (port.axes is not None and value.ndim != len(port.axes)):
        return [f"{port.name} is {value.dtype} {value.shape}, must be {port.dtype} of {len(port.axes or ())} axes"]
    return []


def _differs(verdict: Verdict, holds: str, wanted: NDArray[Any], found: NDArray[Any]) -> list[str]:
    """Compare an output with what it must be; masks by their pixels too, which are all that a cut-out one has."""
    if found.shape != wanted.shape:
        return [f"{holds} has shape {found.shape}, must be {wanted.shape}"]
    if not np.isfinite(found).all():
        return [f"{holds} holds NaN or infinity"]
    lines = []
    if found.dtype != np.bool_:
        # Logits have the scale of their largest, scores that of 1: a predicted IoU may be nearly 0 by itself.
        scale = max(float(np.abs(wanted).max()), 1e-6 if holds in LOGITS else 1.0)
        error = float(np.abs(found - wanted).max()) / scale
        verdict.output_error = max(verdict.output_error, error)
        lines += [] if error <= LARGEST_ERROR else [f"{holds} differs by {error:.2g} of {scale:.2g}"]
    if holds in LOGITS:
        iou = _iou(verdict, wanted, found)
        verdict.mask_iou_min = min(verdict.mask_iou_min, iou)
        lines += [] if iou >= LEAST_IOU else [f"mask IoU of {holds} is {iou:.5f}, must be at least {LEAST_IOU}"]
    return lines


def _iou(verdict: Verdict, wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Return the lowest IoU of the masks, pixels on the threshold left out. Shapes: (..., H, W) twice."""
    decided = np.abs(wanted) > TIE_BAND * np.abs(wanted).max((-1, -2), keepdims=True)
    ours, theirs = (found > 0) & decided, (wanted > 0) & decided
    both, either = (ours & theirs).sum((-1, -2)), (ours | theirs).sum((-1, -2))
    verdict.pixels += int(either.sum())
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).min())
