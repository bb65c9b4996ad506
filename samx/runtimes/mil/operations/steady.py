"""The same sums in the same order, whatever the number of padded points.

Libraries choose the order of a sum by the shapes. So short axes are filled up here before anything is summed: a
function with more padded points then adds the same numbers in the same order as one without them, and the two can
be compared to the bit.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

SHORT = 32  # the tokens of a prompt with up to 26 points


def filled(x: Tensor, axis: int, value: float = 0.0) -> Tensor:
    """Give a short axis a standard length. Shapes: (..., n, ...) -> (..., 32, ...) where n is less."""
    missing = SHORT - x.shape[axis]
    if missing <= 0:
        return x
    behind = x.ndim - 1 - axis % x.ndim
    return F.pad(x, [0, 0] * behind + [0, missing], value=value)
